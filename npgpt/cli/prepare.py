"""`npgpt prepare`: from text files to token shards, and what became of every document."""

import shlex
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column, Table

from npgpt.cli.arguments import parse
from npgpt.data.plans import PrepareConfig
from npgpt.data.preparation import prepare
from npgpt.errors import UsageError
from npgpt.ranges import check_range
from npgpt.workers import physical_cores


@dataclass(frozen=True)
class Options:
    """Turn text into token shards for npgpt train: read, mend, filter, remove duplicates, split, encode.
    PATHS are text files (.txt, .md, …; .jsonl with a document a line; .gz and .zst of these) and folders of
    them. Killed or interrupted, the same command goes on where it stopped."""

    paths: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="PATH [PATH ...]")]
    """Files and folders, in the order to be read; folders with their subfolders, sorted."""
    out_dir: Path
    """The folder to make, new or empty, or one that was begun with the same options."""
    workers: int | None = None
    """Processes; by default one a core. The result does not depend on them."""
    settings: tyro.conf.OmitArgPrefixes[PrepareConfig] = field(default_factory=PrepareConfig)


def run(arguments: list[str]) -> int:
    options = parse(Options, "prepare", arguments)
    if not options.paths:
        raise UsageError("give the text files or folders to prepare: npgpt prepare PATH … --out-dir DIR")
    workers = physical_cores() if options.workers is None else options.workers
    check_range("workers", workers, least=1)
    console, begun = Console(highlight=False, soft_wrap=True), time.perf_counter()
    bar = [BarColumn()] * (console.width >= 60)
    with Progress(TextColumn("{task.description:<12}"), *bar, TextColumn("{task.percentage:>3.0f} %"),
                  TextColumn("{task.fields[rate]}"), TimeRemainingColumn(), console=console,
                  disable=not console.is_terminal) as bars:
        tasks: dict[str, tuple[Any, float]] = {}

        def show(step: str, done: int, total: int) -> None:
            if step not in tasks:
                tasks[step] = bars.add_task(step, rate=""), time.perf_counter()
            task, start = tasks[step]
            rate = f"{done / 1e6 / (time.perf_counter() - start):,.1f} MB/s" if step != "merges" else ""
            bars.update(task, completed=done, total=total, rate=rate)

        manifest = prepare(options.paths, options.out_dir, options.settings, workers, show)
    _show(manifest, console)
    seconds, size = time.perf_counter() - begun, manifest["sources"]["bytes"] / 1e6
    console.print(f"{size:,.1f} MB in {seconds:,.1f} s, {size / seconds:,.2f} MB/s with {workers} "
                  f"worker{'s' * (workers != 1)}" if tasks else f"{options.out_dir} was finished before",
                  markup=False)
    console.print(f"\nnext:  npgpt train --data {shlex.quote(str(options.out_dir))}", markup=False)
    return 0


def _show(manifest: dict[str, Any], console: Console) -> None:
    rules = Table("rule", *map(_right, ("documents in", "out", "removed", "characters removed")),
                  box=box.SIMPLE_HEAD)
    rules.columns[0].overflow = "fold"
    for row in manifest["rules"]:
        came, stayed = row["documents_in"], row["documents_out"]
        rules.add_row(row["rule"], *(f"{number:,}" for number in (came, stayed, came - stayed,
                                                                  row["characters_removed"])))
    console.print(rules)
    sides = Table("", *map(_right, ("documents", "characters", "tokens", "shards")), box=box.SIMPLE_HEAD)
    sides.columns[0].overflow = "fold"
    for side, title in (("train", "training"), ("val", "validation")):
        entry = manifest[side]
        sides.add_row(title, *(f"{entry[name]:,}" for name in ("documents", "characters", "tokens")),
                      f"{len(entry['shards'])}")
    console.print(sides)
    for name, count in manifest["notes"].items():
        console.print(f"{name.replace('_', ' ')}: {count:,} document{'s' * (count != 1)}")
    if manifest["split"] != "by document":
        console.print("too few documents to hold whole ones back: the end of each is for validation")
    tokenizer = manifest["tokenizer"]
    console.print(escape(f"tokenizer: {tokenizer['kind']}, {tokenizer['vocab_size']:,} tokens"))


def _right(name: str) -> Column:
    return Column(name, justify="right", overflow="fold")
