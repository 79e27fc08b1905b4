"""The checks that a setting is of its type, and a number one that can be, in one wording."""

import dataclasses
import operator
import sys
from pathlib import Path
from typing import Any, get_args

import numpy as np

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
    if isinstance(value, np.generic):                       # float32's would have the bounds rounded to it
        value = value.item()
    try:
        within = all(holds(value, bound) for _, holds, bound in bounds)
    except (TypeError, ValueError):                         # a text, None, an array of several
        raise ConfigError(f"{name} must be a number, not {value!r}") from None
    if not within:
        shown = {2**64: "below 2⁶⁴", FINITE: "finite"}
        needed = " and ".join(shown.get(bound, f"{words} {bound}") for words, _, bound in bounds)
        raise ConfigError(f"{name} must be {needed}, not {value}")


def is_whole(value: Any) -> bool:
    """Whether it is a whole number, Python's or NumPy's."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def check_types(settings: Any) -> None:
    """Of a frozen dataclass whose fields are a bool, int, float, str, Path, one of some texts (Literal), or
    that or None: raises ConfigError for another. NumPy's numbers become Python's, which a file can hold,
    whole ones floats, and a text where a file is named a Path.
    """
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        kinds = [kind for one in get_args(field.type) or (field.type,) for kind in get_args(one) or (one,)]
        texts = [kind for kind in kinds if isinstance(kind, str)]                      # of a Literal
        if isinstance(value, np.generic):
            value = value.item()
        if float in kinds and type(value) is int and abs(value) < 2**1000:
            value = float(value)
        if Path in kinds and isinstance(value, str):
            value = Path(value)
        if not (type(value) in kinds or (isinstance(value, str) and value in texts)
                or (Path in kinds and isinstance(value, Path))):
            named  = [kind.__name__ for kind in kinds if isinstance(kind, type) and kind is not type(None)]
            needed = " or ".join(texts) or f"of type {' or '.join(named)}"
            raise ConfigError(f"{field.name} must be {needed}, not {value!r}")
        object.__setattr__(settings, field.name, value)
