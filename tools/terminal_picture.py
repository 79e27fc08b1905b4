"""Draws what a command printed as an SVG, for the README. The command is given for its first line, not run:

    export FORCE_COLOR=1 COLUMNS=100
    npgpt gradcheck | python tools/terminal_picture.py docs/gradcheck.svg 'npgpt gradcheck'
"""

import io
import sys

from rich.console import Console
from rich.terminal_theme import MONOKAI
from rich.text import Text

WIDTH = 100         # columns
LINES = 56          # of a longer output, the first half and the last half of these


def main() -> None:
    path, command = sys.argv[1:]
    lines = Text.from_ansi(sys.stdin.read()).split("\n")
    if len(lines) > LINES:
        lines = [*lines[:LINES // 2], Text("  ⋮", "dim"), *lines[-LINES // 2:]]     # type: ignore[assignment]
    console = Console(record=True, width=WIDTH, file=io.StringIO())
    console.print(Text("$ " + command, "bold"))
    console.print(Text("\n").join(lines))
    console.save_svg(path, title="npgpt", theme=MONOKAI)


if __name__ == "__main__":
    main()
