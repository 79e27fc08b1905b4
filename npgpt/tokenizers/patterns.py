r"""How a text is cut into pieces before BPE merges anything: no token ever reaches across two pieces.

Cutting keeps "dog", "dog." and "dog!" from becoming three unrelated tokens, and it makes BPE fast,
because the same few pieces come again and again. A pattern is chosen by name from this fixed list and
never read from a file: a hostile one could take exponential time.

Every pattern here matches every text completely: the pieces, joined, are the text.

`gpt2` (Radford et al. 2019), its alternatives tried in this order at each place in the text:

    '(?:[sdmt]|ll|ve|re)    an English ending: 's 'd 'm 't 'll 've 're, in small letters and after ' only
     ?\p{L}+                a word: letters of any script, together with one space before it
     ?\p{N}+                a number: digits and number signs, with one space before it
     ?[^\s\p{L}\p{N}]+      anything else: punctuation, symbols, emoji, combining accents, controls
    \s+(?!\S)               white space up to the end of the text; or, before something visible, all of it but
                            its last character, which if it is a space begins the next word
    \s+                     the white space that is left: a single newline or tab before a word
"""

from functools import cache
from typing import Any

import regex

from npgpt.errors import TokenizerError

SPLIT_PATTERNS = {
    "gpt2": r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
}


@cache
def split_pattern(name: str) -> Any:
    """The compiled pattern of that name; its `findall(text)` gives the pieces. Raises TokenizerError."""
    if name not in SPLIT_PATTERNS:
        known = ", ".join(SPLIT_PATTERNS)
        raise TokenizerError(f"unknown split pattern {name!r}: the known ones are {known}")
    return regex.compile(SPLIT_PATTERNS[name])
