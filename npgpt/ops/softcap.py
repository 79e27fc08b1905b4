"""Soft-capping (Gemma 2, Gemma Team 2024): scores are bent so that none leaves (−c, c).

    t = tanh(x/c)         y = c t

Backward.  tanh' = 1 − tanh², so y' = c (1 − t²)/c = 1 − t² and    dx = dy (1 − t²)
In words: small scores pass as they are; the nearer one is to the cap, the less it is asked to move.
"""

from npgpt.tensor import accelerated, array_module


@accelerated
def softcap_forward(x, cap):
    """x: (...)  cap: c > 0  →  y: (...)"""
    t = array_module(x).tanh(x * (1 / cap))
    return cap * t, (t,)


@accelerated
def softcap_backward(dy, saved):
    """dy: (...)  →  dx: (...)"""
    t, = saved
    return dy * (1 - t * t)
