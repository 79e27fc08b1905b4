"""Softmax (Bridle 1990): any row of numbers becomes a row of probabilities.

    yᵢ = e^xᵢ / Σⱼ e^xⱼ
A constant m taken from the whole row changes nothing: above and below it is a factor e^(−m). So m = max(x) is
taken first, and nothing overflows; and as y does not depend on m, nothing comes back through the max,
whichever element it is. A row that is −∞ throughout has no softmax and gives NaN.

Backward.  With Z = Σⱼ e^xⱼ, ∂Z/∂xᵢ = e^xᵢ, by the quotient rule:
    ∂yⱼ/∂xᵢ = (δᵢⱼ e^xⱼ Z − e^xⱼ e^xᵢ)/Z² = yⱼ (δᵢⱼ − yᵢ)
hence
    dxᵢ = Σⱼ dyⱼ yⱼ (δᵢⱼ − yᵢ) = yᵢ (dyᵢ − Σⱼ dyⱼ yⱼ)
In words: Σⱼ dyⱼ yⱼ is the mean of dy under the probabilities y. The gradient of an input is how far that of
its output lies above this mean, times its probability. These sum to 0, as they must: to raise the whole row
changes nothing.
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
