"""Classification: the classes that a classifier gives the texts of a file, beside their labels."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from npgpt.cli.progress import progress_bar
from npgpt.cli.tasks.options import Options
from npgpt.cli.tasks.report import bootstrap_entries, counted, numbers_table, print_bootstrap, write_out
from npgpt.data.records import Labelled, Record, read_records
from npgpt.errors import DataError
from npgpt.evaluation import classification
from npgpt.evaluation.results import write_lines
from npgpt.files import file_sha256
from npgpt.terminal import printable, warn
from npgpt.tokenizers.files import Tokenizer
from npgpt.training.loading import load_classifier

MOST_SHOWN = 20         # classes of a confusion matrix on the screen
WIDE       = 1000       # characters, more than a table of so many classes has

UNITS = {"accuracy": "share given their own class"} | {
    f"{name}_{average}": what for average, what in (
        ("macro", "mean over the classes"), ("weighted", "the same by their texts"),
        ("micro", "the accuracy once more")) for name in classification.SCORES}


def run(options: Options, console: Console) -> None:
    model, tokenizer = load_classifier(options.model, options.checkpoint, options.device, warn)
    records = read_records(Path(options.data))[:options.limit]
    labels  = _numbers_of_labels(records, model.labels, options.data)
    texts, truncated = _encoded(records, tokenizer, model.config.block_size, options.data)
    with progress_bar("texts") as progress:
        p = classification.probabilities(model, texts, options.batch_size, progress)     # (N, K)
    predicted = p.argmax(-1)
    result    = classification.measure(labels, predicted, len(model.labels), options.seed, options.resamples)
    protocol  = {"texts": len(texts), "truncated": truncated, "context": model.config.block_size,
                 "zero_division": 0, "macro_over": "the classes that occur or were given",
                 **bootstrap_entries("texts", len(texts))}
    if options.predictions is not None:
        write_lines(options.predictions, _rows(records, predicted, p, model.labels))
    write_out(options, model, {"source": options.data, "kind": "records",
                               "sha256": file_sha256(Path(options.data))},
              result.numbers, result.intervals, protocol, labels=model.labels,
              classes=[{"label": label, **{name: values[n].item() for name, values in result.classes.items()}}
                       for n, label in enumerate(model.labels)],
              confusion=result.confusion.tolist())

    console.print(numbers_table(UNITS, result.numbers, result.intervals))
    _print_wide(_classes(result, model.labels), console)
    if len(model.labels) <= MOST_SHOWN:
        _print_wide(_confusion(result.confusion, model.labels), console)
    else:
        console.print(f"the confusion matrix of {len(model.labels):,} classes is in the result file (--out), "
                      "not here", markup=False)
    console.print(
        f"{counted(len(texts), 'text')}, {truncated:,} of them longer than the model's "
        f"{model.config.block_size:,} tokens: of these it read the first so many\nthe macro mean is over the "
        "classes that occur or were given; what would be 0/0 is 0", markup=False)
    print_bootstrap(options, "texts", len(texts), console)


def _numbers_of_labels(records: Sequence[Record], known: Sequence[str], source: str) -> np.ndarray:
    """The labels' places among those that the model knows: (N,)"""
    numbers = {label: n for n, label in enumerate(known)}
    labels  = [record.label for record in records if isinstance(record, Labelled)]
    if len(labels) < len(records):
        raise DataError(f"{source} has records without a label: give each a text and a label")
    if unknown := sorted(set(labels) - numbers.keys()):
        raise DataError(f"{source} has {'labels' if unknown[1:] else 'the label'} {_listed(unknown)}, which "
                        f"the model does not know: it knows {_listed(known)}")
    return np.array([numbers[label] for label in labels])


def _encoded(records: Sequence[Record], tokenizer: Tokenizer, block_size: int,
             source: str) -> tuple[list[list[int]], int]:
    """The first block_size tokens of each text, and how many texts have more."""
    texts = [tokenizer.encode_ordinary(record.text) for record in records if isinstance(record, Labelled)]
    if not all(texts):
        raise DataError(f"record {texts.index([]) + 1} of {source} has an empty text: leave it out")
    every = [[*tokenizer.prefix, *ids] for ids in texts]
    return [ids[:block_size] for ids in every], sum(len(ids) > block_size for ids in every)


def _rows(records: Sequence[Record], predicted: np.ndarray, p: np.ndarray,
          labels: Sequence[str]) -> Iterator[dict[str, Any]]:
    for record, number, own in zip(records, predicted.tolist(), p.tolist(), strict=True):
        yield {**record._asdict(), "predicted": labels[number],
               "probabilities": dict(zip(labels, own, strict=True))}


def _classes(result: classification.Classification, labels: Sequence[str]) -> Table:
    table = Table("class", *classification.SCORES, "texts", box=box.SIMPLE_HEAD)
    for column in table.columns[1:]:
        column.justify = "right"
    for n, label in enumerate(labels):
        table.add_row(_short(label), *(f"{result.classes[name][n]:.4f}" for name in classification.SCORES),
                      f"{result.classes['support'][n]:,}")
    return table


def _confusion(matrix: np.ndarray, labels: Sequence[str]) -> Table:
    """A row for each class of the texts; the columns are those they were given, in the same order."""
    names = labels if sum(map(len, labels)) <= 60 else [str(n) for n in range(1, len(labels) + 1)]
    table = Table("own ↓  given →", *map(_short, names), box=box.SIMPLE_HEAD, padding=0)
    for column in table.columns[1:]:
        column.justify = "right"
    for n, (label, row) in enumerate(zip(labels, matrix.tolist(), strict=True)):
        cells = [f"[bold]{count:,}[/]" if m == n else f"{count:,}" if count else "·"
                 for m, count in enumerate(row)]
        table.add_row(_short(label) if names is labels else f"{n + 1} {_short(label)}", *cells)
    return table


def _print_wide(table: Table, console: Console) -> None:
    """Whole, though it be wider than the screen: columns that are cut off could be any class's."""
    Console(file=console.file, width=WIDE, highlight=False).print(table)


def _listed(labels: Sequence[str]) -> str:
    return ", ".join(map(repr, labels[:10])) + (f" and {len(labels) - 10:,} more" if labels[10:] else "")


def _short(label: str) -> str:
    text = printable(label).replace("\n", "·")
    return escape(text if len(text) <= 24 else text[:23] + "…")
