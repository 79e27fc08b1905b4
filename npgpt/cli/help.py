"""What --help shows: a command's options in sections, each with its text and what it is by default.

A comment on a line of its own between the fields of a dataclass begins a section, as readers of the code see
them: `# Data`, or `# Duplicates: the first document stays`, whose end stands below the title. What comes
before the first has none.
"""

import dataclasses
import inspect
import re
import shutil
import textwrap
from collections import defaultdict
from collections.abc import Iterator
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import docstring_parser
import tyro

ENTRY = re.compile(r" {4}(?:# (?P<section>.+)|(?P<field>\w+): )")


def show_help(options: Any, command: str, default: Any = None) -> None:
    """Prints what the dataclass `options` has to choose, and exits. default: one whose values are shown."""
    sections: dict[str, list[Any]] = defaultdict(list)
    for section, *field in _fields(options, default):
        sections[section].append(field)
    fields = sections.pop("", [])
    for section, own in sections.items():
        title, _, more = section.partition(": ")
        told = {"__doc__": f"{more[:1].upper()}{more[1:]}." if more else ""}
        kind = dataclasses.make_dataclass("Section", own, namespace=told, kw_only=True)
        fields.append([title.lower().replace(" ", "_"), kind])
    print(textwrap.fill(" ".join(options.__doc__.split()), shutil.get_terminal_size().columns), end="\n\n")
    tyro.cli(dataclasses.make_dataclass("Options", fields, kw_only=True), prog=f"npgpt {command}",
             description="", args=["--help"], config=(tyro.conf.OmitArgPrefixes,))


def _fields(options: Any, default: Any) -> Iterator[tuple[str, str, Any, Any]]:
    """The section of every option, its name, its type with all that is to be said of it, and its default."""
    texts: dict[str, str] = {}                     # of a field that a subclass changes, the last
    sections: dict[str, str] = {}                  # and the first
    for kind in reversed(options.__mro__[:-1]):
        texts |= {text.arg_name: " ".join((text.description or "").split())
                  for text in docstring_parser.parse_from_object(kind).params}
        section = ""
        for entry in filter(None, map(ENTRY.match, inspect.getsource(kind).splitlines())):
            section = entry["section"] or section
            if entry["field"]:
                sections.setdefault(entry["field"], section)
    for field in dataclasses.fields(options):
        kind  = getattr(field.type, "__origin__", field.type)                    # what is Annotated
        value = getattr(default, field.name, field.default)
        if dataclasses.is_dataclass(kind):
            yield from _fields(kind, value)
        else:
            told = tyro.conf.arg(help=texts[field.name], metavar=_values(field.type),
                                 help_behavior_hint=_hint)
            yield (sections[field.name], field.name, Annotated[field.type, told],
                   dataclasses.field(default=value))


def _values(kind: Any) -> str | None:
    """What may be given where None may be, too, which nobody needs to give; elsewhere tyro knows."""
    if get_origin(kind) not in (UnionType, Union):
        return None
    one, = (one for one in get_args(kind) if one is not NoneType)
    choices = (True, False) if one is bool else get_args(one) if get_origin(one) is Literal else ()
    return f"{{{','.join(map(str, choices))}}}" if choices else one.__name__.upper()


def _hint(default: str) -> str:
    """The text says what None and nothing at all come to."""
    return "" if default in ("None", "''", "") else f"(default: {default})"
