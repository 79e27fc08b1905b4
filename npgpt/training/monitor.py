"""What a run says while it goes on: a live line on a terminal, plain lines elsewhere, and metrics.jsonl for
machines."""

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from npgpt.errors import TrainingError
from npgpt.files import atomic_write
from npgpt.terminal import printable


class Monitor:
    """`with Monitor(run, total) as monitor:`. Everything it is told it prints; `log` and `evaluation` it also
    records.

    run: the run's folder; metrics.jsonl in it is appended to.  total: updates of the whole run.
    """

    def __init__(self, run: Path, total: int, console: Console | None = None):
        self.console = console or Console(highlight=False, soft_wrap=True)
        self.metrics = run / "metrics.jsonl"
        self.total = total
        self.done = 0                                                         # the last step that was
        self.live = self.console.is_terminal
        self.shown = {"train": "–", "val": "–", "rate": "–", "lr": "–", "norm": "–"}
        width = self.console.width                                            # all numbers need 80
        val   = "val [bold]{task.fields[val]}[/] " * (width >= 50)
        more  = "{task.fields[rate]} tok/s lr {task.fields[lr]} |g| {task.fields[norm]} " * (width >= 80)
        self.progress = Progress(
            TextColumn("[bold]{task.completed}/{task.total}"),
            *[BarColumn(bar_width=20)] * (width >= 100),
            TextColumn(f"loss [bold]{{task.fields[train]}}[/] {val}[dim]{more}left[/]"),
            TimeRemainingColumn(), console=self.console, disable=not self.live)
        self.task = self.progress.add_task("", total=total, **self.shown)     # type: ignore[arg-type]

    def __enter__(self) -> Self:
        self.progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 traceback: TracebackType | None) -> None:
        self.progress.stop()

    def rewind(self, step: int, evaluated: bool) -> None:
        """Drops from metrics.jsonl what a run that goes on at `step` does again: what was recorded after it,
        and its evaluation, unless it was saved `evaluated`."""
        if self.metrics.exists():
            kept = [line for line in self.metrics.read_bytes().splitlines()
                    if _place(line) <= (step, evaluated)]
            with atomic_write(self.metrics) as file:
                file.writelines(line + b"\n" for line in kept)
        self.progress.reset(self.task, completed=step)

    def note(self, text: str) -> None:
        """Something worth a line."""
        self.console.print(escape(text))

    def warn(self, text: str) -> None:
        """Something that must not be missed."""
        self.console.print(f"[bold red]warning:[/] {escape(text)}")

    def advance(self, step: int) -> None:
        """`step` updates are done."""
        self.done = step
        self.progress.update(self.task, completed=step)

    def log(self, record: dict[str, Any]) -> None:
        """A logged update: step, tokens, seconds, train_loss, learning_rate, grad_norm, tokens_per_second."""
        self._record(record)
        self.shown |= {"train": f"{record['train_loss']:.3f}", "rate": f"{record['tokens_per_second']:,.0f}",
                       "lr": f"{record['learning_rate']:.1e}", "norm": f"{record['grad_norm']:.2f}"}
        self.progress.update(self.task, **self.shown)                         # type: ignore[arg-type]
        if not self.live:
            self.note(f"step {record['step']:>6}/{self.total}  loss {record['train_loss']:.4f}  "
                      f"lr {record['learning_rate']:.2e}  |g| {record['grad_norm']:.2f}  "
                      f"{record['tokens_per_second']:,.0f} tokens/s  left {self._left(record)}")

    def evaluation(self, record: dict[str, Any], best: bool) -> None:
        """An evaluation: step, tokens, seconds, val_loss."""
        self._record(record)
        self.shown |= {"val": f"{record['val_loss']:.3f}"}
        self.progress.update(self.task, **self.shown)                         # type: ignore[arg-type]
        self.console.print(f"step {record['step']:>6}/{self.total}  [bold]validation loss "
                           f"{record['val_loss']:.4f}[/]{'  best so far' if best else ''}")

    def sample(self, prompt: str, text: str) -> None:
        """What the model writes at this stage after a prompt."""
        self.console.print(show_sample(prompt, text, "    | "))

    def _record(self, record: dict[str, Any]) -> None:
        try:
            with self.metrics.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
        except OSError as error:
            raise TrainingError(f"cannot write {self.metrics}: {error.strerror}") from error

    def _left(self, record: dict[str, Any]) -> str:
        seconds = record["seconds"] / max(record["step"], 1) * (self.total - record["step"])
        if seconds >= 86400:
            return f"{seconds / 86400:.1f} days"
        return time.strftime("%H:%M:%S", time.gmtime(seconds))


class Silence:
    """A monitor that says and records nothing: that of all ranks but the first."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *anything: None


def show_sample(prompt: str, text: str, margin: str = "") -> str:
    """Prompt and continuation as markup for the console, each line after a margin."""
    markup = f"[dim]{escape(printable(prompt))}[/][bold]{escape(printable(text))}[/]"
    return margin + markup.replace("\n", "\n" + margin)


def _place(line: bytes) -> tuple[float, bool]:
    """Step of a line of metrics.jsonl, and whether it is its evaluation; infinite for one that is damaged."""
    try:
        record = json.loads(line)
        return float(record["step"]), "val_loss" in record
    except (ValueError, LookupError, TypeError, OverflowError, RecursionError):
        return math.inf, True
