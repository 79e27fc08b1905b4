"""Is this loss normal? A run's curves beside those of the same preset for several seeds.

Of n seeds a quantity at a step has the mean m and the standard deviation s (of n − 1 degrees of freedom). If
seeds are drawn from a normal distribution, a new one, x, is independent of them, and x − m has the variance
σ² (1 + 1/n): its own, and that of the mean. With s in the place of σ

    t = (x − m) / (s √(1 + 1/n))

has Student's t-distribution with n − 1 degrees of freedom (a prediction interval: Student 1908; Baker 1935).
So x is called normal while |x − m| ≤ s · √(1 + 1/n) · t(1 − α/2), α = LEVEL.

So few seeds tell s itself badly at one step, so s² is averaged over the steps within a window (Reference) to
both sides. Neighbouring steps say nearly the same, so n − 1 is left as it is, which makes the interval rather
too wide. That suits a run that is asked many times, at every evaluation and of three quantities; LEVEL is
small for the same reason. The tests hold each seed against the others.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from npgpt.errors import NpgptError
from npgpt.inspection.metrics import Curve
from npgpt.inspection.reference import QUANTITIES, Reference, Text

LEVEL = 0.005                   # how often one number of an honest run falls outside, by chance
"""α"""
WORDINGS = {"python-docs": {"val_loss": 0.1, "train_loss": 0.03, "grad_norm": 0.03}}
"""A standard deviation for the wording of a text that differs from one Python to another, added to that of
the seeds (in squares). Seed 1337 on the text of Python 3.13 was within 0.08, 0.023 and 2.7 % of itself on
that of 3.11, at steps 50 and 100."""
RETRACED = {"train_loss": 1e-4, "grad_norm": 1e-2}
"""How far rounding may lead the first steps of one seed apart, relative: a float64 run and one of two workers
were within 4e-6 and 6e-4."""
CAUSES = {
    "high": "usual causes: a gradient that is wrong or missing (npgpt gradcheck finds it), targets that are "
            "not the next token, a mask that hides too much, a learning rate other than the settings say",
    "low": "look for a leak: validation text in the training text, targets that the model is shown, a mask "
           "that lets the future through, a mean over other tokens",
    "norm": "a gradient off by a factor hides from AdamW, which divides by its size: "
            "npgpt gradcheck finds it",
}


class CurveError(NpgptError):
    """A run that is not where the reference's seeds are, or that cannot be compared with them."""


class Row(NamedTuple):
    """One number of a run beside the reference's; of a norm its logarithm.  away: in standard deviations."""

    quantity: str
    step: int
    yours: float
    mean: float
    spread: float
    away: float
    verdict: str


def settings_that_differ(run: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """["n_embd is 64, not 192", …]: each of `settings_that_matter` in which a run is not like another."""
    return [f"{name} is {_say(run.get(name))}, not {_say(other.get(name))}"
            for name in {**other, **run} if run.get(name) != other.get(name)]


def nearest_preset(run: Mapping[str, Any], presets: Mapping[str, Mapping[str, Any]]) -> str:
    """The preset from which a run differs in the fewest settings; the first of equals."""
    return min(presets, key=lambda name: len(settings_that_differ(run, presets[name])))


def same_text(text: Text, reference: Reference) -> bool:
    """Whether the texts are one; False for two versions of Python's documentation, which are much alike.

    Raises CurveError for any other text.
    """
    if text.sha256 == reference.text.sha256:
        return True
    if text.data == reference.text.data and text.data in WORDINGS:
        return False
    what = (f"has {text.characters:,} characters, not the {reference.text.characters:,}"
            if text.characters != reference.text.characters else "is another, or split otherwise, than that")
    raise CurveError(f"no verdict: the text the run learns from {what} of {reference.text.data}, from which "
                     f"the reference of preset {reference.preset} was made")


def allowed(reference: Reference) -> float:
    """How many standard deviations of its seeds' a normal number may be away from their mean."""
    n = len(reference.seeds)
    return t_quantile(1 - LEVEL / 2, n - 1) * math.sqrt(1 + 1 / n)


def band(reference: Reference, quantity: str, same: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation over the seeds, (S,) each; NaN where they have no values.

    same: the text is the very one of the reference; else the spread is widened by WORDINGS.
    """
    curves, steps = reference.curves[quantity], reference.steps
    variance = curves.var(0, ddof=1)
    near     = abs(steps[:, None] - steps) <= reference.window                      # (S, S)
    near    &= ((steps > 0)[:, None] == (steps > 0)) & ~np.isnan(variance)          # before training is apart
    spread   = np.sqrt((near * np.nan_to_num(variance)).sum(1) / near.sum(1).clip(1))
    spread   = np.where(np.isnan(variance), np.nan, spread)
    if not same:
        spread = np.hypot(spread, WORDINGS[reference.text.data][quantity])
    return curves.mean(0), spread


def normal_range(reference: Reference, quantity: str, same: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """From where to where a new seed's values are called normal, (S,) each."""
    mean, spread = band(reference, quantity, same)
    return mean - allowed(reference) * spread, mean + allowed(reference) * spread


def judge(sampled: Mapping[str, np.ndarray], reference: Reference, same: bool = True) -> list[Row]:
    """Every number of a run that the reference has too: those of its evaluations, and at the same steps the
    mean training loss and gradient norm of the steps before.

    sampled: as `sample_like` gives it.  Raises CurveError if there is no number.
    """
    evaluated = ~np.isnan(sampled["val_loss"])
    most, rows = allowed(reference), []
    for quantity in QUANTITIES:
        numbers = np.stack([reference.steps, sampled[quantity], *band(reference, quantity, same)], 1)
        for step, yours, mean, spread in numbers[evaluated & ~np.isnan(numbers).any(1)].tolist():
            away    = (yours - mean) / spread
            verdict = "normal" if abs(away) <= most else "high" if away > 0 else "low"
            rows.append(Row(quantity, int(step), yours, mean, spread, away, verdict))
    if not rows:
        raise CurveError(f"no verdict yet: the run has no evaluation at a step where the reference has one "
                         f"(every {reference.steps[1]} up to {reference.steps[-1]})")
    return rows


def sentence(rows: list[Row], reference: Reference) -> tuple[bool, str]:
    """Whether a run is normal, and the verdict in words. It speaks of losses first."""
    n = len(reference.seeds)
    wrong = [row for row in rows if row.verdict != "normal"]
    if not wrong:
        return True, (f"Normal up to step {max(row.step for row in rows)}: all numbers ({len(rows)}) are in "
                      f"the range of a new seed, going by {n} others.")
    losses   = [row for row in wrong if row.quantity != "grad_norm"]
    quantity = (losses or wrong)[0].quantity
    row      = max((row for row in wrong if row.quantity == quantity), key=lambda row: row.step)
    numbers  = [other for other in rows if other.quantity == quantity]
    before   = [other.step for other in numbers if other.step < row.step and other.verdict != row.verdict]
    since    = next(other.step for other in numbers if other.step > max(before, default=-1))
    when = (f"since step {since}" if row is numbers[-1] else f"at step {row.step}" if since == row.step
            else f"from step {since} to {row.step}")
    size = (f"{math.exp(row.yours - row.mean):.2g} times the reference's" if quantity == "grad_norm"
            else f"{row.yours:.3f}, where {n} seeds have {row.mean:.3f} ± {row.spread:.3f}")
    cause = CAUSES["norm" if quantity == "grad_norm" else row.verdict]
    also  = sorted({QUANTITIES[other.quantity] for other in wrong if other.quantity != quantity})
    return False, (f"Too {row.verdict} {when}: the {QUANTITIES[quantity]} at step {row.step} is {size}, "
                   f"{abs(row.away):.1f} standard deviations away; {cause}"
                   + (f" (not normal either: {', '.join(also)})" if also else ""))


def retrace(curves: Mapping[str, Curve], reference: Reference, seed: int) -> dict[str, float] | None:
    """How far the first logged losses and norms are from those of the reference's run of the same seed,
    relative, at most: name → number, to be held against RETRACED.

    Of the same text, nothing but rounding may lead them apart. None if no run has that seed, or a number is
    not there.
    """
    if seed not in reference.seeds:
        return None
    apart = {}
    for name, stored in reference.beginning.items():
        known  = dict(zip(curves[name].step, curves[name].value, strict=True)) if name in curves else {}
        yours  = np.array([known.get(float(step), math.nan) for step in reference.beginning_steps])
        apart[name] = float(abs(yours / stored[reference.seeds.index(seed)] - 1).max())
    return None if any(map(math.isnan, apart.values())) else apart


def t_quantile(p: float, freedom: int) -> float:
    """The value below which Student's t with that many degrees of freedom lies with probability p ≥ ½."""
    low, high = 0.0, 1.0
    while t_probability(high, freedom) < p:
        high *= 2
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if t_probability(middle, freedom) < p else (low, middle)
    return (low + high) / 2


def t_probability(t: float, freedom: int) -> float:
    """P(T ≤ t) for t ≥ 0, by the finite sums for whole degrees of freedom (Abramowitz & Stegun, 26.7.3)."""
    angle = math.atan(t / math.sqrt(freedom))
    sine, cosine = math.sin(angle), math.cos(angle)
    odd  = freedom % 2
    term = total = cosine if odd else 1.0
    for k in range(2 + odd, freedom - 1, 2):
        term *= cosine * cosine * (k - 1) / k
        total += term
    if not odd:
        return 0.5 + sine * total / 2
    return 0.5 + (angle + (sine * total if freedom > 1 else 0.0)) / math.pi


def _say(value: Any) -> str:
    return "not set" if value is None else str(value)
