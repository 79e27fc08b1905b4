"""A report as one picture, to be read on paper: surprisal, saliency of one prediction, logit lens, attention.

All is laid out by hand in inches from the top left corner: the letters are of one width, so the place of
each token is known beforehand. What finds no room on a page is left out evenly, and a line says so.
"""

import math
from pathlib import Path
from typing import Any

import numpy as np

from npgpt.inspection.pictures import INK, draw_picture, drawable
from npgpt.inspection.report import Report, evenly

WIDTH, MARGIN   = 10.0, 0.45    # inches
LEFT            = MARGIN + 0.85                         # of the lens and the maps, beside the layers' names
MOST_COLUMNS    = 14            # of the lens
COLUMN, ROW     = (WIDTH - MARGIN - LEFT) / MOST_COLUMNS, 0.2
MOST_LENS_ROWS  = 19
MOST_HEADS      = 12
MOST_MAP_ROWS   = 12
MAP_PIXELS      = 96            # of one side; of a longer text the strongest of neighbours is shown
SOFT, LINE      = "#6B7280", "#DDDDDD"
SURPRISE, SURE  = (255, 122, 48), (38, 166, 118)
FOR, AGAINST    = (58, 130, 230), (226, 84, 106)
DARK            = (16, 48, 130)
LETTER          = 0.602 / 72    # inches of width a point of size


def write_picture(report: Report, path: Path) -> None:
    """A PNG.  Raises ConfigError if the file cannot be written or matplotlib is not installed."""
    draw_picture(path, lambda figure: _Sheet(figure).draw(report))


class _Sheet:
    """`y` is how far down the sheet is filled."""

    def __init__(self, figure: Any):
        figure.set_layout_engine("none")
        self.figure, self.y = figure, 0.35
        self.axes = figure.add_axes((0, 0, 1, 1))
        self.axes.axis("off")

    def draw(self, report: Report) -> None:
        self.text(MARGIN, f"What {report.model} makes of a text", 17, weight="bold", family="sans-serif")
        self.y += 0.3
        T = len(report.tokens)
        self.line(f"{' · '.join(report.facts)} · {T} token{'s' * (T > 1)} read")
        self._surprisal(report)
        self._saliency(report)
        self._lens(report)
        self._attention(report)
        self.figure.set_size_inches(WIDTH, self.y + 0.2)
        self.axes.set(xlim=(0, WIDTH), ylim=(self.y + 0.2, 0), aspect="auto")

    # The four parts

    def _surprisal(self, report: Report) -> None:
        T, bits = len(report.tokens), report.lens.surprisal
        self.head("Surprisal of each token, in bits")
        self.line("−log₂ of the probability that the model gave the token: 0 is certain, 1 a coin toss, 10 "
                  "one in a thousand." + (f" Mean {bits.mean():.2f} bits: perplexity {2 ** bits.mean():.1f}."
                                      if T > 1 else ""))
        most = max(8.0, bits.max(initial=0))
        self.flow(report, [None, *(_mix(SURPRISE, value / most) for value in bits), None],
                  ["", *(f"{value:.1f}" for value in bits), f"{report.lens.probability[-1, -1, 0]:.0%}"])
        lacking = any(drawable(name) != name for name in report.names.values())
        self.line("Dashed: the model's own guess at what follows, with its probability."
                  + (" □: a character that this picture's font lacks." if lacking else ""))

    def _saliency(self, report: Report) -> None:
        n   = report.target
        row = [position for position, _ in report.targets].index(n)
        where = "the guess after the text" if n == len(report.tokens) else f"position {n}"
        for title, how, values in (
                (f"Sensitivity: what the prediction of “{report.name(n)}”, {where}, hung on",
                 "The length of the gradient of its log-probability in each earlier token's embedding.",
                 report.saliency.sensitivity[row]),
                ("Contribution: what spoke for it (blue) and against it (red)",
                 "Gradient × embedding: to first order, the nats the log-probability would lose without it.",
                 report.saliency.contribution[row])):
            self.head(title)
            self.line(how)
            most   = abs(values).max() or 1.0
            places = max(0, 1 - math.floor(math.log10(most)))                # two digits of the largest
            self.flow(report, [*(_mix(FOR if value >= 0 else AGAINST, abs(value) / most)
                                 for value in values[:n]), *[None] * (len(values) + 1 - n)],
                      [*(f"{value:.{places}f}".replace("-", "−") for value in values[:n]),
                       *[""] * (len(values) + 1 - n)], chosen=n)

    def _lens(self, report: Report) -> None:
        T       = len(report.tokens)
        last    = min(T, max(report.target, MOST_COLUMNS))
        columns = range(max(0, last - MOST_COLUMNS), last)
        rows    = evenly(report.n_layer + 1, MOST_LENS_ROWS)
        self.head("Logit lens: the best next token after each layer")
        self.line("The head reads each layer's result early, through the final norm. The deeper the colour, "
                  "the surer; bold and framed: what really came.")
        self._lens_words("reads", [report.name(t) for t in columns])
        for layer in rows:
            self._lens_row(report, layer, columns)
        self._lens_words("came next", [report.name(t + 1) if t + 1 < T else "?" for t in columns])
        self.y += 0.08
        if len(columns) < T:
            self.line(f"Shown are positions {columns[0]} to {columns[-1]} of 0 to {T - 1}.")
        if len(rows) < report.n_layer + 1:
            self.line(f"Shown are {len(rows)} of {report.n_layer + 1} rows; the page, FILE.html, has all.")

    def _lens_words(self, label: str, names: list[str]) -> None:
        self.text(LEFT - 0.08, label, 7.5, ha="right", color=SOFT, family="sans-serif")
        for n, name in enumerate(names):
            self.text(LEFT + (n + 0.5) * COLUMN, _shortened(name), 7.5, ha="center", weight="bold")
        self.y += ROW

    def _lens_row(self, report: Report, layer: int, columns: range) -> None:
        label = f"layer {layer - 1}" if layer else "embedding"
        self.text(LEFT - 0.08, label, 7.5, ha="right", color=SOFT, family="sans-serif")
        for n, t in enumerate(columns):
            best  = int(report.lens.tokens[layer, t, 0])
            right = t + 1 < len(report.tokens) and best == report.tokens[t + 1]
            x     = LEFT + n * COLUMN
            self.box(x, COLUMN, ROW, _mix(SURE, 0.75 * report.lens.probability[layer, t, 0].item()))
            if right:
                self.box(x, COLUMN, ROW, "none", edge=_mix(SURE, 1), inset=0.015)
            self.text(x + COLUMN / 2, _shortened(report.names[best]), 7.5, ha="center",
                      weight="bold" if right else "normal")
        self.y += ROW

    def _attention(self, report: Report) -> None:
        layers = evenly(len(report.attention_layers), MOST_MAP_ROWS)
        heads  = evenly(report.attention.shape[1], MOST_HEADS)
        self.head("Attention: where each head looks")
        self.line("A row for each position that looks, a column for each it looks at; a row's weights sum to "
                  "1. Shaded by the weight's square root.")
        side = min(1.1, (WIDTH - MARGIN - LEFT) / len(heads) - 0.06)
        for n, head in enumerate(heads):
            self.text(LEFT + n * (side + 0.06) + side / 2, f"head {head}", 7.5, ha="center", color=SOFT,
                      family="sans-serif")
        self.y += 0.13
        for layer in layers:
            self.y += side / 2
            self.text(LEFT - 0.08, f"layer {report.attention_layers[layer]}", 7.5, ha="right", color=SOFT,
                      family="sans-serif")
            self.y -= side / 2
            for n, head in enumerate(heads):
                self.map(LEFT + n * (side + 0.06), side, report.attention[layer, head])
            self.y += side + 0.06
        self.y += 0.1
        left_out = []
        if len(layers) < report.n_layer:
            left_out.append(f"{len(layers)} of {report.n_layer} layers")
        if len(heads) < report.attention.shape[1]:
            left_out.append(f"{len(heads)} of {report.attention.shape[1]} heads")
        if left_out:
            self.line(f"Shown are {' and '.join(left_out)}; the page, FILE.html, has more.")

    # What they are made of

    def head(self, title: str) -> None:
        self.y += 0.32
        self.text(MARGIN, title, 11.5, weight="bold", family="sans-serif")
        self.y += 0.24

    def line(self, words: str) -> None:
        self.text(MARGIN, words, 8.5, color=SOFT, family="sans-serif")
        self.y += 0.2

    def flow(self, report: Report, colours: list[Any], below: list[str], chosen: int | None = None) -> None:
        """The text and the guess after it, each token on its colour and over its number."""
        x, size = MARGIN, 9.5
        self.y += 0.06
        for n, (colour, number) in enumerate(zip(colours, below, strict=True)):
            name  = report.name(n)
            width = max(LETTER * size * len(drawable(name)), LETTER * 6.5 * len(number)) + 0.09
            if x + width > WIDTH - MARGIN:
                x, self.y = MARGIN, self.y + 0.42
            guess = n == len(report.tokens)
            self.box(x, width, 0.21, colour or "none", dashed=guess,
                     edge=INK if n == chosen else SOFT if guess else "none")
            self.text(x + width / 2, name, size, ha="center")
            self.y += 0.17
            self.text(x + width / 2, number, 6.5, ha="center", color=SOFT)
            self.y -= 0.17
            x += width + 0.03
            if not guess and b"\n" in report.data[n]:
                x, self.y = MARGIN, self.y + 0.42
        self.y += 0.42

    def text(self, x: float, words: str, size: float, **look: Any) -> None:
        look = {"family": "monospace", "color": INK, "va": "center_baseline"} | look
        self.axes.text(x, self.y, drawable(words), fontsize=size, parse_math=False, **look)

    def box(self, x: float, width: float, height: float, colour: Any, edge: Any = "none",
            dashed: bool = False, inset: float = 0.0) -> None:
        left, right = x + inset, x + width - inset
        top, bottom = self.y - height / 2 + inset, self.y + height / 2 - inset
        self.axes.fill([left, right, right, left], [top, top, bottom, bottom], facecolor=colour,
                       edgecolor=edge, linewidth=1.0, linestyle="--" if dashed else "-")

    def map(self, x: float, side: float, weights: np.ndarray) -> None:
        """weights: (T, T)"""
        T      = len(weights)
        pixels = min(T, MAP_PIXELS)
        place  = np.arange(T) * pixels // T
        shown  = np.zeros((pixels, pixels))
        np.maximum.at(shown, (place[:, None], place), weights)
        share  = np.sqrt(shown)[..., None]
        image  = 1 + (np.array(DARK) / 255 - 1) * share                       # white to dark
        image[np.triu_indices(pixels, 1)] = 0.955                             # the future
        self.axes.imshow(image, extent=(x, x + side, self.y + side, self.y), interpolation="nearest",
                         aspect="auto")
        self.axes.plot([x, x + side, x + side, x, x], self.y + side * np.array([0, 0, 1, 1, 0]),
                       color=LINE, linewidth=0.6)


def _mix(colour: tuple[int, int, int], share: float) -> tuple[float, ...]:
    """From white to the colour."""
    return tuple(1 - (1 - part / 255) * float(min(1.0, max(0.0, share))) for part in colour)


def _shortened(name: str) -> str:
    """What fits into a column of the lens."""
    most = int(COLUMN / (LETTER * 7.5)) - 1
    return name if len(name) <= most else f"{name[:most - 1]}…"
