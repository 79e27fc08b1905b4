"""Reading options into a dataclass by tyro, with wrong ones told in one sentence."""

import contextlib
import dataclasses
import io
import re
from collections.abc import Sequence
from typing import Any

import docstring_parser
import tyro

from npgpt.errors import UsageError


def parse(options: Any, command: str, arguments: Sequence[str], default: Any = None) -> Any:
    """The dataclass `options` filled from `arguments`. In names `_` and `-` are the same. --help exits.

    Raises UsageError.
    """
    if {"-h", "--help"} & set(arguments):
        _tell(options)
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(options, prog=f"npgpt {command}", description=" ".join(options.__doc__.split()),
                            args=list(arguments), default=default)
    except SystemExit as leaving:
        if leaving.code in (0, None):
            raise
        raise UsageError(f"{_sentence(said.getvalue())} (npgpt {command} --help lists the options)") from None


def value_of(name: str, arguments: Sequence[str]) -> str | None:
    """What stands after --name, or after --name= in one word; the last of several, or None."""
    value = None
    for word, following in zip(arguments, [*arguments, None][1:], strict=True):
        if word == f"--{name}":
            value = following
        elif word.startswith(f"--{name}="):
            value = word.partition("=")[2]
    return value


def unescaped(text: str) -> str:
    """Of a text on a command line, where a newline is hard to write: \\n is one."""
    return text.replace("\\n", "\n")


def _tell(options: Any) -> None:
    """A field's docstring becomes its help, a paragraph that is broken where the screen ends; tyro by itself
    keeps each line break before an indented line.
    """
    told = {text.arg_name: " ".join((text.description or "").split())
            for kind in reversed(options.__mro__[:-1])
            for text in docstring_parser.parse_from_object(kind).params}
    for field in dataclasses.fields(options):
        kind = getattr(field.type, "__origin__", field.type)          # what is Annotated
        if dataclasses.is_dataclass(kind):
            _tell(kind)
        elif field.name in told:
            field.metadata = {**field.metadata, "help": told[field.name]}           # type: ignore[assignment]


def _sentence(box: str) -> str:
    """tyro frames its errors, with the sentence above a rule and the options it may have meant below."""
    lines = [line.strip("│╭╮╰╯ \n") for line in box.splitlines()]
    lines = [line for line in lines if line and not re.match(r"^─ .* ─+$", line)]
    rule  = next((n for n, line in enumerate(lines) if not line.strip("─")), len(lines))
    near  = re.search(r"Perhaps you meant:\n(--[\w-]+)", "\n".join(lines))
    return " ".join(lines[:rule]) + (f"; did you mean {near[1]}?" if near else "")
