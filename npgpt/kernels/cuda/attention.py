"""Attention by tiles: no score leaves the chip, and memory grows with T, not with T². One launch forward;
backward makes the scores again, once for dq and once for dk and dv, so that no two blocks add to one sum.
Numbers of 16 bits are multiplied by tensor cores. Only of what dropout keeps there is a bit for each score.
"""

import functools
from typing import NamedTuple

from npgpt.kernels.cuda import launch as cuda
from npgpt.kernels.cuda.dropout import kept_bits
from npgpt.kernels.heads import side_by_side
from npgpt.ops.dropout import share_kept
from npgpt.tensor import array_module
from npgpt.tensor.device import AMPERE, TURING, capability
from npgpt.tensor.precision import accumulator, is_narrow

FORWARD  = {("float32", 32): (64, 64), ("float32", 64): (64, 32), ("float32", 128): (32, 32),
            ("float64", 32): (32, 32), ("float64", 64): (32, 32), ("float64", 128): (16, 16)}
BACKWARD = {("float32", 32): (32, 32), ("float32", 64): (32, 32), ("float32", 128): (16, 16),
            ("float64", 32): (16, 16), ("float64", 64): (16, 16)}
"""(type, head size up to) → queries and keys of a tile: as many as fit in 48 KiB of shared memory."""

WARPS        = 4                       # of a block of tensor cores
ON_CORES     = {"forward":     {32: (64, 32), 64: (64, 32), 96: (32, 16), 128: (32, 16)},
                "backward_q":  {32: (32, 32), 64: (32, 32), 96: (32, 16), 128: (16, 16)},
                "backward_kv": {32: (32, 32), 64: (32, 32), 96: (32, 16), 128: (16, 16)}}
WHEN_CROWDED = {"backward_kv": {64: (64, 16)}}
"""Kernel → head size up to → how many others it takes at once, how many rows of its own each warp: as many as
the registers hold; and where they hold dropout's bits, too, or on Turing what goes to shared memory."""


class Tiles(NamedTuple):
    """A kernel and how its work is shared out. rows: those that a block owns.  shared: bytes of a block."""

    file: str
    kernel: str
    constants: tuple[int, ...]
    rows: int
    threads: int
    shared: int


def attention_forward(q, k, v, causal=True, key_mask=None, segments=None, dropout=0.0, dropout_key=None):
    drops = int(bool(dropout and dropout_key))
    tiles = _tiles(q.dtype, q.shape[-1], "forward", drops, capability(q))
    if not tiles or not _covered((q, k, v), key_mask, segments):
        return NotImplemented
    xp = array_module(q)
    B, H, T, D = q.shape
    y   = xp.empty((B, T, H, D), q.dtype).swapaxes(1, 2)                      # so that merging heads is free
    lse = xp.empty((B, H, T, 1), accumulator(q.dtype))
    kept, grown = _dropout(xp, q, k, dropout, dropout_key)
    _launch(tiles, B * H, T, *_strided(q), *_strided(k), *_strided(v), *_masks(xp, q, key_mask, segments),
            kept, *_strided(y), lse, *_sizes(q, k, causal, key_mask, segments), grown)
    return y, (q, k, v, causal, key_mask, segments, dropout, dropout_key, y, lse)


def attention_backward(dy, saved):
    q, k, v, causal, key_mask, segments, dropout, dropout_key, y, lse = saved[:10]
    drops = int(bool(dropout and dropout_key))
    of_q, of_kv = (_tiles(q.dtype, q.shape[-1], kernel, drops, capability(q))
                   for kernel in ("backward_q", "backward_kv"))
    if not of_q or not _covered((q, k, v, dy, y), key_mask, segments):
        return NotImplemented
    if not cuda.covers(lse) or lse.dtype != accumulator(q.dtype):
        return NotImplemented
    xp = array_module(q)
    B, H, T, _ = q.shape
    product    = products(dy, y)
    dq, dk, dv = side_by_side(q, k, v)
    kept, grown = _dropout(xp, q, k, dropout, dropout_key)
    arrays  = (*_strided(q), *_strided(k), *_strided(v), *_strided(dy),
               *_masks(xp, q, key_mask, segments), kept, lse, product)
    sizes   = (*_sizes(q, k, causal, key_mask, segments), grown)
    _launch(of_q, B * H, T, *arrays, *_strided(dq), *sizes)
    _launch(of_kv, B * k.shape[1], k.shape[2], *arrays, *_strided(dk), *_strided(dv), *sizes)
    return dq, dk, dv


def products(dy, y):
    """dy, y: (B, H, T, D)  →  Σ dy y of each row: (B, H, T, 1)"""
    B, H, T, D = y.shape
    product = array_module(y).empty((B, H, T, 1), accumulator(y.dtype))
    lanes   = 1 << (-(-D * y.dtype.itemsize // cuda.PACK) - 1).bit_length()   # of a row, with a pack each
    cuda.launch("attention.cu", "attention_products", -(-product.size * lanes // cuda.THREADS),
                *_strided(dy), *_strided(y), product, product.size, H, T, D, lanes)
    return product


def _launch(tiles, heads, length, *args):
    cuda.launch(tiles.file, tiles.kernel, heads * -(-length // tiles.rows), *args, constants=tiles.constants,
                shared=tiles.shared, threads=tiles.threads)


@functools.cache
def _tiles(dtype, width, kernel, drops, generation):
    """For heads of that type and width; None where there is no kernel for them.  drops: 0 or 1.  generation:
    of the GPU, its compute capability.
    """
    forward = kernel == "forward"
    if is_narrow(dtype):
        if generation < TURING:
            return None
        crowded = drops or generation < AMPERE
        sizes = ON_CORES[kernel] | (WHEN_CROWDED.get(kernel, {}) if crowded else {})
        for D, (count, own) in sizes.items():
            if width <= D:
                rows   = WARPS * own
                tiles  = rows + 2 * count if forward else 2 * rows + 3 * count          # of D + 8 numbers
                shared = 2 * tiles * (D + 8) + (0 if forward else (16 + rows // 4) * count)
                return Tiles("attention_16_bits.cu", f"attention_{kernel}_16", (D, count, own, drops),
                             rows, 32 * WARPS, shared)
    for (name, D), (rows, keys) in (FORWARD if forward else BACKWARD).items():
        if name == dtype.name and width <= D:
            size = (rows + keys if forward else 2 * (rows + keys)) * (D + 1) + rows * (keys + 1)
            own  = keys if kernel == "backward_kv" else rows
            return Tiles("attention.cu", f"attention_{kernel}", (D, rows, keys, drops), own, cuda.THREADS,
                         cuda.bytes_of(size, dtype))
    return None


def _covered(arrays, key_mask, segments):
    """Whether the kernels take these."""
    if any(array.size == 0 or array.dtype != arrays[0].dtype or array.strides[-1] != array.dtype.itemsize
           for array in arrays):
        return False
    if key_mask is not None and not (key_mask.dtype == bool and key_mask.flags.c_contiguous):
        return False
    return segments is None or (segments.dtype == "int64" and segments.flags.c_contiguous)


def _strided(array):
    """An array and how far apart its examples, heads and rows are, in elements."""
    return array, *(stride // array.dtype.itemsize for stride in array.strides[:3])


def _masks(xp, q, key_mask, segments):
    return (_nothing(xp, "bool", q.device.id) if key_mask is None else key_mask,
            _nothing(xp, "int64", q.device.id) if segments is None else segments)


@functools.cache
def _nothing(xp, dtype, device):
    """What is not there is an array that is not looked at."""
    return xp.empty((1,), dtype)


def _dropout(xp, q, k, dropout, key):
    """Which probabilities are kept, as bits; and by how much they grow."""
    if not (dropout and key):
        return _nothing(xp, "uint16", q.device.id), 1.0
    return kept_bits(xp, (*q.shape[:3], k.shape[2]), dropout, key), 1 / share_kept(dropout)


def _sizes(q, k, causal, key_mask, segments):
    return (q.shape[1], k.shape[1], q.shape[2], k.shape[2], q.shape[3], int(causal),
            int(key_mask is not None), int(segments is not None), q.shape[3] ** -0.5)
