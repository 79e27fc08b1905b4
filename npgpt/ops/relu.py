"""The rectified linear unit (Nair & Hinton 2010): what is negative becomes 0.

    y = max(x, 0)

Backward.  y' is 1 where x > 0 and 0 where x < 0; at 0 there is no derivative, and 0 is taken:
    dx = dy [x > 0]
In words: a gate, open or shut; where it is shut nothing comes back.
"""

from npgpt.tensor import accelerated, array_module


@accelerated
def relu_forward(x):
    """x: (...)  →  y: (...)"""
    return array_module(x).maximum(x, 0), (x > 0,)


@accelerated
def relu_backward(dy, saved):
    """dy: (...)  →  dx: (...)"""
    positive, = saved
    return dy * positive
