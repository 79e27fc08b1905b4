"""Runs a command and draws what it printed as an SVG, for the README:

    python tools/terminal_picture.py docs/gradcheck.svg npgpt gradcheck GPT attention
"""

import io
import os
import shlex
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import MONOKAI
from rich.text import Text

WIDTH = 100         # columns
LINES = 60          # of a longer output, the first half and the last half of these


def main() -> None:
    path, command = sys.argv[1], sys.argv[2:]
    environment = os.environ | {"COLUMNS": str(WIDTH), "FORCE_COLOR": "1", "TTY_INTERACTIVE": "0"}
    said = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout
    lines = Text.from_ansi(said).split("\n")
    console = Console(record=True, width=WIDTH, file=io.StringIO())
    console.print(Text("$ " + shlex.join([Path(command[0]).name, *command[1:]]), "bold"))
    if len(lines) <= LINES:
        console.print(Text("\n").join(lines))
    else:
        console.print(Text("\n").join([*lines[:LINES // 2], Text("  ⋮", "dim"), *lines[-LINES // 2:]]))
    console.save_svg(path, title="npgpt", theme=MONOKAI)


if __name__ == "__main__":
    main()
