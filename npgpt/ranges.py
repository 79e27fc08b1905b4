"""One check that a number which was set is one that can be, and one wording of what it must be."""

import operator
import sys
from typing import Any

from npgpt.errors import ConfigError

FINITE = sys.float_info.max         # a whole number may be above that, too


def check_range(name: str, value: Any, *, least: Any = None, above: Any = None, most: Any = None,
                below: Any = None) -> None:
    """Raises ConfigError unless least ≤ value, above < value, value ≤ most and value < below, of those that
    are given. NaN is in no range.
    """
    bounds = [(words, holds, bound) for words, holds, bound in (
        ("at least", operator.ge, least), ("above", operator.gt, above), ("at most", operator.le, most),
        ("below", operator.lt, below)) if bound is not None]
    if not all(holds(value, bound) for _, holds, bound in bounds):
        shown = {2**64: "below 2⁶⁴", FINITE: "finite"}
        needed = " and ".join(shown.get(bound, f"{words} {bound}") for words, _, bound in bounds)
        raise ConfigError(f"{name} must be {needed}, not {value}")
