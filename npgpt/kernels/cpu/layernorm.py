"""LayerNorm, a few rows at a time and in place. Means of rows and sums of columns are matrix–vector products,
which BLAS does several times faster than NumPy reduces.
"""

import numpy as np

from npgpt.kernels.cpu.tiles import row_tiles


def layernorm_forward(x, gamma, beta=None, eps=1e-5):
    C = x.shape[-1]
    if not x.flags.c_contiguous or x.size == 0:
        return NotImplemented
    y    = np.empty_like(x)
    mean = np.empty((*x.shape[:-1], 1), x.dtype)
    rstd = np.empty_like(mean)
    average = np.full((C, 1), 1 / C, x.dtype)
    for x_, y_, mean_, rstd_ in row_tiles(x.reshape(-1, C), y.reshape(-1, C), mean.reshape(-1, 1),
                                          rstd.reshape(-1, 1)):
        np.matmul(x_, average, out=mean_)
        np.subtract(x_, mean_, out=y_)
        variance = np.vecdot(y_, y_)[:, None] / C
        np.power(variance + eps, -0.5, out=rstd_)
        y_ *= rstd_
        y_ *= gamma
        if beta is not None:
            y_ += beta
    return y, (x, gamma, beta is not None, mean, rstd)


def layernorm_backward(dy, saved):
    x, gamma, has_beta, mean, rstd = saved
    C = x.shape[-1]
    if not (x.flags.c_contiguous and dy.flags.c_contiguous) or x.size == 0:
        return NotImplemented
    dx = np.empty_like(x)
    dgamma, dbeta = np.zeros_like(gamma), np.zeros_like(gamma)
    gamma_column = (gamma / C)[:, None]
    for x_, dy_, dx_, mean_, rstd_ in row_tiles(x.reshape(-1, C), dy.reshape(-1, C), dx.reshape(-1, C),
                                                mean.reshape(-1, 1), rstd.reshape(-1, 1)):
        x_hat = x_ - mean_
        x_hat *= rstd_
        ones  = np.ones(len(x_), x.dtype)
        dbeta += ones @ dy_
        product = dy_ * x_hat
        dgamma += ones @ product
        # mean(dx̂) = dy · γ/C and mean(dx̂ x̂) = (dy x̂) · γ/C
        x_hat *= product @ gamma_column
        x_hat += dy_ @ gamma_column
        np.multiply(dy_, gamma, out=dx_)
        dx_ -= x_hat
        dx_ *= rstd_
    return dx, dgamma, dbeta if has_beta else None
