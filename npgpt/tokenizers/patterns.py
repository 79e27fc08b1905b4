r"""How a text is cut into pieces before BPE merges anything: no token ever reaches across two pieces.

Cutting keeps "dog", "dog." and "dog!" from becoming three unrelated tokens, and it makes BPE fast,
because the same few pieces come again and again. A pattern is chosen by name from this fixed list and
never read from a file: a hostile one could take exponential time.

Every pattern here matches every text completely: the pieces, joined, are the text.

`gpt2` (Radford et al. 2019), its alternatives tried in this order at each place in the text:

     ?\p{L}+                a word: letters of any script, together with one space before it
    '(?:[sdmt]|ll|ve|re)    an English ending: 's 'd 'm 't 'll 've 're, in small letters and after ' only
     ?\p{N}+                a number: digits and number signs, with one space before it
     ?[^\s\p{L}\p{N}]+      anything else: punctuation, symbols, emoji, combining accents, controls
    \s+(?!\S)               white space up to the end of the text; or, before something visible, all of it but
                            its last character, which if it is a space begins the next word
    \s+                     the white space that is left: a single newline or tab before a word

`cl100k` (GPT-4's, published with tiktoken; Llama 3 has the same): an English ending in capitals too; a word
takes any one mark before it along, not just a space; at most three digits at a time; line breaks stay with
the punctuation or the white space before them. `qwen2`: the same with single digits. `o200k` (GPT-4o's): a
word ends where capitals begin again after small letters, and takes an English ending along. `smollm`
(SmolLM's): GPT-2's, after every digit was cut out by itself.

Long texts may be cut into stretches first. A stretch ends with a line, before a letter: there every pattern
cuts, for none takes a letter after a line break along, and a single line break is a piece (or the end of one)
whatever comes after it. Stretches of ASCII are cut by the same pattern written for ASCII, which the standard
library's `re` does twice as fast as `regex` does the other. Long texts are cut on arrays (array_split.py).
"""

import re
from collections.abc import Callable, Iterator
from functools import cache

import regex

from npgpt.errors import TokenizerError

_ENDING = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_CAPITAL = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"                             # or a letter that is neither
_SMALL   = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CL100K = (_ENDING + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
           r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")

SPLIT_PATTERNS = {
    "gpt2": r" ?\p{L}+|'(?:[sdmt]|ll|ve|re)| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    "cl100k": _CL100K,
    "llama3": _CL100K,
    "qwen2": _CL100K.replace(r"\p{N}{1,3}", r"\p{N}"),
    "o200k": (r"[^\r\n\p{L}\p{N}]?" + _CAPITAL + "*" + _SMALL + "+" + _ENDING + "?"
              r"|[^\r\n\p{L}\p{N}]?" + _CAPITAL + "+" + _SMALL + "*" + _ENDING + "?"
              r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"),
    # White space before a digit is at the end of what GPT-2's pattern sees: none of it is kept for a word.
    "smollm": r" ?\p{L}+|'(?:[sdmt]|ll|ve|re)|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?![^\s\p{N}])|\s+",
}


STRETCHES = (5000, 200)     # characters, at least: of stretches, and of those in one that is not all ASCII
# One line break between what is seen and a letter. It leads, so that `re` leaps from one to the next.
LINE_END  = re.compile(r"\n(?<=\S\n)(?=[A-Za-z])")
ASCII = {           # what is left of a class among the first 128 characters, as it stands in brackets
    r"\p{L}": "A-Za-z", r"\p{Lu}": "A-Z", r"\p{Ll}": "a-z", r"\p{Lt}": "", r"\p{Lm}": "", r"\p{Lo}": "",
    r"\p{M}": "", r"\p{N}": "0-9", r"\s": r" \t\n\r\f\v", r"\S": r"^ \t\n\r\f\v"}


@cache
def splitter(name: str) -> Callable[..., list[str]]:
    """A function from a text to its pieces, by the pattern of that name. Raises TokenizerError."""
    if name not in SPLIT_PATTERNS:
        known = ", ".join(SPLIT_PATTERNS)
        raise TokenizerError(f"unknown split pattern {name!r}: the known ones are {known}")
    any_text   = regex.compile(SPLIT_PATTERNS[name]).findall
    ascii_text = re.compile(_for_ascii(SPLIT_PATTERNS[name])).findall

    def split(text: str, sizes: tuple[int, ...] = STRETCHES) -> list[str]:
        if text.isascii():
            return ascii_text(text)
        if not sizes:
            return any_text(text)
        pieces: list[str] = []
        for stretch in stretches(text, sizes[0]):
            pieces += split(stretch, sizes[1:])
        return pieces

    return split


def stretches(text: str, size: int) -> Iterator[str]:
    """The text in parts of at least `size` characters, cut where every pattern cuts."""
    start = 0
    while start < len(text):
        cut = LINE_END.search(text, start + size)
        end = cut.end() if cut else len(text)
        yield text[start:end]
        start = end


def _for_ascii(pattern: str) -> str:
    """The pattern with its classes written out for ASCII."""
    parts, inside = [], False           # of brackets
    for part in re.findall(r"\\p\{\w+\}|\\.|.", pattern):
        inside = part == "[" or (inside and part != "]")
        part   = ASCII.get(part, part) if inside or part not in ASCII else f"[{ASCII[part]}]"
        parts.append(part)
    return "".join(parts)
