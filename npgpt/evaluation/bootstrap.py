"""How far a number would move on other data of the same kind (Efron 1979, the percentile bootstrap).

The units, documents or questions, are drawn again with replacement, as many as there are; the number is
computed of what was drawn; and the interval is where the middle 95 % of such numbers lie. Units must be
whole documents, or stretches long enough to have little to do with each other: neighbouring tokens do not.
"""

import numpy as np

from npgpt.tensor.random import BOOTSTRAP

Interval = tuple[float, float]


def ratio_interval(numerators: np.ndarray, denominators: np.ndarray, seed: int = 0, resamples: int = 1000,
                   confidence: float = 0.95) -> Interval | None:
    """Of Σ numerators / Σ denominators over the units, (N,) each; None of fewer than two units, or where a
    denominator is not above 0. The same seed draws the same units whatever the numerators are."""
    N = len(numerators)
    if N < 2 or not (denominators > 0).all():
        return None
    random = np.random.Generator(np.random.Philox(key=np.array([seed, BOOTSTRAP], np.uint64)))
    ratios = np.empty(resamples)
    for n in range(resamples):
        drawn = random.integers(N, size=N)
        ratios[n] = numerators[drawn].sum() / denominators[drawn].sum()
    tail = (1 - confidence) / 2
    low, high = np.quantile(ratios, [tail, 1 - tail])
    return float(low), float(high)


def mean_interval(values: np.ndarray, seed: int = 0, resamples: int = 1000) -> Interval | None:
    """Of the mean of the units' values, (N,)."""
    return ratio_interval(values, np.ones(len(values)), seed, resamples)
