"""Sums over many rows, in two stages and a fixed order: each block leaves what its rows add up to, and
`add_up` adds these.
"""

from typing import NamedTuple

from npgpt.kernels.cuda import launch as cuda
from npgpt.tensor.device import Array, array_module

WARPS = 32                             # of a block that adds up


class Plan(NamedTuple):
    """blocks, threads of each, bytes of shared memory of each"""

    blocks: int
    threads: int
    shared: int


def plan(rows: int, x: Array, kinds: int) -> Plan | None:
    """For a kernel whose warps go through the rows of x (..., C), and keep so many kinds of sums of their
    columns (columns.cuh); None if they do not fit. A warp has four rows at least for one write of its sums.
    """
    width = 32 * cuda.PACK // x.dtype.itemsize
    each  = cuda.bytes_of(kinds * width * -(-x.shape[-1] // width), x.dtype)
    warps = min(cuda.SHARED // each, cuda.THREADS // 32)
    return Plan(max(1, min(cuda.BLOCKS, rows // (4 * warps))), 32 * warps, each * warps) if warps else None


def add_up(partial: Array) -> Array:
    """partial: (blocks, ...) of float32 or float64  →  its sum over the blocks: (...)"""
    total = array_module(partial).empty(partial.shape[1:], partial.dtype)
    cuda.launch("columns.cu", "add_up", -(-total.size // 32), partial, total, len(partial), total.size,
                threads=32 * WARPS, shared=cuda.bytes_of(32 * WARPS, partial.dtype))
    return total
