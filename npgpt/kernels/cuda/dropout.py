"""Dropout from the same bits as NumPy's, made where they are used: the formula uploads a mask."""

import math
from typing import Any

from npgpt.kernels.cuda import launch as cuda
from npgpt.ops.dropout import share_kept
from npgpt.tensor import Key, array_module
from npgpt.tensor.device import Array


def dropout_forward(x, p, key):
    y = _drop(x, p, key)
    return NotImplemented if y is NotImplemented else (y, (p, key))


def dropout_backward(dy, saved):
    return _drop(dy, *saved)


def _drop(x, p, key):
    if not cuda.covers(x) or x.ndim == 0:
        return NotImplemented
    y     = array_module(x).empty(x.shape, x.dtype)
    each  = x.size // x.shape[0]
    tiles = -(-each // (16 * cuda.THREADS))
    cuda.launch("dropout.cu", "dropout", x.shape[0] * tiles, x, y, each, tiles, *_random(p, key),
                1 / share_kept(p))
    return y


def kept_bits(xp: Any, shape: tuple[int, ...], p: float, key: Key) -> Array:
    """Which elements of an array (B, ...) are kept: a bit each, an example's in words of 16, lowest first.
    → uint16 (B, words)
    """
    kept = xp.empty((shape[0], -(-math.prod(shape[1:]) // 16)), "uint16")
    cuda.launch("dropout.cu", "dropout_kept", -(-kept.size // cuda.THREADS), kept, *kept.shape,
                *_random(p, key))
    return kept


def _random(p: float, key: Key) -> tuple[int, ...]:
    """Where the random bits come from, and below what they are of elements that are kept."""
    words = (key.seed, key.stream, key.step, key.example, key.site)
    return *map(cuda.signed, words), round(share_kept(p) * 65536)
