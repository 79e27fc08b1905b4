"""The sum of squares of a flat array, Σ xₙ²: the square of its norm, by which gradients are clipped (Pascanu,
Mikolov & Bengio 2013). There is no backward: this happens after it.
"""

from npgpt.tensor import accelerated


@accelerated
def sum_of_squares(x):
    """x: (n,)  →  0-d"""
    return x @ x
