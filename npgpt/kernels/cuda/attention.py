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
from npgpt.tensor.precision import accumulator, is_narrow

FORWARD  = {("float32", 32): (64, 64), ("float32", 64): (64, 32), ("float32", 128): (32, 32),
            ("float64", 32): (32, 32), ("float64", 64): (32, 32), ("float64", 128): (16, 16)}
BACKWARD = {("float32", 32): (32, 32), ("float32", 64): (32, 32), ("float32", 128): (16, 16),
            ("float64", 32): (16, 16), ("float64", 64): (16, 16)}
"""(type, head size up to) → queries and keys of a tile: as many as fit in 48 KiB of shared memory."""

OWN         = 64                       # rows of a block of tensor cores, 16 for each of its warps
FORWARD_16  = {32: 64, 64: 64, 96: 32, 128: 32}
BACKWARD_16 = {32: 64, 64: 64, 96: 32, 128: 16}
"""Head size up to → the others that it takes at once."""


class Tiles(NamedTuple):
    """How the work is shared out. queries, keys: of a block that owns such.  shared: bytes of a block."""

    file: str
    end: str                           # of the kernels' names
    constants: tuple[int, ...]
    queries: int
    keys: int
    threads: int
    shared: int


def attention_forward(q, k, v, causal=True, key_mask=None, segments=None, dropout=0.0, dropout_key=None):
    tiles = _tiles(q.dtype, q.shape[-1], forward=True)
    if not tiles or not _covered((q, k, v), key_mask, segments):
        return NotImplemented
    xp = array_module(q)
    B, H, T, D = q.shape
    y   = xp.empty((B, T, H, D), q.dtype).swapaxes(1, 2)                      # so that merging heads is free
    lse = xp.empty((B, H, T, 1), accumulator(q.dtype))
    kept, grown, drops = _dropout(xp, q, k, dropout, dropout_key)
    cuda.launch(tiles.file, f"attention_forward{tiles.end}", B * H * -(-T // tiles.queries), *_strided(q),
                *_strided(k), *_strided(v), *_masks(xp, q, key_mask, segments), kept, *_strided(y), lse,
                *_sizes(q, k, causal, key_mask, segments), grown, constants=(*tiles.constants, drops),
                shared=tiles.shared, threads=tiles.threads)
    return y, (q, k, v, causal, key_mask, segments, dropout, dropout_key, y, lse)


def attention_backward(dy, saved):
    q, k, v, causal, key_mask, segments, dropout, dropout_key, y, lse = saved
    tiles = _tiles(q.dtype, q.shape[-1], forward=False)
    if not tiles or not _covered((q, k, v, dy, y), key_mask, segments):
        return NotImplemented
    if not cuda.covers(lse) or lse.dtype != accumulator(q.dtype):
        return NotImplemented
    xp = array_module(q)
    B, H, T, D = q.shape
    product    = xp.empty(lse.shape, lse.dtype)
    dq, dk, dv = side_by_side(q, k, v)
    kept, grown, drops = _dropout(xp, q, k, dropout, dropout_key)
    cuda.launch("attention.cu", "attention_products", -(-product.size // (cuda.THREADS // 32)),
                *_strided(dy), *_strided(y), product, product.size, H, T, D)
    arrays  = (*_strided(q), *_strided(k), *_strided(v), *_strided(dy),
               *_masks(xp, q, key_mask, segments), kept, lse, product)
    sizes   = (*_sizes(q, k, causal, key_mask, segments), grown)
    options = {"constants": (*tiles.constants, drops), "shared": tiles.shared, "threads": tiles.threads}
    cuda.launch(tiles.file, f"attention_backward_q{tiles.end}", B * H * -(-T // tiles.queries), *arrays,
                *_strided(dq), *sizes, **options)
    cuda.launch(tiles.file, f"attention_backward_kv{tiles.end}",
                B * k.shape[1] * -(-k.shape[2] // tiles.keys), *arrays, *_strided(dk), *_strided(dv), *sizes,
                **options)
    return dq, dk, dv


@functools.cache
def _tiles(dtype, width, forward):
    """For heads of that type and width; None where there are no kernels for them."""
    if is_narrow(dtype):
        for D, count in (FORWARD_16 if forward else BACKWARD_16).items():
            if width <= D:
                rows   = OWN + 2 * count if forward else 2 * OWN + 3 * count  # each D + 8 numbers of 2 bytes
                shared = 2 * rows * (D + 8) + (0 if forward else 32 * count)
                return Tiles("attention_16_bits.cu", "_16", (D, count), OWN, OWN, 2 * OWN, shared)
    for (name, D), (rows, keys) in (FORWARD if forward else BACKWARD).items():
        if name == dtype.name and width <= D:
            size = (rows + keys if forward else 2 * (rows + keys)) * (D + 1) + rows * (keys + 1)
            return Tiles("attention.cu", "", (D, rows, keys), rows, keys, cuda.THREADS,
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
    """Which probabilities are kept, as bits; by how much they grow; and whether there is dropout, 0 or 1."""
    if not (dropout and key):
        return _nothing(xp, "uint16", q.device.id), 1.0, 0
    return kept_bits(xp, (*q.shape[:3], k.shape[2]), dropout, key), 1 / share_kept(dropout), 1


def _sizes(q, k, causal, key_mask, segments):
    return (q.shape[1], k.shape[1], q.shape[2], k.shape[2], q.shape[3], int(causal),
            int(key_mask is not None), int(segments is not None), q.shape[3] ** -0.5)
