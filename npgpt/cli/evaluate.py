"""`npgpt evaluate`: what a model has learned, in numbers with their protocol beside them."""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from npgpt.cli.arguments import parse
from npgpt.data.examples import Examples
from npgpt.errors import ConfigError
from npgpt.evaluation import documents, language_modelling, multiple_choice
from npgpt.evaluation.bootstrap import Interval
from npgpt.evaluation.results import model_sha256, write_lines, write_result
from npgpt.terminal import warn
from npgpt.tokenizers.files import Tokenizer
from npgpt.training.loading import Loaded, load_model
from npgpt.training.runs import open_run

LONGEST = 2048          # tokens of context where nobody says: a Llama's 131,072 at once fit no memory

FEW     = 20            # units: the bootstrap's intervals are too narrow by about √(1 − 1/N)


@dataclass(frozen=True)
class Options:
    """Measure how well a GPT foretells a text (loss, perplexity, bits per byte) or finds the right ending
    (accuracy), each number with its 95 % interval by bootstrap."""

    model: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN_OR_MODEL")]
    """The folder of a run or of a model in Hugging Face's layout, the name of one on its hub, or a GGUF
    file."""
    data: str = ""
    """A text file, a folder of texts, python-docs, or a folder that npgpt prepare made (its validation
    tokens). By default a run's own validation tokens. For multiple-choice: JSONL in HellaSwag's layout."""
    task: Literal["language-modelling", "multiple-choice"] = "language-modelling"
    """What to measure."""
    context: int | None = None
    """Tokens read at once; by default the model's block_size, and at most 2048."""
    stride: int | None = None
    """By how many tokens the window slides on; by default half the context. A small one gives each token more
    to go by, and takes longer."""
    delimiter: str = " "
    """Of multiple-choice: what stands between a context and an ending."""
    limit: int | None = None
    """Score only so many tokens, or questions, the first."""
    batch_size: int | None = None
    """Windows or endings that go through the model at once; by default as many as need little memory."""
    surprisal: Path | None = None
    """Write each scored token's surprisal in bits into this file, as JSONL; of language-modelling."""
    out: Path | None = None
    """Write the result into this file, as JSON."""
    resamples: int = 1000
    """Of the bootstrap."""
    seed: int = 0
    """The same seed gives the same intervals."""
    checkpoint: str = "best"
    """Of a run: best (lowest validation loss), latest, or the number of a step."""
    device: str = "cpu"
    """cpu, cuda or cuda:N."""


def run(arguments: list[str]) -> int:
    options = parse(Options, "evaluate", arguments)
    _check(options)
    loaded  = load_model(options.model, options.checkpoint, options.device, warn)
    console = Console(highlight=False, soft_wrap=True)
    measure = _language_modelling if options.task == "language-modelling" else _multiple_choice
    measure(options, loaded, console)
    for path, what in ((options.out, "result"), (options.surprisal, "surprisals")):
        if path is not None:
            console.print(f"{what}: {path}", markup=False)
    return 0


def _check(options: Options) -> None:
    """Raises ConfigError for what would otherwise be told only after the work."""
    for name in ("context", "stride", "limit", "batch_size", "resamples"):
        if getattr(options, name) is not None and getattr(options, name) < 1:
            raise ConfigError(f"{name} must be at least 1, not {getattr(options, name)}")
    if not 0 <= options.seed < 2**64:
        raise ConfigError(f"seed must be at least 0 and below 2⁶⁴, not {options.seed}")
    if options.task == "multiple-choice":
        for name in ("stride", "surprisal"):
            if getattr(options, name) is not None:
                raise ConfigError(f"{name} is of language-modelling: leave it out with --task {options.task}")
        if not options.data:
            raise ConfigError("say by --data in which file the questions are, JSONL in HellaSwag's layout")
    for path in (options.out, options.surprisal):
        if path is not None and not path.parent.is_dir():
            raise ConfigError(f"{path} cannot be written: there is no folder {path.parent}")
        if path is not None and path.exists() and not path.is_file():
            raise ConfigError(f"{path} cannot be written: it is no regular file")
    if options.out is not None and options.surprisal is not None and \
            options.out.resolve() == options.surprisal.resolve():
        raise ConfigError(f"out and surprisal are both {options.out}: give two files")
    if not options.data and not (options.model / "config.toml").exists():
        raise ConfigError(f"{options.model} is not a run's folder, so it has no validation tokens of its "
                          "own: say by --data what to evaluate on")


def _language_modelling(options: Options, loaded: Loaded, console: Console) -> None:
    tokenizer, context, prefix = loaded.tokenizer, _context(options, loaded), _prefix(loaded)
    stride = options.stride or max(1, context // 2)
    data   = documents.read(options.data, tokenizer, options.limit) if options.data else \
        _own_documents(options.model, tokenizer)
    kept   = documents.limited(data.tokens, options.limit, prefix is not None)
    with _progress() as progress:
        task   = progress.add_task("tokens scored", total=None)
        result = language_modelling.measure(
            loaded.model, kept, documents.byte_lengths(kept, tokenizer), context, stride, prefix,
            options.batch_size, options.seed, options.resamples,
            lambda done, total: progress.update(task, completed=done, total=total))
    units, count = result.units
    protocol = {"context": context, "stride": stride, "documents": len(kept), "tokens": result.tokens,
                "bytes": result.bytes, "first_token_follows": prefix, "bootstrap_units": units,
                "bootstrap_number": count, "confidence": 0.95}
    numbers  = {name: getattr(result, name) for name in ("loss", "perplexity", "bits_per_byte")}
    if options.surprisal is not None:
        write_lines(options.surprisal, _surprisal_rows(kept, result.surprisals, tokenizer))
    _write(options, loaded, {"source": options.data or options.model / "data" / "val.bin", "kind": data.kind,
                             "sha256": data.sha256}, numbers, result.intervals, protocol)

    console.print(_table({"loss": "nats a token", "perplexity": "", "bits_per_byte": ""}, numbers,
                         result.intervals))
    first = f"follows {tokenizer.decode([prefix])}" if prefix is not None else "is not scored"
    console.print(
        f"context {context:,}, stride {stride:,}: each token has at least {context - stride:,} before it "
        f"where there are so many; the first of a document {first}\n{_counted(len(kept), 'document')}, "
        f"{_counted(result.tokens, 'token')} scored, {_counted(result.bytes, 'byte')}", markup=False)
    _print_bootstrap(options, units, count, console)


def _multiple_choice(options: Options, loaded: Loaded, console: Console) -> None:
    context = _context(options, loaded)
    data    = multiple_choice.read_questions(Path(options.data), options.limit)
    with _progress() as progress:
        task   = progress.add_task("tokens scored", total=None)
        result = multiple_choice.measure(
            loaded.model, data.questions, loaded.tokenizer, context, _prefix(loaded), options.delimiter,
            options.batch_size, options.seed, options.resamples,
            lambda done, total: progress.update(task, completed=done, total=total))
    count, endings = len(data.questions), sum(map(len, result.log_likelihoods))
    protocol = {"context": context, "delimiter": options.delimiter, "questions": count, "endings": endings,
                "tokens": result.tokens, "truncated": result.truncated, "acc_norm_per": "character",
                "acc_bytes_per": "byte", "bootstrap_units": "questions", "bootstrap_number": count,
                "confidence": 0.95}
    _write(options, loaded, {"source": options.data, "kind": "questions", "sha256": data.sha256},
           result.numbers, result.intervals, protocol)

    console.print(_table({"acc": "the likeliest ending", "acc_norm": "the likeliest per character",
                          "acc_bytes": "the likeliest per byte"}, result.numbers, result.intervals))
    console.print(f"{_counted(count, 'question')}, {_counted(endings, 'ending')} of "
                  f"{_counted(result.tokens, 'token')} in all, {options.delimiter!r} before each; context "
                  f"{context:,}, which cut the text before {_counted(result.truncated, 'ending')}\n"
                  "tokenised and normalised as lm-evaluation-harness does it", markup=False)
    _print_bootstrap(options, "questions", count, console)


def _context(options: Options, loaded: Loaded) -> int:
    block_size = loaded.model.config.block_size
    context    = options.context or min(block_size, LONGEST)
    if context > block_size:
        raise ConfigError(f"context must be at most the model's block_size of {block_size}, not {context}")
    return context


def _prefix(loaded: Loaded) -> int | None:
    """What stands before a text that has nothing before it: the end of another."""
    ends = [id for id in (loaded.tokenizer.eos_token_id, *loaded.eos_token_ids) if id is not None]
    return ends[0] if ends else None


def _print_bootstrap(options: Options, units: str, count: int, console: Console) -> None:
    console.print(f"intervals: bootstrap over {count:,} {units}, {_counted(options.resamples, 'resample')}, "
                  f"seed {options.seed}{'; of so few, they are too narrow' * (count < FEW)}" if count > 1 else
                  f"no intervals: there is but one of the {units} that a bootstrap would draw", markup=False)


def _own_documents(path: Path, tokenizer: Tokenizer) -> documents.Documents:
    val = open_run(path).val
    if isinstance(val, Examples):
        raise ConfigError(f"{path} was trained on examples: say by --data what to evaluate it on")
    return documents.read_stream(path / "data" / "val.bin", val, tokenizer)


def _surprisal_rows(tokens: list, surprisals: list, tokenizer: Tokenizer) -> Iterator[dict[str, Any]]:
    """position: of the token in its document.  text: what it decodes to alone; bytes that are not UTF-8 by
    themselves are shown as U+FFFD."""
    for n, (ids, nats) in enumerate(zip(tokens, surprisals, strict=True)):
        first = len(ids) - len(nats)
        for position, (id, s) in enumerate(zip(ids[first:].tolist(), nats.tolist(), strict=True), first):
            yield {"document": n, "position": position, "token": id, "text": tokenizer.decode([id]),
                   "bits": s / math.log(2)}


def _write(options: Options, loaded: Loaded, data: dict[str, Any], numbers: dict[str, Any],
           intervals: dict[str, Interval | None], protocol: dict[str, Any]) -> None:
    if options.out is None:
        return
    arrays = {name: parameter.data for name, parameter in loaded.model.parameters.items()}
    write_result(options.out, {
        "task": options.task, "numbers": numbers, "intervals": intervals, "protocol": protocol,
        "model": {"path": options.model, "sha256": model_sha256(arrays)},
        "data": data, "settings": asdict(options)})


def _table(units: dict[str, str], numbers: dict[str, Any], intervals: dict[str, Interval | None]) -> Table:
    table = Table("", "", "95 % interval", "", box=box.SIMPLE_HEAD)
    for column in table.columns[1:3]:
        column.justify = "right"
    for name, unit in units.items():
        number, interval = numbers[name], intervals[name]
        table.add_row(name.replace("_", " "), "–" if number is None else f"[bold]{number:,.4f}[/]",
                      "–" if interval is None else f"{interval[0]:,.4f} to {interval[1]:,.4f}", escape(unit))
    return table


def _progress() -> Progress:
    console = Console(stderr=True, highlight=False)
    return Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
                    TimeRemainingColumn(), console=console, transient=True, disable=not console.is_terminal)


def _counted(count: int, thing: str) -> str:
    return f"{count:,} {thing}{'s' * (count != 1)}"
