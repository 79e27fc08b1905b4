"""Dropout (Srivastava et al. 2014): elements become 0 with probability p, the others make up for it.

    y = m x / q            m: random, 1 with probability q = 1 − p, else 0     so that E[y] = q x/q = x

Backward.  ∂yᵢ/∂xⱼ = δᵢⱼ mᵢ/q:    dx = m dy / q
In words: what was dropped had no part in y, and gets no gradient; what was kept went in 1/q times, and so
does its gradient.

The mask is not stored: it is a pure function of the key and is made again (npgpt/tensor/random.py). It
compares 16 random bits, so q is taken as the nearest multiple of 2⁻¹⁶ above 0, and dividing by that same q
keeps the mean exactly.
"""

from npgpt.tensor import accelerated, array_module
from npgpt.tensor.random import keep_mask


@accelerated
def dropout_forward(x, p, key):
    """x: (B, ...)  p: 0 ≤ p < 1  key: npgpt.tensor.Key  →  y: (B, ...)"""
    return _drop(x, p, key), (p, key)


@accelerated
def dropout_backward(dy, saved):
    """dy: (B, ...)  →  dx: (B, ...)"""
    return _drop(dy, *saved)


def _drop(x, p, key):
    q = share_kept(p)
    return x * array_module(x).asarray(keep_mask(key, x.shape, q)) * (1 / q)


def share_kept(p: float) -> float:
    """q, a multiple of 2⁻¹⁶ above 0."""
    return max(round((1 - p) * 65536), 1) / 65536
