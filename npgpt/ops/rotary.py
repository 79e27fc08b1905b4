"""Rotary position (RoPE, Su et al. 2021): the channels of a query or a key, taken in pairs, are turned by an
angle that grows with the place t. Pair i has its own rate θᵢ (npgpt/layers/position.py):

    a' = a cos tθᵢ − b sin tθᵢ        b' = a sin tθᵢ + b cos tθᵢ

With R(α) for turning by α, R(α)ᵀ = R(−α), a query at t and a key at s have the product
⟨R(tθ) q, R(sθ) k⟩ = ⟨q, R((s − t)θ) k⟩: attention sees how far apart two positions are, not where they stand.

Which channels are a pair is a convention, and weights belong to one of the two: neighbours (2i, 2i + 1), as
in the paper ("interleaved"), or channels half a head apart (i, i + D/2), as Hugging Face's Llama. Each is the
other with the channels in another order.

Backward.  The map is linear, and a rotation: its transpose is the rotation by the opposite angle,
    da = da' cos tθᵢ + db' sin tθᵢ    db = −da' sin tθᵢ + db' cos tθᵢ
In words: the gradient is turned back by what the channels were turned.
"""

from npgpt.tensor import accelerated, array_module


@accelerated
def rotary_forward(x, rotation, interleaved=False):
    """x: (B, H, T, D)  →  y: (B, H, T, D), D even

    rotation: the pair cos, sin of the angles, (T, D/2) each, or (B, 1, T, D/2) where the examples stand at
    different places; they are constants and have no gradient.
    """
    cos, sin = rotation
    return _turned(x, cos, sin, interleaved), (rotation, interleaved)


@accelerated
def rotary_backward(dy, saved):
    """dy: (B, H, T, D)  →  dx: (B, H, T, D)"""
    (cos, sin), interleaved = saved
    return _turned(dy, cos, -sin, interleaved)


def _turned(x, cos, sin, interleaved):
    y = array_module(x).empty(x.shape, x.dtype)
    (a, b), (c, d) = _pairs(x, interleaved), _pairs(y, interleaved)
    c[...] = a * cos - b * sin
    d[...] = a * sin + b * cos
    return y


def _pairs(x, interleaved):
    """The first and the second channel of every pair: two views (..., D/2)."""
    half = x.shape[-1] // 2
    return (x[..., 0::2], x[..., 1::2]) if interleaved else (x[..., :half], x[..., half:])
