"""LayerNorm, a few rows at a time and in place. Means of rows and sums of columns are matrix–vector products,
which BLAS does several times faster than NumPy reduces. Both take what residual_norm.py adds, too.
"""

import numpy as np

from npgpt.kernels.cpu.tiles import are_plain, row_tiles


def layernorm_forward(x, gamma, beta=None, eps=1e-5, h=None):
    """h: (..., C), added to x first; then that sum is returned with y."""
    C = x.shape[-1]
    added = x if h is None else h
    if not are_plain(x, added, gamma, gamma if beta is None else beta) or x.size == 0:
        return NotImplemented
    s    = x if h is None else np.empty_like(x)
    y    = np.empty_like(x)
    mean = np.empty((*x.shape[:-1], 1), x.dtype)
    rstd = np.empty_like(mean)
    ones = np.ones((C, 1), x.dtype)
    for x_, added_, s_, y_, mean_, rstd_ in row_tiles(x, added, s, y, mean, rstd):
        if h is not None:
            np.add(x_, added_, out=s_)
        np.matmul(s_, ones, out=mean_)
        mean_ /= C
        np.subtract(s_, mean_, out=y_)
        off = y_ @ ones                  # 0 but for rounding, of which the formula tells
        off /= C
        y_ -= off
        mean_ += off
        variance = np.vecdot(y_, y_)[:, None] / C
        np.power(variance + eps, -0.5, out=rstd_)
        y_ *= rstd_
        y_ *= gamma
        if beta is not None:
            y_ += beta
    return y if h is None else (s, y), (s, gamma, beta is not None, mean, rstd)


def layernorm_backward(dy, saved, ds=None):
    """ds: (..., C), added to dx."""
    x, gamma, has_beta, mean, rstd = saved
    C = x.shape[-1]
    added = dy if ds is None else ds
    if not are_plain(x, dy, added, gamma) or x.size == 0:
        return NotImplemented
    dx = np.empty_like(x)
    dgamma, dbeta = np.zeros_like(gamma), np.zeros_like(gamma)
    gamma_column = (gamma / C)[:, None]
    for x_, dy_, added_, dx_, mean_, rstd_ in row_tiles(x, dy, added, dx, mean, rstd):
        apart   = x_ - mean_                                                  # x̂/r: r comes in by rows' sums
        product = dy_ * apart
        dbeta  += np.ones(len(x_), x.dtype) @ dy_
        dgamma += rstd_[:, 0] @ product
        # mean(dx̂) = dy · γ/C and x̂ mean(dx̂ x̂) = (x − μ) r² ((dy (x − μ)) · γ/C)
        apart  *= rstd_ * (rstd_ * (product @ gamma_column))
        apart  += dy_ @ gamma_column
        np.multiply(dy_, gamma, out=dx_)
        dx_    -= apart
        dx_ *= rstd_
        if ds is not None:
            dx_ += added_
    return dx, dgamma, dbeta if has_beta else None
