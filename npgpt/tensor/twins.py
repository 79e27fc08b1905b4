"""Twins: a faster function with the name and signature of a formula, found by that name.

The twin of `layernorm_forward` in npgpt/ops/layernorm.py is `layernorm_forward` in
npgpt/kernels/cpu/layernorm.py (for NumPy arrays) or npgpt/kernels/cuda/layernorm.py (for CuPy arrays). A twin
that does not cover a call returns `NotImplemented`, and the formula runs. What a twin returns, `saved`
included, is what the formula would have returned, up to rounding: a test holds every twin to that. Behind
that in `saved` may stand what only the twin's own backward reads.

It is the same in a package of yours: the twin of an `@accelerated` function in mine/ops/window.py is that in
mine/kernels/cpu/window.py. A formula elsewhere, as in a notebook, has none.
"""

import functools
import importlib
import importlib.util
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from npgpt.tensor.device import array_module
from npgpt.tensor.precision import arrays_in, in_float32


def accelerated(formula: Callable | None = None, *, takes_16_bits: bool = False) -> Callable:
    """Decorates a formula: calls its twin for the kind of the first array among the arguments, where there is
    one.

    takes_16_bits: it is made of matrix products and of single operations, and so needs no wider type than its
    arrays have; others are computed in float32 then (npgpt/tensor/precision.py).
    `.reference` is the formula itself.
    """
    if formula is None:
        return functools.partial(accelerated, takes_16_bits=takes_16_bits)

    @functools.wraps(formula)
    def op(*args: Any, **kwargs: Any) -> Any:
        on_cpu = "cupy" not in sys.modules or \
            array_module(next(arrays_in((args, *kwargs.values())), None)) is np
        twin   = find_twin(formula, "cpu" if on_cpu else "cuda")
        result = twin(*args, **kwargs) if twin else NotImplemented
        if result is not NotImplemented:
            return result
        return formula(*args, **kwargs) if on_cpu or takes_16_bits else in_float32(formula, args, kwargs)

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
