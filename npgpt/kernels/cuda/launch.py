"""Launching a kernel: compiled by CuPy from the .cu file beside its twin, for the type at hand, when it is
first needed. CuPy keeps what it has compiled in ~/.cupy/kernel_cache.

A kernel is a template of T, the type of its first array, or none if that is not one of TYPES. It sees
addresses only: an array that it is given must be C-contiguous, or its strides be given too. Integers are
`long long` there, other numbers `double`. They are to be Python's: of one of NumPy's, CuPy hands over its own
bytes, be they 4 or 8, and without a word also where the kernel takes an address.
"""

import functools
from pathlib import Path
from typing import Any

import numpy as np

from npgpt.tensor.device import Array, array_module
from npgpt.tensor.precision import accumulator

HERE    = Path(__file__).parent
TYPES   = {"float32": "float", "float64": "double", "bfloat16": "bfloat16", "float16": "float16"}
OPTIONS = ("-std=c++17", "-prec-div=false", "-prec-sqrt=false")     # float32: to 2 units in the last place
THREADS = 256                          # of a block
PACK    = 16                           # bytes that a thread reads or writes at once (common.cuh)
SHARED  = 48 << 10                     # bytes of shared memory that a block gets without asking for more
BLOCKS  = 1024                         # enough to fill a GPU, where a block can take on any number of rows


def covers(*arrays: Array, sums: tuple[Array, ...] = ()) -> bool:
    """Whether kernels take these: not empty, C-contiguous, of one type that they are compiled for.

    sums: those that are of the type in which the others' sums are kept.
    """
    dtype = arrays[0].dtype
    if not c_type(dtype) or (sums and sums[0].dtype != accumulator(dtype)):
        return False
    for group in arrays, sums:
        for array in group:
            if array.dtype != group[0].dtype or not array.size or not array.flags.c_contiguous:
                return False
    return True


@functools.cache
def c_type(dtype: Any) -> str | None:
    """As it is called in a .cu file; None if there are no kernels for it."""
    return TYPES.get(dtype.name)


def bytes_of(size: int, dtype: Any) -> int:
    """Of so many sums of numbers of this type."""
    return size * np.dtype(accumulator(dtype)).itemsize


def blocks_of_packs(array: Array) -> int:
    """How many blocks a kernel needs that gives every thread a pack of the array."""
    return -(-array.nbytes // (PACK * THREADS))


def number(xp: Any, value: Any, dtype: Any) -> Array:
    """A number as kernels read it from the device: one of the host's, or what was computed there."""
    there = isinstance(value, xp.ndarray)
    return value.astype(dtype, copy=False) if there else xp.full((), float(value), dtype)


def signed(word: int) -> int:
    """The 64 bits of a number below 2⁶⁴, as CuPy takes integers: Python's, for NumPy's keep their size."""
    word = int(word)
    return word - (1 << 64) if word >> 63 else word


def launch(file: str, kernel: str, blocks: int, *args: Any, constants: tuple[int, ...] = (),
           shared: int = 0, threads: int = THREADS) -> None:
    """Queues a kernel of a .cu file; it does not wait for it.

    constants: what the template takes beside T.  shared: bytes of shared memory a block.
    """
    more     = (shared, args[0].device.id) if shared > SHARED else None
    function = _function(array_module(args[0]), file, kernel, args[0].dtype, constants, more)
    function((blocks,), (threads,), args, shared_mem=shared)


@functools.cache
def _function(cupy: Any, file: str, kernel: str, dtype: Any, constants: tuple[int, ...],
              more: tuple[int, int] | None) -> Any:
    """more: how many bytes of shared memory are to be asked for, and on which device, if any are."""
    template   = ", ".join(filter(None, (c_type(dtype), *map(str, constants))))
    expression = f"{kernel}<{template}>" if template else kernel
    module     = cupy.RawModule(code=source(file), options=OPTIONS, name_expressions=(expression,))
    function   = module.get_function(expression)
    if more:
        function.max_dynamic_shared_size_bytes = more[0]
    return function


@functools.cache
def source(file: str) -> str:
    """A .cu file, with what it includes in its place: the compiler is given text, not folders."""
    lines = (HERE / file).read_text(encoding="utf-8").splitlines(keepends=True)
    for number, line in enumerate(lines):
        if line.startswith('#include "'):
            header = (HERE / line.split('"')[1]).read_text(encoding="utf-8")
            lines[number] = f'{header}#line {number + 2} "{file}"\n'
    return "".join(lines)
