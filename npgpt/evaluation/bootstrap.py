"""How far a number would move on other data of the same kind (Efron 1979, the percentile bootstrap).

The units, documents or questions, are drawn again with replacement, as many as there are; the number is
computed of what was drawn; and the interval is where the middle 95 % of such numbers lie. Units must be
whole documents, or stretches long enough to have little to do with each other: neighbouring tokens do not.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from npgpt.tensor.random import BOOTSTRAP

Interval = tuple[float, float]
CONFIDENCE = 0.95


def resampled(numbers: Callable[[np.ndarray], Any], N: int, seed: int = 0,
              resamples: int = 1000) -> list[Interval] | None:
    """Of the M numbers that a function computes of the units drawn, whose places among the N it is given;
    None of fewer than two units. The same seed draws the same units whatever the function is."""
    if N < 2:
        return None
    random = np.random.Generator(np.random.Philox(key=np.array([seed, BOOTSTRAP], np.uint64)))
    drawn  = np.array([numbers(random.integers(N, size=N)) for _ in range(resamples)])      # (resamples, M)
    tail   = (1 - CONFIDENCE) / 2
    return [(float(low), float(high)) for low, high in np.quantile(drawn, [tail, 1 - tail], axis=0).T]


def ratio_interval(numerators: np.ndarray, denominators: np.ndarray, seed: int = 0,
                   resamples: int = 1000) -> Interval | None:
    """Of Σ numerators / Σ denominators over the units, (N,) each; None of fewer than two units, or where a
    denominator is not above 0."""
    if not (denominators > 0).all():
        return None
    intervals = resampled(lambda drawn: [numerators[drawn].sum() / denominators[drawn].sum()],
                          len(numerators), seed, resamples)
    return None if intervals is None else intervals[0]


def mean_interval(values: np.ndarray, seed: int = 0, resamples: int = 1000) -> Interval | None:
    """Of the mean of the units' values, (N,)."""
    return ratio_interval(values, np.ones(len(values)), seed, resamples)
