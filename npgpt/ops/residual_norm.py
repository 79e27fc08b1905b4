"""A residual sum and the norm that reads it, as one op, so that a twin can do both while a row is at hand.

    s = x + h        y = norm(s)

Backward.  s has two readers: the norm, and the next sum on the residual road. Their gradients add:
    dx = dh = ds + (what the norm hands back for dy)    (residual.py)
In words: the road, along which ds came, is met by a side street. What is saved is what the norm saves, and
backward takes that of a norm alone as well: nothing was added then, and s is x.
"""

from npgpt.ops.layernorm import layernorm_backward, layernorm_forward
from npgpt.ops.residual import residual_backward, residual_forward
from npgpt.ops.rmsnorm import rmsnorm_backward, rmsnorm_forward
from npgpt.tensor import accelerated


@accelerated(takes_16_bits=True)
def residual_layernorm_forward(x, h, gamma, beta=None, eps=1e-5):
    """x, h: (..., C)  gamma: (C,)  beta: (C,) or None  →  (s, y): (..., C) each"""
    s, _ = residual_forward(x, h)
    y, saved = layernorm_forward(s, gamma, beta, eps)
    return (s, y), saved


@accelerated(takes_16_bits=True)
def residual_layernorm_backward(dy, saved):
    """dy: ds and dy, (..., C) each, of the sum and of the norm  →  dx, dh: (..., C), one array
    dgamma: (C,)  dbeta: (C,) or None
    """
    ds, dy = dy
    side, dgamma, dbeta = layernorm_backward(dy, saved)
    return *residual_backward(ds + side, ()), dgamma, dbeta


@accelerated(takes_16_bits=True)
def residual_rmsnorm_forward(x, h, gamma, eps=1e-5):
    """x, h: (..., C)  gamma: (C,)  →  (s, y): (..., C) each"""
    s, _ = residual_forward(x, h)
    y, saved = rmsnorm_forward(s, gamma, eps)
    return (s, y), saved


@accelerated(takes_16_bits=True)
def residual_rmsnorm_backward(dy, saved):
    """dy: ds and dy, (..., C) each, of the sum and of the norm  →  dx, dh: (..., C), one array
    dgamma: (C,)
    """
    ds, dy = dy
    side, dgamma = rmsnorm_backward(dy, saved)
    return *residual_backward(ds + side, ()), dgamma
