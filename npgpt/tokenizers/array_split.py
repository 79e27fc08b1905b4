r"""GPT-2's split pattern (patterns.py) on arrays: where the pieces of a text begin, all at once, ten times as
fast as a regular expression finds them one by one.

A character is a letter, a number, white space or none of these: \p{L}, \p{N}, \s or the rest. A piece begins

    where the kind of character changes; but what is visible goes with a ' ' right before it
    at the last character of white space before something visible
    where an ending, 's 'd 'm 't 'll 've 're, is over; it goes with its apostrophe, if that begins a piece
"""

import numpy as np
import regex

LETTER, NUMBER, SPACE, OTHER = range(4)
KINDS = (regex.compile(r"\p{L}"), regex.compile(r"\p{N}"), regex.compile(r"\s"))
BLANK, APOSTROPHE = map(ord, " '")


def piece_starts(text: str) -> np.ndarray:
    """The place in the text, of at least one character, where each piece begins: (pieces,)"""
    points  = code_points(text)
    kinds   = _kinds(points)
    space   = kinds == SPACE
    starts  = np.ones(len(points), bool)
    np.not_equal(kinds[1:], kinds[:-1], out=starts[1:])
    starts[:-1] |= space[:-1] & ~space[1:]
    starts[1:]  &= space[1:] | (points[:-1] != BLANK)
    quotes  = np.flatnonzero((points[:-1] == APOSTROPHE) & starts[:-1] & (kinds[1:] == LETTER))
    after   = np.concatenate([points, np.zeros(2, points.dtype)])             # so that two may be asked for
    one     = np.isin(after[quotes + 1], [*b"sdmt"])
    two     = np.isin(after[quotes + 1].astype(np.int64) << 8 | after[quotes + 2],
                      [first << 8 | second for first, second in (b"ll", b"ve", b"re")])
    starts[quotes[one | two] + 1] = False
    ends    = np.concatenate([quotes[one] + 2, quotes[two] + 3])
    starts[ends[ends < len(points)]] = True
    return np.flatnonzero(starts)


def code_points(text: str) -> np.ndarray:
    """uint8 if all are ASCII, else uint32: (n,)"""
    return np.frombuffer(text.encode(), np.uint8) if text.isascii() else \
        np.frombuffer(text.encode("utf-32-le"), np.uint32)


def _kinds(points: np.ndarray) -> np.ndarray:
    if points.dtype == np.uint8:
        return ASCII[points]
    strange = points >= len(ASCII)
    kinds   = ASCII[np.where(strange, 0, points)]
    those, which = np.unique(points[strange], return_inverse=True)
    kinds[strange] = np.array([_kind(chr(point)) for point in those.tolist()], np.uint8)[which]
    return kinds


def _kind(character: str) -> int:
    return next((kind for kind, pattern in enumerate(KINDS) if pattern.match(character)), OTHER)


ASCII = np.array([_kind(chr(point)) for point in range(128)], np.uint8)
