"""Pictures by matplotlib (extra `plot`), which only this file imports.

Figures are made without pyplot and under matplotlib's own defaults, whatever the user's matplotlibrc says:
the same input gives the same bytes.
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from npgpt.errors import ConfigError
from npgpt.files import output_file

FORMATS = {".png": "png", ".svg": "svg"}
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")     # Okabe & Ito 2008
INK     = "#333333"
STYLE = {
    "svg.hashsalt": "npgpt", "agg.path.chunksize": 10_000, "font.size": 10.5, "axes.edgecolor": "#888888",
    "axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True, "axes.titlesize": 11,
    "axes.titlelocation": "left", "axes.titlecolor": INK, "axes.labelcolor": INK, "text.color": INK,
    "xtick.color": "#888888", "ytick.color": "#888888", "xtick.labelcolor": INK, "ytick.labelcolor": INK,
    "grid.color": "#E6E6E6", "grid.linewidth": 0.8, "legend.frameon": False, "lines.solid_capstyle": "round",
}


def picture_format(path: Path) -> str:
    """png or svg, as the file's suffix says. Raises ConfigError for any other."""
    if path.suffix.lower() not in FORMATS:
        raise ConfigError(f"cannot draw {path}: its name must end with {' or '.join(FORMATS)}")
    return FORMATS[path.suffix.lower()]


def draw_picture(path: Path, draw: Callable[[Any], None]) -> None:
    """Has `draw` draw on a new figure, and writes that as a PNG or SVG file.

    Raises ConfigError if the suffix is another, the file cannot be written or matplotlib is not installed.
    """
    kind = picture_format(path)
    check_matplotlib()
    from matplotlib import style
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    with style.context(STYLE, after_reset=True):
        figure = Figure(layout="constrained", dpi=150)
        FigureCanvasAgg(figure)
        draw(figure)
        nothing = {"Date": None} if kind == "svg" else {"Software": None}
        with output_file(path) as file:
            figure.savefig(file, format=kind, metadata=nothing)


def check_matplotlib() -> None:
    """Raises ConfigError if it is not installed."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ConfigError("plots need matplotlib: install it by pip install 'npgpt[plot]'") from error


def key_line(**look: Any) -> Any:
    """A line for a legend."""
    from matplotlib.lines import Line2D
    return Line2D([], [], **look)


def key_shade(colour: str) -> Any:
    """A shaded area for a legend."""
    from matplotlib.patches import Patch
    return Patch(facecolor=colour)


def drawable(text: str) -> str:
    """The text with □ for what matplotlib's own monospaced font has no shape for."""
    return "".join(c if ord(c) in _shapes() else "□" for c in text)


@functools.cache
def _shapes() -> frozenset[int]:
    from matplotlib.font_manager import FontProperties, findfont, get_font
    return frozenset(get_font(findfont(FontProperties(family="DejaVu Sans Mono"))).get_charmap())
