"""Tokens written so that they can be told apart: spaces and line ends visible, half characters as bytes.

    " the" → ·the      "\\n" → ↵      the first two bytes of 😀 → ‹F0 9F›      a zero-width space → ‹U+200B›
"""

import unicodedata
from collections.abc import Sequence

VISIBLE = {" ": "·", "\n": "↵", "\t": "⇥", "\r": "‹CR›"}
UNSEEN  = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp", "Zs")          # categories that show nothing
MARKS   = ("Mn", "Me", "Mc")                                        # … without a letter before them
LONGEST = 40                                                        # characters of a name


def token_name(data: bytes) -> str:
    """data: the token's bytes"""
    parts: list[str] = []
    place = 0
    while place < len(data):
        for length in range(1, 5):
            try:
                character = data[place:place + length].decode()
            except UnicodeDecodeError:
                continue
            parts.append(_visible(character, first=not parts))
            place += length
            break
        else:
            parts.append(f"‹{data[place]:02X}›")
            place += 1
    name = "".join(parts).replace("›‹", " ") or "‹empty›"
    return name if len(name) <= LONGEST else f"{name[:LONGEST - 1]}…"


def characters_cut(tokens: Sequence[bytes]) -> list[str]:
    """For each token the characters of the whole text of which it holds a part only; mostly none."""
    whole, cut = b"".join(tokens), [""] * len(tokens)
    ends  = [0]
    for token in tokens:
        ends.append(ends[-1] + len(token))
    place, first = 0, 0
    for character in whole.decode(errors="surrogateescape"):
        length = len(character.encode(errors="surrogateescape"))
        while ends[first + 1] <= place:
            first += 1
        if ends[first + 1] < place + length:
            for n in range(first, len(tokens)):
                if ends[n] < place + length and ends[n + 1] > ends[n]:
                    cut[n] += character
        place += length
    return cut


def _visible(character: str, first: bool) -> str:
    if character in VISIBLE:
        return VISIBLE[character]
    unseen = UNSEEN + MARKS if first else UNSEEN
    return f"‹U+{ord(character):04X}›" if unicodedata.category(character) in unseen else character
