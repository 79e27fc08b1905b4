"""A run's metrics.jsonl as curves: a cut line is left out, of a step that came twice the later counts."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from npgpt.errors import DataError

AXES   = ("step", "tokens", "seconds")
VALUES = ("train_loss", "val_loss", "learning_rate", "grad_norm", "tokens_per_second")


class Curve(NamedTuple):
    """One value over a run, by rising steps. step, tokens, seconds, value: (N,) float64, Inf as NaN"""

    step: np.ndarray
    tokens: np.ndarray
    seconds: np.ndarray
    value: np.ndarray

    def best(self) -> int | None:
        """Where the lowest value is, the first of equals; None if no value is finite."""
        return None if np.isnan(self.value).all() else int(np.nanargmin(self.value))


def read_metrics(run: Path) -> dict[str, Curve]:
    """The curves of a run's folder: those of VALUES that were recorded.

    Raises DataError if the folder is no run's or has nothing recorded.
    """
    file = run / "metrics.jsonl"
    if not file.is_file():
        if (run / "config.toml").is_file():
            raise DataError(f"{run} has no metrics.jsonl yet: let it train first")
        raise DataError(f"{run} is not a run's folder: it has no metrics.jsonl")
    try:
        lines = file.read_bytes().splitlines()
    except OSError as error:
        raise DataError(f"cannot read {file}: {error.strerror}") from error
    rows: dict[str, dict[float, list[float]]] = {}
    for record in map(_record, lines):
        place = [_number(record, axis) for axis in AXES]
        if np.isfinite(place[0]):
            for name in VALUES:
                if name in record:
                    rows.setdefault(name, {})[place[0]] = [*place, _number(record, name)]
    if not rows:
        raise DataError(f"{file} has no step recorded: let the run train first")
    return {name: Curve(*np.array([by_step[step] for step in sorted(by_step)]).T)
            for name, by_step in rows.items()}


def smooth(values: np.ndarray) -> np.ndarray:
    """A moving mean over a 25th of the values, of those that are numbers; NaN stays where it is.

    values: (N,) → (N,).  At the start the window is narrower, to stay centred: there the loss falls steeply,
    and one that looks only ahead would draw it too low.
    """
    N      = len(values)
    places = np.arange(N)
    half   = np.minimum(places, max(1, N // 50))
    first, last = places - half, np.minimum(places + half + 1, N)
    known  = ~np.isnan(values)
    total  = np.concatenate([[0.0], np.cumsum(np.where(known, values, 0.0))])
    count  = np.concatenate([[0], np.cumsum(known)])
    mean   = (total[last] - total[first]) / np.maximum(count[last] - count[first], 1)
    return np.where(known, mean, np.nan)


def run_names(runs: list[Path]) -> list[str]:
    """Names of several different folders: each its own, with as many parents as tell it from the others."""
    parts = [run.resolve().parts for run in runs]
    names = []
    for own in parts:
        depth = 1
        while depth < len(own) and sum(other[-depth:] == own[-depth:] for other in parts) > 1:
            depth += 1
        names.append("/".join(own[-depth:]))
    return names


def _record(line: bytes) -> dict[str, Any]:
    """What a line holds; nothing if it is damaged."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return record if isinstance(record, dict) else {}


def _number(record: dict[str, Any], name: str) -> float:
    """A finite number, or NaN."""
    value = record.get(name)
    if not isinstance(value, int | float):
        return float("nan")
    try:
        return float(value) if np.isfinite(float(value)) else float("nan")
    except OverflowError:
        return float("nan")
