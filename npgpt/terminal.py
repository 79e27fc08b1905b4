"""What commands say to a person: warnings, and text that a model wrote, which a terminal must not obey."""

import sys
import unicodedata


def printable(text: str) -> str:
    """The text with control characters other than newline and tab replaced by ·, so that none steers the
    terminal."""
    return "".join(c if c in "\n\t" or unicodedata.category(c) not in ("Cc", "Cf", "Cs", "Co") else "·"
                   for c in text)


def warn(text: str) -> None:
    """A sentence on standard error, where it does not mix with a command's output."""
    print(f"npgpt: warning: {text}", file=sys.stderr)
