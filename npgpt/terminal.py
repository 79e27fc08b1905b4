"""Showing text that a model wrote: a terminal must not obey what is only meant to be read."""

import unicodedata


def printable(text: str) -> str:
    """The text with control characters other than newline and tab replaced by ·, so that none steers the
    terminal."""
    return "".join(c if c in "\n\t" or unicodedata.category(c) not in ("Cc", "Cf", "Cs", "Co") else "·"
                   for c in text)
