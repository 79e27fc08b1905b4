"""Documents streamed out of text files: never a whole file, let alone a corpus, in memory.

A file whose name ends in .jsonl (or .ndjson) holds a document in one field of each line; any other text file
is one document. Either may be packed, and then ends in .gz or .zst as well. Nothing is changed in a text,
except that one byte order mark at a file's start is dropped.

    longer than MAX_CHARACTERS      cut into pieces of that length, each a document from then on (the split
                                    into training and validation alone keeps them together)
    a .jsonl line over MAX_LINE     not read: rule "long_line"
    a line that is not JSON         rule "invalid_json"
    a line without the text field   rule "no_text"; a blank line is nothing
    bytes that are not UTF-8        become the lone surrogates of Python's "surrogateescape", for the rule
                                    "invalid_utf8" of cleaning.py to find
    a damaged .gz or .zst           DataError: nobody knows what is missing
"""

import codecs
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO, NamedTuple

from npgpt.data.corpora import TEXT_SUFFIXES, files_in
from npgpt.data.packed import opened, split_name
from npgpt.errors import DataError

MAX_CHARACTERS = 2_000_000
MAX_LINE = 1 << 25
"""Bytes."""
LINE_SUFFIXES = (".jsonl", ".ndjson")

READING_RULES = ("long_line", "invalid_json", "no_text")

_CHUNK = 1 << 20
_PART = 1 << 22


class Segment(NamedTuple):
    """The lines of a file that begin in bytes start to end − 1; of a file that is no .jsonl, all of it."""

    path: str
    start: int
    end: int


class Piece(NamedTuple):
    """A document, or part of one that was too long; `first` unless it goes on with the piece before it."""

    text: str
    first: bool


def find_files(paths: Iterable[Path], without: Path) -> list[Path]:
    """The text files among the paths and in the folders among them, each once, folders in sorted order.

    A folder gives every file that has one of TEXT_SUFFIXES or LINE_SUFFIXES (before .gz or .zst, if any) and
    is not hidden; links to folders are not followed; the folder `without` is passed over. Raises DataError if
    a path is not there, is neither file nor folder, or if all of them give nothing.
    """
    found: dict[str, Path] = {}
    for path in paths:
        if not path.exists():
            raise DataError(f"there is no file or folder called {str(path)!r}")
        if not path.is_dir() and not path.is_file():  # a pipe would wait, /dev/zero never end
            raise DataError(f"{path} is no regular file (a pipe, device or socket); copy its text to a file")
        if path.is_dir() and path.resolve() == without.resolve():
            raise DataError(f"{path} is the folder to write to: choose another --out-dir")
        for file in [path] if path.is_file() else files_in(path, _is_text, without.resolve()):
            found.setdefault(os.path.realpath(file), file)
    if not found:
        raise DataError(f"{' '.join(map(str, paths))} holds no text: no file has one of the suffixes "
                        f"{' '.join([*TEXT_SUFFIXES, *LINE_SUFFIXES])}")
    return list(found.values())


def cut_into_parts(files: Iterable[Path]) -> list[list[Segment]]:
    """The files in parts of about 4 MB for one worker each: small files together, long .jsonl files cut."""
    parts: list[list[Segment]] = []
    room = 0
    for path in files:
        size = path.stat().st_size
        cuts = [*range(0, max(size, 1), _PART), size] if _kind(path) == (".jsonl", "") else [0, size]
        for start, end in pairwise(cuts):
            if room <= 0:
                parts.append([])
                room = _PART
            parts[-1].append(Segment(str(path), start, end))
            room -= (end - start) * (1 if not _kind(path)[1] else 4)   # text is packed to about a quarter
    return parts


def read_segment(segment: Segment, field: str, counts: Counter[str]) -> Iterator[Piece]:
    """The documents of a segment. field: where a .jsonl line has its text.

    counts: told of every line that cannot be read, by its rule, and "byte_order_mark", "cut". Raises
    DataError if the file cannot be read.
    """
    path = Path(segment.path)
    with opened(path) as stream:
        if _kind(path)[0] == ".jsonl":
            end = segment.end if not _kind(path)[1] else None
            yield from _lines(stream, segment.start, end, field, counts)
        else:
            yield from _whole(stream, counts)


def _whole(stream: BinaryIO, counts: Counter[str]) -> Iterator[Piece]:
    decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
    text, first, more, begun = "", True, True, False
    while more:
        chunk = stream.read(_CHUNK)
        more = bool(chunk)
        text += decoder.decode(chunk, final=not more)
        if text and not begun:
            begun = True
            counts["byte_order_mark"] += text.startswith("\ufeff")
            text = text.removeprefix("\ufeff")
        while len(text) > MAX_CHARACTERS:
            yield Piece(text[:MAX_CHARACTERS], first)
            text = text[MAX_CHARACTERS:]
            counts["cut"] += first
            first = False
    yield Piece(text, first)


def _lines(stream: BinaryIO, start: int, end: int | None, field: str,
           counts: Counter[str]) -> Iterator[Piece]:
    position = start
    if start:                                        # a line belongs to the segment that it begins in
        stream.seek(start - 1)
        position += _skip_line(stream, end and end - start + 1) - 1
    while end is None or position < end:
        line = stream.readline(MAX_LINE)
        if not line:
            return
        position += len(line)
        if len(line) == MAX_LINE and not line.endswith(b"\n"):
            position += _skip_line(stream, end and end - position)
            counts["long_line"] += 1
            continue
        if position == len(line) and line.startswith(codecs.BOM_UTF8):
            line = line.removeprefix(codecs.BOM_UTF8)
            counts["byte_order_mark"] += 1
        if line.strip():
            yield from _record(line, field, counts)


def _record(line: bytes, field: str, counts: Counter[str]) -> Iterator[Piece]:
    try:
        record = json.loads(line.decode("utf-8", "surrogateescape"))
    except (ValueError, RecursionError):
        counts["invalid_json"] += 1
        return
    text = record.get(field) if isinstance(record, dict) else None
    if not isinstance(text, str):
        counts["no_text"] += 1
        return
    counts["cut"] += len(text) > MAX_CHARACTERS
    for start in range(0, max(len(text), 1), MAX_CHARACTERS):
        yield Piece(text[start:start + MAX_CHARACTERS], start == 0)


def _skip_line(stream: BinaryIO, most: int | None) -> int:
    """Passes over the rest of a line, however long; returns its bytes. Once there are `most` it is left where
    it is: else of a line that goes through many segments each would read all that follows.
    """
    skipped = 0
    while (most is None or skipped < most) and (part := stream.readline(_CHUNK)):
        skipped += len(part)
        if part.endswith(b"\n"):
            break
    return skipped


def _kind(path: Path) -> tuple[str, str]:
    """(".jsonl" or the suffix of a text, ".gz", ".zst" or "")"""
    name, packing = split_name(path)
    suffix = name.suffix.lower()
    return ".jsonl" if suffix in LINE_SUFFIXES else suffix, packing


def _is_text(name: str) -> bool:
    return _kind(Path(name))[0] in (*TEXT_SUFFIXES, *LINE_SUFFIXES)
