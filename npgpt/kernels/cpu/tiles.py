"""Tiles: large arrays a cache-sized piece at a time."""

from collections.abc import Iterator

import numpy as np

TILE_BYTES = 512 * 1024        # of one array; smaller tiles lose more to Python than they gain in cache


def are_plain(*arrays: np.ndarray) -> bool:
    """Whether all are contiguous, and of one and the same type of real numbers."""
    dtype = arrays[0].dtype
    return dtype.kind == "f" and all(array.dtype == dtype and array.flags.c_contiguous for array in arrays)


def flat_tiles(*arrays: np.ndarray) -> Iterator[tuple[np.ndarray, ...]]:
    """The same piece of each of several contiguous arrays of one size, as flat views, from first to last."""
    flat = [array.reshape(-1) for array in arrays]
    size = TILE_BYTES // arrays[0].itemsize
    for start in range(0, arrays[0].size, size):
        yield tuple(array[start:start + size] for array in flat)


def row_tiles(*arrays: np.ndarray) -> Iterator[tuple[np.ndarray, ...]]:
    """The same rows of each of several contiguous arrays (..., C), each with its own C, as 2-D views, from
    first to last.
    """
    rows = [array.reshape(-1, array.shape[-1]) for array in arrays]
    size = max(1, TILE_BYTES // (rows[0].shape[1] * rows[0].itemsize))
    for start in range(0, len(rows[0]), size):
        yield tuple(array[start:start + size] for array in rows)
