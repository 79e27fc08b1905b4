"""Generation: what the model writes after the prompts of a file, beside what is written there."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from npgpt.cli.arguments import unescaped
from npgpt.cli.progress import progress_bar
from npgpt.cli.tasks.options import Options
from npgpt.cli.tasks.report import (
    bootstrap_entries,
    counted,
    numbers_table,
    prefix_of,
    print_bootstrap,
    write_out,
)
from npgpt.data.records import Dialogue, Record, read_records
from npgpt.errors import ConfigError, DataError
from npgpt.evaluation import generation, text_overlap
from npgpt.evaluation.prompts import Prompt, make_prompts, render_for
from npgpt.evaluation.results import write_lines
from npgpt.files import file_sha256
from npgpt.generation.chat import TRANSCRIPT_STOPS
from npgpt.terminal import warn
from npgpt.training.loading import Loaded, load_model

NEW_TOKENS = 128        # where nobody says, and half the block_size is not less

UNITS = {
    "exact_match": "share, to the letter", "squad_em": "share, normalised as SQuAD does",
    "squad_f1": "F of words, normalised so", "bleu": "0 to 100, over all records",
    "chrf": "0 to 100, over all records", "rouge1": "F of words", "rouge2": "F of pairs of words",
    "rougeL": "F of longest subsequences", "rougeLsum": "the same by lines"}


def run(options: Options, console: Console) -> None:
    loaded  = load_model(options.model, options.checkpoint, options.device, warn)
    most    = _new_tokens(options, loaded.model.config.block_size)
    records = read_records(Path(options.data))[:options.limit]
    render  = render_for(records, loaded.chat_template, loaded.named_tokens, loaded.tokenizer)
    prompts = list(make_prompts(records, loaded.tokenizer, render, prefix_of(loaded), options.data))
    room    = loaded.model.config.block_size - most
    asked   = [prompt for prompt in prompts if len(prompt.tokens) <= room]
    stops   = _stops(options, loaded, records)
    if not asked:
        raise DataError(f"{options.data} has no prompt with an answer that leaves room for {most} new tokens "
                        f"in the model's block_size of {room + most}: lower max_new_tokens, or give shorter "
                        "prompts")
    with progress_bar("prompts") as progress:
        written = generation.write_on(
            loaded.model, loaded.tokenizer, [prompt.tokens for prompt in asked], most, options.num_beams,
            loaded.eos_token_ids, stops, options.batch_size, progress)
    overlap = text_overlap.compare([one.text for one in written], [prompt.references for prompt in asked],
                                   options.use_stemmer, options.seed, options.resamples)
    protocol = {
        "records": len(records), "prompts": len(asked), "too_long": len(prompts) - len(asked),
        "without_answer": len(records) - len(prompts), "unfinished": sum(not one.ended for one in written),
        "max_new_tokens": most, "num_beams": options.num_beams, "eos_token_ids": loaded.eos_token_ids,
        "stop_strings": stops, "several_references": sum(len(prompt.references) > 1 for prompt in asked),
        "signatures": overlap.signatures, "missing_packages": overlap.missing,
        **bootstrap_entries("prompts", len(asked))}
    if options.predictions is not None:
        write_lines(options.predictions, _rows(asked, written, overlap))
    write_out(options, loaded.model, {"source": options.data, "kind": "records",
                                      "sha256": file_sha256(Path(options.data))},
              overlap.numbers, overlap.intervals, protocol)
    console.print(numbers_table({name: unit for name, unit in UNITS.items() if name in overlap.numbers},
                                overlap.numbers, overlap.intervals))
    _print_protocol(protocol, console)
    print_bootstrap(options, "prompts", len(asked), console)
    if overlap.missing:
        lacking = " or ".join({"sacrebleu": "BLEU or chrF", "rouge-score": "ROUGE"}[package]
                              for package in overlap.missing)
        console.print(f"no {lacking} without {' and '.join(overlap.missing)}: pip install 'npgpt[eval]'",
                      markup=False)


def _new_tokens(options: Options, block_size: int) -> int:
    most = options.max_new_tokens or max(1, min(NEW_TOKENS, block_size // 2))
    if most >= block_size:
        raise ConfigError(f"max_new_tokens must be below the model's block_size of {block_size}, for a "
                          f"prompt to have room, not {most}")
    return most


def _stops(options: Options, loaded: Loaded, records: Sequence[Record]) -> tuple[str, ...]:
    """What ends a text, from the options; and of a transcript, the other side's turn."""
    transcript = loaded.chat_template is None and any(isinstance(record, Dialogue) for record in records)
    return (*map(unescaped, options.stop_strings), *(TRANSCRIPT_STOPS if transcript else ()))


def _print_protocol(protocol: dict, console: Console) -> None:
    how = f"the best of {protocol['num_beams']} beams" if protocol["num_beams"] > 1 else "the likeliest token"
    ends = ["the model's end" * bool(protocol["eos_token_ids"]), *map(repr, protocol["stop_strings"]),
            f"{protocol['max_new_tokens']} tokens"]
    console.print(
        f"{counted(protocol['prompts'], 'prompt')}; of each {how}, up to {', '.join(filter(None, ends))}; "
        f"{protocol['unfinished']:,} did not end before\nleft out: {protocol['too_long']:,} too long for the "
        f"model, {protocol['without_answer']:,} without an answer; white space around texts does not count",
        markup=False)
    if protocol["several_references"]:
        console.print(f"{counted(protocol['several_references'], 'prompt')} with several references: by each "
                      "number the best of them counts", markup=False)
    for name, signature in protocol["signatures"].items():
        console.print(f"{name}: {signature}", markup=False)


def _rows(prompts: Sequence[Prompt], written: Sequence[generation.Written], overlap: text_overlap.Overlap):
    for n, (prompt, one) in enumerate(zip(prompts, written, strict=True)):
        yield {"record": prompt.record, "prompt": prompt.text, "references": prompt.references,
               "written": one.text, "ended": one.ended,
               **{name: float(values[n]) for name, values in overlap.each.items()}}
