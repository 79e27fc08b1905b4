"""AdamW in place, a cache-sized tile at a time: w, g, m and v cross the memory bus once.

And in few passes: what is the same for all weights is gathered into factors. With b = √(1 − β₂ᵗ),

    G = s (1 − β₁) g                            m ← β₁ m + G
    v ← β₂ v + (1 − β₂)/(1 − β₁)² G²            m̂/(√v̂ + ε) = b/(1 − β₁ᵗ) m/(√v + b ε)
"""

import math

import numpy as np

from npgpt.kernels.cpu.tiles import are_plain, flat_tiles


def adamw(w, g, m, v, t, lr, beta1=0.9, beta2=0.95, eps=1e-8, weight_decay=0.1, grad_scale=1.0, out=None,
          narrow=None, key=None, first=0):
    if narrow is not None:
        return NotImplemented
    if out is None or any(new is not old for new, old in zip(out, (w, m, v), strict=True)):
        return NotImplemented
    if not are_plain(w, g, m, v):
        return NotImplemented
    b = math.sqrt(1 - beta2 ** t)
    for w_, g_, m_, v_ in flat_tiles(w, g, m, v):
        each = g_ * (grad_scale * (1 - beta1))                                # G
        m_ *= beta1
        m_ += each
        each *= each
        each *= (1 - beta2) / (1 - beta1)**2
        v_ *= beta2
        v_ += each
        np.sqrt(v_, out=each)
        each += b * eps
        np.divide(m_, each, out=each)
        each *= lr * b / (1 - beta1 ** t)                                     # η m̂/(√v̂ + ε)
        w_ *= 1 - lr * weight_decay
        w_ -= each
    return out
