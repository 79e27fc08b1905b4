"""RMSNorm, a few rows at a time and in place; sums of columns are vector–matrix products (layernorm.py)."""

import numpy as np

from npgpt.kernels.cpu.tiles import are_plain, row_tiles


def rmsnorm_forward(x, gamma, eps=1e-5, h=None):
    """h: (..., C), added to x first; then that sum is returned with y."""
    C = x.shape[-1]
    added = x if h is None else h
    if not are_plain(x, added, gamma) or x.size == 0:
        return NotImplemented
    s = x if h is None else np.empty_like(x)
    y, rstd = np.empty_like(x), np.empty((*x.shape[:-1], 1), x.dtype)
    for x_, added_, s_, y_, rstd_ in row_tiles(x, added, s, y, rstd):
        if h is not None:
            np.add(x_, added_, out=s_)
        np.power(np.vecdot(s_, s_)[:, None] / C + eps, -0.5, out=rstd_)
        np.multiply(s_, rstd_, out=y_)
        y_ *= gamma
    return y if h is None else (s, y), (s, gamma, rstd)


def rmsnorm_backward(dy, saved, ds=None):
    """ds: (..., C), added to dx."""
    x, gamma, rstd = saved
    C = x.shape[-1]
    added = dy if ds is None else ds
    if not are_plain(x, dy, added, gamma) or x.size == 0:
        return NotImplemented
    dx, dgamma   = np.empty_like(x), np.zeros_like(gamma)
    gamma_column = (gamma / C)[:, None]
    for x_, dy_, added_, dx_, rstd_ in row_tiles(x, dy, added, dx, rstd):
        x_hat   = x_ * rstd_
        product = dy_ * x_hat
        dgamma += np.ones(len(x_), x.dtype) @ product
        x_hat *= product @ gamma_column                                       # mean(dx̂ x̂) = (dy x̂) · γ/C
        np.multiply(dy_, gamma, out=dx_)
        dx_ -= x_hat
        dx_ *= rstd_
        if ds is not None:
            dx_ += added_
    return dx, dgamma
