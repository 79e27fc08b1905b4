"""Numbers of 16 bits, on a GPU: kept and multiplied in matrices as they are, computed with as float32.

float16 (5 bits of exponent, 10 of fraction) and bfloat16 (8 and 7, float32's first half) halve the memory and
the traffic, and tensor cores multiply matrices of them several times faster, adding up in float32. For all
else they are too coarse: a bfloat16 sum of ones ends at 256, for 257 is none. So a formula that is given
arrays of 16 bits runs in float32, in between two roundings:

    its 16-bit arrays are widened → formula → what is as large as they are is rounded back

A statistic, one number for a whole row or for all (mean, rstd, ℓ, the loss), stays float32: it costs nothing
to keep, and what is computed from it is only as exact as it is. So do kernels leave the gradients of weights,
biases and gains, sums over all rows which are to be added up in float32 anyway.

`npgpt.tensor.twins.accelerated` does this; formulas do not know of it.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from npgpt.tensor.device import Array

NARROW = ("float16", "bfloat16")


@functools.cache
def is_narrow(dtype: Any) -> bool:
    """Whether such numbers have 16 bits."""
    return dtype.name in NARROW


@functools.cache
def accumulator(dtype: Any) -> str:
    """The type in which sums of such numbers are kept: float32 for those of 16 bits, else the type itself."""
    name = getattr(dtype, "name", dtype)
    return "float32" if name in NARROW else name


def in_float32(formula: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
    """What the formula gives for these arguments, computed in float32 if any of their arrays has 16 bits."""
    narrow = next((a.dtype for a in arrays_in((args, *kwargs.values())) if is_narrow(a.dtype)), None)
    if narrow is None:
        return formula(*args, **kwargs)
    seen: dict[int, tuple[Array, Array]] = {}    # id of an array in the formula → it, and what it is outside

    def widen(array: Array) -> Array:
        wide = array.astype(np.float32) if is_narrow(array.dtype) else array
        seen[id(wide)] = wide, array
        return wide

    def round_back(array: Array) -> Array:
        if id(array) not in seen:
            wide = array.ndim > 0 and array.dtype == np.float32
            seen[id(array)] = array, array.astype(narrow) if wide else array
        return seen[id(array)][1]

    def round_saved(array: Array) -> Array:
        return array if array.ndim and array.shape[-1] == 1 and id(array) not in seen else round_back(array)

    result = formula(*map_arrays(widen, args),
                     **{name: map_arrays(widen, value) for name, value in kwargs.items()})
    if type(result) is not tuple:
        return map_arrays(round_back, result)
    outside = [round_back(part) if hasattr(part, "dtype") else part for part in result]
    return tuple(map_arrays(round_saved, part) if type(part) is tuple else part for part in outside)


def arrays_in(value: Any) -> Iterator[Array]:
    """Every array in a nest of tuples, in order. A named tuple, such as a Key, holds none."""
    if type(value) is tuple:
        for part in value:
            yield from arrays_in(part)
    elif hasattr(value, "dtype"):
        yield value


def map_arrays(function: Callable[[Array], Array], value: Any) -> Any:
    """The same nest of tuples with function(array) in place of each array."""
    if type(value) is tuple:
        return tuple(map_arrays(function, part) for part in value)
    return function(value) if hasattr(value, "dtype") else value
