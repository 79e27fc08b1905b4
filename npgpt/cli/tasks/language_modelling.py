"""Language modelling: npgpt/evaluation/language_modelling.py on texts, and on the answers of records."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from npgpt.cli.progress import progress_bar
from npgpt.cli.tasks.options import Options
from npgpt.cli.tasks.report import (
    bootstrap_entries,
    context_of,
    counted,
    numbers_table,
    prefix_of,
    print_bootstrap,
    write_out,
)
from npgpt.data.examples import Examples, encode_records
from npgpt.data.records import FILES, Dialogue, Pair, Record, read_records, texts_of
from npgpt.errors import ConfigError
from npgpt.evaluation import documents, language_modelling
from npgpt.evaluation.answers import answers_of
from npgpt.evaluation.answers import measure as measure_answers
from npgpt.evaluation.prompts import render_for
from npgpt.evaluation.results import write_lines
from npgpt.files import file_sha256
from npgpt.terminal import warn
from npgpt.tokenizers.files import Tokenizer
from npgpt.training.loading import Loaded, load_model
from npgpt.training.runs import open_run

UNITS = {"loss": "nats a token", "perplexity": "", "bits_per_byte": ""}


def run(options: Options, console: Console) -> None:
    loaded  = load_model(options.model, options.checkpoint, options.device, warn)
    records = read_records(Path(options.data)) if options.data.endswith(FILES) else []
    if any(isinstance(record, Pair | Dialogue) for record in records):
        _answers(options, loaded, records, console)
    else:
        _texts(options, loaded, list(texts_of(records)), console)


def _texts(options: Options, loaded: Loaded, records: Sequence[str], console: Console) -> None:
    """records: the texts of a file of records, or none where --data is something else."""
    tokenizer, context, prefix = loaded.tokenizer, context_of(options, loaded), prefix_of(loaded)
    stride = options.stride or max(1, context // 2)
    if records:
        data = documents.read_texts(records, tokenizer, options.limit)
    elif options.data:
        data = documents.read(options.data, tokenizer, options.limit)
    else:
        data = _own_documents(Path(options.model), loaded)
    kept   = documents.limited(data.tokens, options.limit, prefix is not None)
    with progress_bar("tokens scored") as progress:
        result = language_modelling.measure(
            loaded.model, kept, documents.byte_lengths(kept, tokenizer), context, stride, prefix,
            options.batch_size, options.seed, options.resamples, progress)
    units, count = result.units
    protocol = {"context": context, "stride": stride, "documents": len(kept), "tokens": result.tokens,
                "bytes": result.bytes, "first_token_follows": prefix,
                **bootstrap_entries(units, count)}
    numbers  = {name: getattr(result, name) for name in UNITS}
    if options.surprisal is not None:
        write_lines(options.surprisal, _surprisal_rows(
            kept, [np.arange(len(ids)) >= len(ids) - len(nats) for ids, nats in
                   zip(kept, result.surprisals, strict=True)], result.surprisals, tokenizer))
    write_out(options, loaded.model, {"source": options.data or Path(options.model) / "data" / "val.bin",
                                      "kind": data.kind, "sha256": data.sha256},
              numbers, result.intervals, protocol)

    console.print(numbers_table(UNITS, numbers, result.intervals))
    first = f"follows {tokenizer.decode([prefix])}" if prefix is not None else "is not scored"
    console.print(
        f"context {context:,}, stride {stride:,}: each token has at least {context - stride:,} before it "
        f"where there are so many; the first of a document {first}\n{counted(len(kept), 'document')}, "
        f"{counted(result.tokens, 'token')} scored, {counted(result.bytes, 'byte')}", markup=False)
    print_bootstrap(options, units, count, console)


def _answers(options: Options, loaded: Loaded, records: Sequence[Record], console: Console) -> None:
    if options.stride is not None:
        raise ConfigError("stride is of texts: leave it out with prompts and answers, which are read whole")
    tokenizer, context = loaded.tokenizer, context_of(options, loaded)
    end    = next(iter(loaded.eos_token_ids), None)
    render = render_for(records, loaded.chat_template, loaded.named_tokens, loaded.tokenizer)
    examples, left_out = encode_records(records, tokenizer, context, loaded.eos_token_ids, render)
    answers = answers_of(examples, options.limit)
    with progress_bar("tokens scored") as progress:
        result = measure_answers(loaded.model, answers, documents.byte_lengths(answers.tokens, tokenizer),
                                 options.batch_size, options.seed, options.resamples, progress)
    count    = len(answers.tokens)
    protocol = {"context": context, "scored": "answers", "records": count, "tokens": result.tokens,
                "bytes": result.bytes, "masked_ratio": answers.masked_ratio, "end": end,
                "left_out": dict(left_out), **bootstrap_entries("records", count)}
    numbers  = {name: getattr(result, name) for name in UNITS}
    if options.surprisal is not None:
        write_lines(options.surprisal, _surprisal_rows(answers.tokens, answers.counted, result.surprisals,
                                                       tokenizer))
    write_out(options, loaded.model, {"source": options.data, "kind": "records",
                                      "sha256": file_sha256(Path(options.data))},
              numbers, result.intervals, protocol)

    console.print(numbers_table(UNITS, numbers, result.intervals))
    console.print(
        f"only answers are scored, and the {tokenizer.decode([] if end is None else [end])} that ends them: "
        f"{counted(count, 'record')}, {counted(result.tokens, 'token')}, {counted(result.bytes, 'byte')}\n"
        f"masked ratio {answers.masked_ratio:.4f}: the share of tokens that only stand before; context "
        f"{context:,}", markup=False)
    for reason, number in left_out.items():
        console.print(f"left out: {counted(number, 'record')} {reason}", markup=False)
    print_bootstrap(options, "records", count, console)


def _own_documents(path: Path, loaded: Loaded) -> documents.Documents:
    val = open_run(path).val
    if isinstance(val, Examples):
        raise ConfigError(f"{path} was trained on examples: say by --data what to evaluate it on")
    return documents.read_stream(path / "data" / "val.bin", val, loaded.tokenizer, loaded.eos_token_ids)


def _surprisal_rows(tokens: Sequence[np.ndarray], scored: Sequence[np.ndarray],
                    surprisals: Sequence[np.ndarray], tokenizer: Tokenizer) -> Iterator[dict[str, Any]]:
    """position: of the token in its document.  text: what it decodes to alone; bytes that are not UTF-8 by
    themselves are shown as U+FFFD."""
    for n, (ids, counts, nats) in enumerate(zip(tokens, scored, surprisals, strict=True)):
        for position, s in zip(np.flatnonzero(counts).tolist(), nats.tolist(), strict=True):
            id = int(ids[position])
            yield {"document": n, "position": position, "token": id, "text": tokenizer.decode([id]),
                   "bits": s / math.log(2)}
