"""GELU, tanh form, a tile at a time and in place: the formula's dozen temporaries never leave the cache."""

import numpy as np

from npgpt.kernels.cpu.tiles import flat_tiles
from npgpt.ops.gelu import SQRT_2_OVER_PI, A


def gelu_tanh_forward(x):
    if not x.flags.c_contiguous:
        return NotImplemented
    y, dy_dx = np.empty_like(x), np.empty_like(x)
    for x_, y_, d_ in flat_tiles(x, y, dy_dx):
        np.multiply(x_, x_, out=y_)                                           # x²
        y_ *= SQRT_2_OVER_PI * A
        y_ += SQRT_2_OVER_PI                                                  # √(2/π) (1 + a x²) = u/x
        np.multiply(y_, 3, out=d_)
        d_ -= 2 * SQRT_2_OVER_PI                                              # u' = √(2/π) (1 + 3a x²)
        d_ *= x_
        y_ *= x_
        t = np.tanh(y_, out=y_)
        # y = ½ x (1 + t);  y' = ½ (1 + t) + ½ (1 − t²) x u' = ½ (1 + t) (1 + (1 − t) x u')
        d_ *= 1 - t
        d_ += 1
        t += 1
        t *= 0.5
        d_ *= t
        y_ *= x_                                                              # t and y_ are one array
    return y, (dy_dx,)
