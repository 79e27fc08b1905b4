"""Reused memory: the C library is told once to keep the blocks that arrays give back.

A training step makes and drops the same large temporaries again and again. By default glibc returns each of
them to the kernel (munmap, or trimming the heap) and the next one costs a page fault every 4 KiB. Told to
keep freed blocks, it hands the same pages out again: a second step faults in no new page, and the arrays are
still plain `np.empty`. Where the C library is not glibc, nothing is done.

Shared memory: what a process allocates by `shared` stays one for it and those that are forked from it.
"""

import ctypes
import mmap
import sys
from typing import Any

import numpy as np

# The numbers of the options in glibc's malloc.h; mallopt(3) describes them.
M_TRIM_THRESHOLD = -1
M_MMAP_THRESHOLD = -3
M_ARENA_MAX = -8


def keep_freed_blocks() -> bool:
    """Sets three options of glibc's malloc for this process; returns whether it could.

    Blocks below 1 GiB come from the heap instead of a mapping of their own, the heap is never trimmed, and
    all threads share one heap (so that one thread's freed blocks serve another).
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:                       # another C library, musl for one
        return False
    return bool(mallopt(M_MMAP_THRESHOLD, 1 << 30) and mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
                and mallopt(M_ARENA_MAX, 1))


def shared(size: int, dtype: Any) -> np.ndarray:
    """A flat array of zeros in memory that processes forked later have in common with this one.

    Raises MemoryError.
    """
    try:
        memory = mmap.mmap(-1, max(1, size * np.dtype(dtype).itemsize))
    except (OSError, OverflowError) as error:
        raise MemoryError(f"no room for {size} numbers more") from error
    return np.frombuffer(memory, dtype, size)
