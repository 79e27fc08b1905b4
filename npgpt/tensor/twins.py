"""Twins: a faster function with the name and signature of a formula, found by that name.

The twin of `layernorm_forward` in npgpt/ops/layernorm.py is `layernorm_forward` in
npgpt/kernels/cpu/layernorm.py (for NumPy arrays) or npgpt/kernels/cuda/layernorm.py (for CuPy arrays). A twin
that does not cover a call returns `NotImplemented`, and the formula runs. What a twin returns, `saved`
included, is what the formula would have returned, up to rounding: a test holds every twin to that.
"""

import functools
import importlib
import importlib.util
from collections.abc import Callable
from typing import Any

import numpy as np

from npgpt.tensor.device import array_module


def accelerated(formula: Callable) -> Callable:
    """Decorates a formula: calls its twin for the kind of array in the first argument, where there is one.

    `.reference` is the formula itself.
    """
    @functools.wraps(formula)
    def op(*args: Any, **kwargs: Any) -> Any:
        twin = find_twin(formula, "cpu" if array_module(args[0]) is np else "cuda")
        result = twin(*args, **kwargs) if twin else NotImplemented
        return formula(*args, **kwargs) if result is NotImplemented else result

    op.reference = formula      # type: ignore[attr-defined]
    return op


@functools.cache
def find_twin(formula: Callable, kind: str) -> Callable | None:
    """The twin of a formula among the kernels of one kind, "cpu" or "cuda"; None if there is none."""
    package, _, op = formula.__module__.partition(".ops.")
    place = f"{package}.kernels.{kind}.{op}"
    try:
        found = op and importlib.util.find_spec(place)
    except ModuleNotFoundError:            # a package that has formulas, but no kernels of this kind
        found = None
    return getattr(importlib.import_module(place), formula.__name__, None) if found else None
