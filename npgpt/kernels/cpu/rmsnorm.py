"""RMSNorm, a few rows at a time and in place; sums of columns are vector–matrix products (layernorm.py)."""

import numpy as np

from npgpt.kernels.cpu.tiles import row_tiles


def rmsnorm_forward(x, gamma, eps=1e-5):
    C = x.shape[-1]
    if not x.flags.c_contiguous or x.size == 0:
        return NotImplemented
    y, rstd = np.empty_like(x), np.empty((*x.shape[:-1], 1), x.dtype)
    for x_, y_, rstd_ in row_tiles(x.reshape(-1, C), y.reshape(-1, C), rstd.reshape(-1, 1)):
        np.power(np.vecdot(x_, x_)[:, None] / C + eps, -0.5, out=rstd_)
        np.multiply(x_, rstd_, out=y_)
        y_ *= gamma
    return y, (x, gamma, rstd)


def rmsnorm_backward(dy, saved):
    x, gamma, rstd = saved
    C = x.shape[-1]
    if not (x.flags.c_contiguous and dy.flags.c_contiguous) or x.size == 0:
        return NotImplemented
    dx, dgamma   = np.empty_like(x), np.zeros_like(gamma)
    gamma_column = (gamma / C)[:, None]
    for x_, dy_, dx_, rstd_ in row_tiles(x.reshape(-1, C), dy.reshape(-1, C), dx.reshape(-1, C),
                                         rstd.reshape(-1, 1)):
        x_hat   = x_ * rstd_
        product = dy_ * x_hat
        dgamma += np.ones(len(x_), x.dtype) @ product
        x_hat *= product @ gamma_column                                       # mean(dx̂ x̂) = (dy x̂) · γ/C
        np.multiply(dy_, gamma, out=dx_)
        dx_ -= x_hat
        dx_ *= rstd_
    return dx, dgamma
