"""The residual sum and the norm that reads it, a few rows at a time, in the loops of the norms' own twins."""

from npgpt.kernels.cpu.layernorm import layernorm_backward, layernorm_forward
from npgpt.kernels.cpu.rmsnorm import rmsnorm_backward, rmsnorm_forward


def residual_layernorm_forward(x, h, gamma, beta=None, eps=1e-5):
    return layernorm_forward(x, gamma, beta, eps, h)


def residual_layernorm_backward(dy, saved):
    return _both(layernorm_backward(dy[1], saved, dy[0]))


def residual_rmsnorm_forward(x, h, gamma, eps=1e-5):
    return rmsnorm_forward(x, gamma, eps, h)


def residual_rmsnorm_backward(dy, saved):
    return _both(rmsnorm_backward(dy[1], saved, dy[0]))


def _both(gradients):
    """Those of x and of h are one array."""
    return gradients if gradients is NotImplemented else (gradients[0], *gradients)
