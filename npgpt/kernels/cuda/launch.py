"""Launching a kernel: compiled by CuPy from the .cu file beside its twin, for the type at hand, when it is
first needed. CuPy keeps what it has compiled in ~/.cupy/kernel_cache.

A kernel is a template of T, the type of its first array. It sees addresses only: an array that it is given
must be C-contiguous, or its strides be given too. Integers are `long long` there, other numbers `double`.
"""

import functools
from pathlib import Path
from typing import Any

from npgpt.tensor.device import Array, array_module

HERE    = Path(__file__).parent
TYPES   = {"float32": "float", "float64": "double"}
OPTIONS = ("-std=c++17",)
THREADS = 256                          # of a block
EACH    = 4                            # elements of a thread (common.cuh)
SHARED  = 48 << 10                     # bytes of shared memory that a block gets without asking
BLOCKS  = 1024                         # enough to fill a GPU, where a block can take on any number of rows


def covers(*arrays: Array) -> bool:
    """Whether kernels take these: not empty, C-contiguous, of one type that they are compiled for."""
    return all(array.size and array.flags.c_contiguous and array.dtype == arrays[0].dtype
               for array in arrays) and arrays[0].dtype.name in TYPES


def blocks_of_elements(size: int) -> int:
    """How many blocks an elementwise kernel needs."""
    return -(-size // (EACH * THREADS))


def launch(file: str, kernel: str, blocks: int, *args: Any, constants: tuple[int, ...] = (),
           shared: int = 0) -> None:
    """Queues a kernel of a .cu file; it does not wait for it.

    constants: what the template takes beside T.  shared: bytes of shared memory a block.
    """
    first    = args[0]
    template = ", ".join([TYPES[first.dtype.name], *map(str, constants)])
    function = _function(array_module(first), file, f"{kernel}<{template}>")
    function((blocks,), (THREADS,), args, shared_mem=shared)


@functools.cache
def _function(cupy: Any, file: str, expression: str) -> Any:
    module = cupy.RawModule(code=source(file), options=OPTIONS, name_expressions=(expression,))
    return module.get_function(expression)


@functools.cache
def source(file: str) -> str:
    """A .cu file, with what it includes in its place: the compiler is given text, not folders."""
    header = (HERE / "common.cuh").read_text(encoding="utf-8")
    text   = (HERE / file).read_text(encoding="utf-8")
    return text.replace('#include "common.cuh"\n', f'{header}#line 2 "{file}"\n')
