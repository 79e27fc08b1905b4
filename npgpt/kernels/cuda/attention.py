"""Attention by tiles: no score leaves the chip, and memory grows with T, not with T². One launch forward;
backward makes the scores again, once for dq and once for dk and dv, so that no two blocks add to one sum.
"""

from npgpt.kernels.cuda import launch as cuda
from npgpt.tensor import array_module
from npgpt.tensor.precision import accumulator

FORWARD  = {("float32", 32): (64, 64), ("float32", 64): (64, 32), ("float32", 128): (32, 32),
            ("float64", 32): (64, 32), ("float64", 64): (32, 32), ("float64", 128): (16, 16)}
BACKWARD = {("float32", 32): (32, 32), ("float32", 64): (32, 32), ("float32", 128): (16, 16),
            ("float64", 32): (16, 16), ("float64", 64): (16, 16)}
"""(type, head size up to) → queries and keys of a tile: as many as fit in 48 KiB of shared memory."""


def attention_forward(q, k, v, causal=True, key_mask=None, segments=None, dropout=0.0, dropout_key=None):
    tile = _tile(FORWARD, q, k, v, key_mask, segments)
    if not tile or (dropout and dropout_key):
        return NotImplemented
    xp = array_module(q)
    B, H, T, _ = q.shape
    D, rows, keys = tile
    y, lse = xp.empty(q.shape, q.dtype), xp.empty((B, H, T, 1), accumulator(q.dtype))
    shared = cuda.bytes_of((rows + keys) * (D + 1) + rows * (keys + 1), q.dtype)
    cuda.launch("attention.cu", "attention_forward", B * H * -(-T // rows), *_strided(q), *_strided(k),
                *_strided(v), *_masks(xp, key_mask, segments), y, lse,
                *_sizes(q, k, causal, key_mask, segments), constants=tile, shared=shared)
    return y, (q, k, v, causal, key_mask, segments, dropout, dropout_key, y, lse)


def attention_backward(dy, saved):
    q, k, v, causal, key_mask, segments, dropout, dropout_key, y, lse = saved
    tile = _tile(BACKWARD, q, k, v, key_mask, segments, dy)
    if not tile or (dropout and dropout_key) or not cuda.covers(y, sums=(lse,)):
        return NotImplemented
    xp = array_module(q)
    B, H, T, _ = q.shape
    D, rows, keys = tile
    product    = xp.empty(lse.shape, lse.dtype)
    dq, dk, dv = (xp.empty(array.shape, array.dtype) for array in (q, k, v))
    cuda.launch("attention.cu", "attention_products", -(-product.size // (cuda.THREADS // 32)),
                *_strided(dy), y, product, product.size, H, T, q.shape[-1])
    arrays = (*_strided(q), *_strided(k), *_strided(v), *_strided(dy), *_masks(xp, key_mask, segments), lse,
              product)
    sizes  = _sizes(q, k, causal, key_mask, segments)
    shared = cuda.bytes_of(2 * (rows + keys) * (D + 1) + rows * (keys + 1), q.dtype)
    cuda.launch("attention.cu", "attention_backward_q", B * H * -(-T // rows), *arrays, dq, *sizes,
                constants=tile, shared=shared)
    cuda.launch("attention.cu", "attention_backward_kv", B * k.shape[1] * -(-k.shape[2] // keys), *arrays, dk,
                dv, *sizes, constants=tile, shared=shared)
    return dq, dk, dv


def _tile(tiles, q, k, v, key_mask, segments, *others):
    """D, queries and keys of a tile; None if the kernels do not take these arrays."""
    arrays = (q, k, v, *others)
    if any(array.size == 0 or array.dtype != q.dtype or array.strides[-1] != array.dtype.itemsize
           for array in arrays):
        return None
    if key_mask is not None and not (key_mask.dtype == bool and key_mask.flags.c_contiguous):
        return None
    if segments is not None and not (segments.dtype.name == "int64" and segments.flags.c_contiguous):
        return None
    kind, width = accumulator(q.dtype), q.shape[-1]
    return next(((D, *tile) for (name, D), tile in tiles.items() if name == kind and width <= D), None)


def _strided(array):
    """An array and how far apart its examples, heads and rows are, in elements."""
    return array, *(stride // array.dtype.itemsize for stride in array.strides[:3])


def _masks(xp, key_mask, segments):
    """What is not there is an array that is not looked at."""
    return (xp.empty((1,), "bool") if key_mask is None else key_mask,
            xp.empty((1,), "int64") if segments is None else segments)


def _sizes(q, k, causal, key_mask, segments):
    return (q.shape[1], k.shape[1], q.shape[2], k.shape[2], q.shape[3], int(causal),
            int(key_mask is not None), int(segments is not None), q.shape[3] ** -0.5)
