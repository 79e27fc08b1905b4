"""The sum of squares of a flat array, Σ xₙ²: the square of its norm, by which gradients are clipped."""

from npgpt.tensor import accelerated


@accelerated
def sum_of_squares(x):
    """x: (n,)  →  0-d"""
    return x @ x
