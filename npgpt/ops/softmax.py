"""Softmax: any row of numbers becomes a row of probabilities.

    yᵢ = e^xᵢ / Σⱼ e^xⱼ
A constant taken from the whole row changes nothing, so max(x) is taken first, and nothing overflows.

Backward.  With Z = Σⱼ e^xⱼ, by the quotient rule:    ∂yⱼ/∂xᵢ = (δᵢⱼ e^xⱼ Z − e^xⱼ e^xᵢ)/Z² = yⱼ (δᵢⱼ − yᵢ)
hence    dxᵢ = Σⱼ dyⱼ yⱼ (δᵢⱼ − yᵢ) = yᵢ (dyᵢ − Σⱼ dyⱼ yⱼ)
In words: an input is pushed up as far as its output's gradient exceeds the average gradient under y. The
pushes sum to 0, for a constant added to the row changes nothing.
"""

from npgpt.tensor import accelerated, array_module


@accelerated
def softmax_forward(x):
    """x: (..., C)  →  y: (..., C), rows that sum to 1"""
    e = array_module(x).exp(x - x.max(-1, keepdims=True))
    y = e / e.sum(-1, keepdims=True)
    return y, (y,)


@accelerated
def softmax_backward(dy, saved):
    """dy: (..., C)  →  dx: (..., C)"""
    y, = saved
    return y * (dy - (dy * y).sum(-1, keepdims=True))
