"""The curves of runs as a picture."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from npgpt.inspection.metrics import Curve, smooth
from npgpt.inspection.pictures import INK, PALETTE, draw_picture, key_line, key_shade

DASHES  = ("-", (0, (5, 1.5)), (0, (1, 1)), (0, (6, 1.5, 1, 1.5)))     # of the 1st to 7th run, the 8th …
PANELS = {                      # title: what it shows, its height
    "loss (nats per token)":         (("train_loss", "val_loss"), 2.6),
    "learning rate":                 (("learning_rate",), 1.0),
    "gradient norm before clipping": (("grad_norm",), 1.0),
    "tokens per second":             (("tokens_per_second",), 1.0),
}
SHADE    = "#DDDDDD"
LABEL_PLACES = ((0, 14), (0, -14), (30, 0), (-30, 0), (30, 14), (-30, 14), (30, -14), (-30, -14),
                (0, 28), (0, -28))         # of the best value's label from its mark, in points, by preference
LOG_FROM = 10                   # largest / smallest value above which a logarithmic axis shows more


class PlottedRun(NamedTuple):
    """A run's name and its curves by the key they have in metrics.jsonl."""

    name: str
    curves: dict[str, Curve]


class Band(NamedTuple):
    """Where validation losses are normal.   step, low, high: (S,)"""

    name: str
    step: np.ndarray
    low: np.ndarray
    high: np.ndarray


def plot_runs(runs: Sequence[PlottedRun], path: Path, x: str = "step", band: Band | None = None) -> None:
    """Draws the curves of one or several runs over x (step, tokens or seconds) into a PNG or SVG file.

    band: shaded behind validation losses, over steps.  Raises ConfigError if the suffix is another, the file
    cannot be written or matplotlib is not installed.
    """
    draw_picture(path, lambda figure: _draw(figure, runs, x, band))


def _draw(figure: Any, runs: Sequence[PlottedRun], x: str, band: Band | None) -> None:
    shown  = {title: panel for title, panel in PANELS.items()
              if any(key in run.curves for run in runs for key in panel[0])}
    legend = 0.24 * max(len(runs), 4)                                                       # inches
    figure.set_size_inches(10, 1.9 * sum(height for _, height in shown.values()) + 0.5 + legend)
    figure.get_layout_engine().set(hspace=0.03, h_pad=0.06, w_pad=0.08)
    axes = figure.subplots(len(shown), sharex=True, squeeze=False,
                           height_ratios=[height for _, height in shown.values()])[:, 0]
    unit, label = _unit(runs, x)
    labels: list[Any] = []
    for ax, (title, (keys, _)) in zip(axes, shown.items(), strict=True):
        ax.set_title(title)
        for number, run in enumerate(runs):
            for key in keys:
                if key in run.curves:
                    labels += _line(ax, run.curves[key], key, x, unit, _look(number, key, len(runs)))
        if band and "val_loss" in keys:
            _shade(ax, band)
        _scale(ax, title, [run.curves[key].value for run in runs for key in keys if key in run.curves])
        ax.grid(axis="y")
        ax.margins(x=0.015)
    axes[-1].set_xlabel(label)
    axes[-1].xaxis.set_major_formatter(_amount)
    _legends(figure, runs, band)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    for ax in axes:                 # the solver's last digits vary from call to call, and SVG hashes them
        ax.set_position([round(float(side), 4) for side in ax.get_position().bounds])
    _part(labels)


def _look(number: int, key: str, runs: int) -> dict[str, Any]:
    """Colour and dashes of a run's line; alone, a run's validation has a colour of its own."""
    alone = runs == 1 and key == "val_loss"
    return {"color": PALETTE[1 if alone else number % len(PALETTE)],
            "linestyle": DASHES[number // len(PALETTE) % len(DASHES)]}


def _line(ax: Any, curve: Curve, key: str, x: str, unit: float, look: dict[str, Any]) -> list[Any]:
    """Draws a curve; returns the label of its best value, if it has one."""
    labels = []
    places, values = getattr(curve, x) / unit, curve.value
    known = np.concatenate([[False], ~np.isnan(places + values), [False]])
    alone = np.flatnonzero(known[1:-1] & ~known[:-2] & ~known[2:])       # a line through one point is no line
    if key == "val_loss":
        ax.plot(places, values, **look, linewidth=1.2, marker="o", markersize=4, zorder=3)
        best = curve.best()
        if best is not None:
            ax.plot(places[best], values[best], color=look["color"], marker="o", markersize=11,
                    markerfacecolor="none", markeredgewidth=1.6, zorder=4)
            labels.append(ax.annotate(
                f"{values[best]:.3f}", (places[best], values[best]), LABEL_PLACES[0], zorder=5,
                textcoords="offset points", ha="center", va="center", color=look["color"], fontweight="bold",
                bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.8}))
    elif key == "train_loss":
        ax.plot(places, values, **look, linewidth=0.8, alpha=0.3, marker="o", markersize=4, markevery=alone)
        ax.plot(places, smooth(values), **look, linewidth=1.8, marker="o", markersize=4, markevery=alone)
    else:
        ax.plot(places, values, **look, linewidth=1.2, marker="o", markersize=4, markevery=alone)
    wrong = places[np.isnan(values)]
    ax.plot(wrong, np.full(len(wrong), 0.03), color=look["color"], linestyle="none", marker="x", markersize=6,
            transform=ax.get_xaxis_transform())
    return labels


def _shade(ax: Any, band: Band) -> None:
    """The band, as far as the runs have got."""
    step, low, high = (values[band.step <= ax.dataLim.x1] for values in band[1:])
    ax.fill_between(step, low, high, color=SHADE, linewidth=0, zorder=0)


def _part(labels: list[Any]) -> None:
    """Moves labels that would lie over each other, or over another's mark, to a free place beside their own
    mark; one that finds none is left out: the legend has its value."""
    taken: list[Any] = []
    marks = [label.axes.transData.transform(label.xy) for label in labels]
    for own, label in enumerate(labels):
        for place in LABEL_PLACES:
            label.set_position(place)
            box = label.get_window_extent()
            if not (any(box.overlaps(other) for other in taken)
                    or any(box.padded(6).contains(*mark) for mark in marks[:own] + marks[own + 1:])
                    or box.y0 < label.axes.bbox.y0 or box.x1 > label.figure.bbox.x1):
                taken.append(box)
                break
        else:
            label.set_visible(False)


def _scale(ax: Any, title: str, values: list[np.ndarray]) -> None:
    """From 0 for what is read by its height, a logarithm for what spans more than a power of ten."""
    known = np.concatenate(values)
    known = known[~np.isnan(known)]
    if title in ("learning rate", "tokens per second"):
        ax.set_ylim(0, 1.08 * known.max(initial=0) or 1)
        ax.yaxis.set_major_formatter(_amount)
    elif len(known) and known.min() > 0 and known.max() > LOG_FROM * known.min():
        ax.set_yscale("log")
        ax.yaxis.set_major_formatter(_amount)
        ax.yaxis.set_minor_formatter("")
    elif not len(known):
        ax.set_yticks([])


def _unit(runs: Sequence[PlottedRun], x: str) -> tuple[float, str]:
    """What x is divided by, and the axis's label."""
    if x != "seconds":
        return 1.0, x
    most = max(np.nanmax(curve.seconds, initial=0) for run in runs for curve in run.curves.values())
    for unit, name in ((86400.0, "days"), (3600.0, "hours"), (60.0, "minutes")):
        if most >= 3 * unit:
            return unit, f"time ({name})"
    return 1.0, "time (seconds)"


def _amount(value: float, _: int) -> str:
    """1,500 · 20 M · 0.0003 · 3e-05"""
    for unit, letter in ((1e9, " G"), (1e6, " M")):
        if abs(value) >= unit:
            return f"{value / unit:,.6g}{letter}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.6g}"


def _legends(figure: Any, runs: Sequence[PlottedRun], band: Band | None) -> None:
    """Left: the runs and their best validation loss. Right: what a line and a mark mean."""
    many  = len(runs) > 1
    first = [key_line(**_look(number, "train_loss", len(runs)), linewidth=2.5)
             for number in range(len(runs))]
    left  = figure.legend(first, ["run"] * len(runs), loc="outside upper left", fontsize=11)
    for text, run in zip(left.get_texts(), runs, strict=True):
        text.set_parse_math(False)                                      # a name may have a $, or begin with _
        text.set_text(_name(run))
    colours = [INK, INK] if many else PALETTE[:2]
    keys: dict[str, Any] = {
        "training, smoothed": key_line(color=colours[0], linewidth=1.8),
        "training":           key_line(color=colours[0], linewidth=0.8, alpha=0.4),
        "validation":         key_line(color=colours[1], linewidth=1.2, marker="o", markersize=4),
    }
    recorded = {key for run in runs for key in run.curves}
    keys = {name: line for name, line in keys.items()
            if ("val_loss" if name == "validation" else "train_loss") in recorded}
    if any(np.isnan(curve.value).any() for run in runs for curve in run.curves.values()):
        keys["not a finite number"] = key_line(color=INK, linestyle="none", marker="x")
    if band:
        keys[band.name] = key_shade(SHADE)
    if keys:
        figure.legend(keys.values(), keys.keys(), loc="outside upper right")


def _name(run: PlottedRun) -> str:
    name = run.name if len(run.name) <= 40 else f"{run.name[:18]} … {run.name[-18:]}"
    best = run.curves["val_loss"].best() if "val_loss" in run.curves else None
    if best is None:
        return name
    curve = run.curves["val_loss"]
    return f"{name}: best validation loss {curve.value[best]:.4f} at step {curve.step[best]:,.0f}"
