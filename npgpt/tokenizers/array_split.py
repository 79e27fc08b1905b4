r"""The split patterns (patterns.py) on arrays: where the pieces of a text begin, all at once, many times as
fast as a regular expression finds them one by one.

A text is seen as runs of characters of one kind: letters, numbers, white space, and marks, which are none of
these. A piece begins where a run does; and before something visible at the last character of white space.
But, for

    gpt2, smollm        what is visible goes with a ' ' right before it
                        (smollm: not a number, and white space before a number is one piece)
    the others          letters go with one character right before them that is a mark or a blank, but
                        not a line break
                        marks go with a ' ' right before them
                        line breaks, a kind of their own, go with the marks or the white space before them
    o200k               capitals are a kind of their own; other letters go with those before them
                        '/' goes with line breaks that go with marks

Numbers are cut after so many digits. An ending, 's 'd 'm 't 'll 've 're, is a piece of its own, if its
apostrophe begins one; for o200k it goes with the word before it.
"""

import functools

import numpy as np
import regex

from npgpt.tokenizers.patterns import splitter, stretches

LETTER, CAPITAL, NUMBER, MARK, SPACE, BREAK, CASELESS, ACCENT = range(8)      # below SPACE: visible
CLASSES = (                 # of each kind; a character is of the first that matches it
    (LETTER, r"\p{Ll}"), (CAPITAL, r"[\p{Lu}\p{Lt}]"), (CASELESS, r"\p{L}"), (ACCENT, r"\p{M}"),
    (NUMBER, r"\p{N}"), (BREAK, r"[\r\n]"), (SPACE, r"\s"), (MARK, r"(?s:.)"))
MATCHES = [(kind, regex.compile(pattern).match) for kind, pattern in CLASSES]
BLANK, APOSTROPHE, SLASH, LONG_S = map(ord, " '/ſ")
DIGITS = {"gpt2": 0, "smollm": 1, "qwen2": 1, "cl100k": 3, "llama3": 3, "o200k": 3}    # at a time; 0: all
RARE_STRETCH = 20_000       # characters, at least, that are cut together where o200k finds rare words
ONE    = np.array([[letter] for letter in b"sdmt"])
TWO    = np.array([[first << 32 | second] for first, second in (b"ll", b"ve", b"re")])     # each a row
ALL              = np.arange(8, dtype=np.uint8)
SEEN_PLAINLY     = np.array([LETTER, LETTER, NUMBER, MARK, SPACE, SPACE, LETTER, MARK], np.uint8)
SEEN_WITH_BREAKS = np.array([LETTER, LETTER, NUMBER, MARK, SPACE, BREAK, LETTER, MARK], np.uint8)
SEEN_BY_CASE     = np.array([LETTER, CAPITAL, NUMBER, MARK, SPACE, BREAK, LETTER, LETTER], np.uint8)
"""What a pattern takes each kind for, in their order."""


def piece_starts(text: str, pattern: str) -> np.ndarray:
    """The place in the text, of at least one character, where each piece begins: (pieces,)"""
    points = code_points(text)
    if pattern == "o200k" and not text.isascii() and _has_rare_words(kinds_of(points)):
        return _cut_in_stretches(text)
    if pattern in ("gpt2", "smollm"):
        kinds  = kinds_of(points, SEEN_PLAINLY)
        starts = _starts_with_blanks(points, kinds, pattern == "smollm")
    else:
        kinds  = kinds_of(points, SEEN_BY_CASE if pattern == "o200k" else SEEN_WITH_BREAKS)
        if pattern == "o200k":
            _let_slashes_be_breaks(points, kinds)
        starts = _starts_with_marks(points, kinds)
    _cut_numbers(kinds, DIGITS[pattern], starts)
    _cut_endings(points, kinds, pattern, starts)
    return np.flatnonzero(starts)


def _starts_with_blanks(points: np.ndarray, kinds: np.ndarray, numbers_alone: bool) -> np.ndarray:
    """Where a piece begins, if what is visible goes with a ' ' before it: bool, as all below, (n,)"""
    space   = kinds == SPACE
    joins   = kinds < SPACE                                    # white space before it is not one piece
    if numbers_alone:
        joins &= kinds != NUMBER
    starts  = _changes(kinds)
    starts[:-1] |= space[:-1] & joins[1:]
    starts[1:]  &= ~joins[1:] | (points[:-1] != BLANK)
    return starts


def _starts_with_marks(points: np.ndarray, kinds: np.ndarray) -> np.ndarray:
    """Where a piece begins, if letters go with a mark before them and line breaks with marks."""
    mark, space, breaks = (kinds == kind for kind in (MARK, SPACE, BREAK))
    changes = _changes(kinds)
    starts  = changes.copy()
    starts[:-1] |= space[:-1] & (kinds < SPACE)[1:]
    starts[1:]  &= ~(mark[1:] & (points[:-1] == BLANK) | breaks[1:] & (mark | space)[:-1])
    takes   = space | mark & starts                            # letters after it
    starts[1:] &= ~((kinds <= CAPITAL)[1:] & (takes[:-1] | (kinds == LETTER)[1:] & (kinds == CAPITAL)[:-1]))

    # Blanks between line breaks go with them, unless the first of these went with a mark
    ends = np.flatnonzero(space[:-1] & breaks[1:])
    if ends.size:
        runs   = np.flatnonzero(changes)
        blanks = np.searchsorted(runs, ends, "right") - 1      # which runs these are
        blanks = blanks[blanks > 0]
        before = runs[blanks - 1]                              # where the run before them begins
        starts[runs[blanks[breaks[before] & ((before == 0) | ~mark[before - 1])]]] = False
    return starts


def _changes(kinds: np.ndarray) -> np.ndarray:
    changes = np.ones(len(kinds), bool)
    np.not_equal(kinds[1:], kinds[:-1], out=changes[1:])
    return changes


def _cut_numbers(kinds: np.ndarray, digits: int, starts: np.ndarray) -> None:
    number = kinds == NUMBER
    if digits == 1:
        starts |= number
    elif digits:
        edges  = np.flatnonzero(np.diff(number, prepend=False, append=False)).reshape(-1, 2)
        begins = edges[:, 0]
        cuts   = (edges[:, 1] - begins - 1) // digits          # how many, in each
        which  = np.arange(cuts.sum()) - np.repeat(np.cumsum(cuts) - cuts, cuts) + 1
        starts[np.repeat(begins, cuts) + which * digits] = True


def _cut_endings(points: np.ndarray, kinds: np.ndarray, pattern: str, starts: np.ndarray) -> None:
    letter = kinds <= CAPITAL
    quotes = np.flatnonzero((points[:-1] == APOSTROPHE) & starts[:-1] & letter[1:])
    if pattern == "o200k":
        quotes = quotes[letter[quotes - 1] & (quotes > 0)]     # that end a word
    first  = points[quotes + 1].astype(np.int64)
    second = np.append(points, points.dtype.type(0))[quotes + 2]
    if pattern not in ("gpt2", "smollm"):                      # in capitals too
        first, second = (np.where(point == LONG_S, ord("s"), point | 32) for point in (first, second))
    one    = (first == ONE).any(0)
    two    = ((first << 32 | second) == TWO).any(0)
    ends   = quotes + 2 + two
    quotes, ends, two = quotes[one | two], ends[one | two], two[one | two]
    if pattern == "o200k" and quotes.size:
        # After a word that is an ending, another is none: of those that follow each other, every second one
        follows = np.append(False, quotes[1:] == ends[:-1])
        place   = np.arange(len(quotes))
        even    = (place - np.maximum.accumulate(np.where(follows, 0, place))) % 2 == 0
        quotes, ends, two = quotes[even], ends[even], two[even]
        starts[quotes] = False
    starts[quotes + 1] = False
    starts[quotes[two] + 2] = False
    starts[ends[ends < len(points)]] = True


def code_points(text: str) -> np.ndarray:
    """uint8 if all are ASCII, else uint32: (n,)"""
    return np.frombuffer(text.encode(), np.uint8) if text.isascii() else \
        np.frombuffer(text.encode("utf-32-le"), np.uint32)


def kinds_of(points: np.ndarray, seen_as: np.ndarray = ALL) -> np.ndarray:
    """points: as code_points gives them, (n,).  seen_as: what each kind is taken for  →  uint8 (n,)"""
    known = seen_as[ASCII]
    if points.dtype == np.uint8:
        return known.take(points)
    strange = points >= len(ASCII)
    kinds   = known.take(np.where(strange, 0, points))
    those, which = np.unique(points[strange], return_inverse=True)
    kinds[strange] = seen_as[[_kind(chr(point)) for point in those.tolist()]][which]
    return kinds


@functools.cache
def _kind(character: str) -> int:
    return next(kind for kind, match in MATCHES if match(character))


ASCII = np.array([_kind(chr(point)) for point in range(128)], np.uint8)


# o200k

def _has_rare_words(kinds: np.ndarray) -> bool:
    """Accents without a letter, or a capital after a letter that is neither: where o200k's words end then is
    not told by the characters around the place.
    """
    accent   = kinds == ACCENT
    if not accent.any() and not (kinds == CASELESS).any():
        return False
    word     = (kinds <= CAPITAL) | (kinds >= CASELESS)
    caseless = kinds >= CASELESS
    return bool((accent[1:] & ~word[:-1]).any() or (caseless[:-1] & (kinds[1:] == CAPITAL)).any())


def _cut_in_stretches(text: str) -> np.ndarray:
    parts, start = [], 0
    for stretch in stretches(text, RARE_STRETCH):
        if _has_rare_words(kinds_of(code_points(stretch))):
            lengths = np.array(list(map(len, splitter("o200k")(stretch))))
            parts.append(start + np.cumsum(lengths) - lengths)
        else:
            parts.append(start + piece_starts(stretch, "o200k"))
        start += len(stretch)
    return np.concatenate(parts)


def _let_slashes_be_breaks(points: np.ndarray, kinds: np.ndarray) -> None:
    """Those right after line breaks that go with marks, and so do these."""
    slash  = points == SLASH
    begins = np.flatnonzero(slash[1:] & (kinds == BREAK)[:-1]) + 1
    if begins.size:
        runs   = np.flatnonzero(_changes(kinds))
        before = runs[np.searchsorted(runs, begins) - 1]       # where the line breaks begin
        begins = begins[(before > 0) & (kinds == MARK)[before - 1]]
        others = np.append(np.flatnonzero(~slash), len(points))
        edges  = np.zeros(len(points) + 1, np.int8)
        edges[begins] = 1
        edges[others[np.searchsorted(others, begins)]] = -1
        kinds[np.cumsum(edges[:-1], dtype=np.int8) > 0] = BREAK
