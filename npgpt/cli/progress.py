"""The bar of commands that work through a known number of things."""

import contextlib
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


@contextlib.contextmanager
def progress_bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """On standard error, while it is a terminal; gone when the work is done. Gives a function to be told how
    many of how many are done.
    """
    console = Console(stderr=True, highlight=False)
    bars = [BarColumn()] * (console.width >= 60)
    with Progress(TextColumn("{task.description}"), *bars, MofNCompleteColumn(), TimeRemainingColumn(),
                  console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
