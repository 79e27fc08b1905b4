"""AdamW in place, a cache-sized tile at a time: w, g, m and v cross the memory bus once."""

import numpy as np

from npgpt.kernels.cpu.tiles import flat_tiles


def adamw(w, g, m, v, t, lr, beta1=0.9, beta2=0.95, eps=1e-8, weight_decay=0.1, grad_scale=1.0, out=None,
          narrow=None, key=None, first=0):
    if narrow is not None:
        return NotImplemented
    if out is None or any(new is not old for new, old in zip(out, (w, m, v), strict=True)):
        return NotImplemented
    if not all(array.flags.c_contiguous for array in (w, g, m, v)):
        return NotImplemented
    for w_, g_, m_, v_ in flat_tiles(w, g, m, v):
        scaled = g_ * grad_scale
        square = scaled * scaled
        scaled *= 1 - beta1
        m_ *= beta1
        m_ += scaled
        square *= 1 - beta2
        v_ *= beta2
        v_ += square
        denominator = np.multiply(v_, 1 / (1 - beta2 ** t), out=square)       # v̂
        np.sqrt(denominator, out=denominator)
        denominator += eps
        np.divide(m_, denominator, out=denominator)
        denominator *= lr / (1 - beta1 ** t)                                  # η m̂/(√v̂ + ε)
        w_ *= 1 - lr * weight_decay
        w_ -= denominator
    return out
