"""What commands say to a person: warnings, text that a model wrote, which a terminal must not obey, and an
output that may fail without stopping the work."""

import os
import sys
import unicodedata
from collections.abc import Callable
from typing import Any, TextIO


def printable(text: str) -> str:
    """The text with control characters other than newline and tab replaced by ·, so that none steers the
    terminal."""
    return "".join(c if c in "\n\t" or unicodedata.category(c) not in ("Cc", "Cf", "Cs", "Co") else "·"
                   for c in text)


def warn(text: str) -> None:
    """A sentence on standard error, where it does not mix with a command's output."""
    print(f"npgpt: warning: {text}", file=sys.stderr)


def silence(stream: TextIO) -> None:
    """What is still in the stream's buffer, and what follows, goes nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


class Steady:
    """A stream whose failing (its reader or terminal gone, the disk full) stops nothing: it is told once on
    standard error, and what follows goes nowhere."""

    def __init__(self, stream: TextIO):
        self.stream = stream

    def write(self, text: str) -> int:
        self._try(self.stream.write, text)
        return len(text)

    def flush(self) -> None:
        self._try(self.stream.flush)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def _try(self, function: Callable, *arguments: str) -> None:
        try:
            function(*arguments)
        except OSError as error:
            silence(self.stream)
            try:
                warn(f"standard output has failed ({error.strerror}): the work goes on without saying more")
            except OSError:
                silence(sys.stderr)
