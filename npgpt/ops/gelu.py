"""The Gaussian error linear unit (Hendrycks & Gimpel 2016): x times the chance that a standard normal lies
below x.

    y = x Φ(x)            Φ(x) = ½ (1 + erf(x/√2))

Backward.  By the product rule, with Φ' = φ(x) = e^(−x²/2)/√(2π):    y' = Φ(x) + x φ(x),    dx = y' dy

GPT-2 uses an approximation of Φ by a tanh, from the same paper:

    y = x s               s = ½ (1 + tanh u)       u = √(2/π) (x + a x³)       a = 0.044715

Backward.  ds/du = ½ (1 − tanh² u) = 2 s (1 − s)  and  u' = √(2/π) (1 + 3a x²), so
    y' = s + x · 2 s (1 − s) u' = s + y (1 − s) 2u',    dx = y' dy

In words: a soft gate. Far to the right the gradient passes whole, far to the left not at all. Around 0 the
gate itself moves with x: dx is up to 1.13 dy, at √2, and left of −0.75 y falls as x rises.
Both forms keep y' for backward: it costs less to keep than to compute again.

NumPy has no erf. It is odd, erf(−x) = −erf(x), and from 6 on 1 to the last bit of a double. From 0 to 6,
erf(x) = 1 − e^(−x²) erfcx(x), where erfcx(x) = e^(x²) (1 − erf(x)) is so smooth that a polynomial through its
values at 32 Chebyshev points meets it to 1e-14.
"""

import functools
import math

import numpy as np

from npgpt.tensor import accelerated, array_module

A = 0.044715
SQRT_2_OVER_PI = math.sqrt(2 / math.pi)


@accelerated
def gelu_tanh_forward(x):
    """x: (...)  →  y: (...)"""
    square = x * x
    u = x * (SQRT_2_OVER_PI + SQRT_2_OVER_PI * A * square)
    s = 0.5 * (1 + array_module(x).tanh(u))                                   # the gate
    y = x * s
    return y, (s + y * (1 - s) * (2 * SQRT_2_OVER_PI + 6 * SQRT_2_OVER_PI * A * square),)


@accelerated
def gelu_tanh_backward(dy, saved):
    """dy: (...)  →  dx: (...)"""
    dy_dx, = saved
    return dy * dy_dx


@accelerated
def gelu_erf_forward(x):
    """x: (...)  →  y: (...)"""
    cdf = 0.5 * (1 + erf(x * math.sqrt(0.5)))                                 # Φ
    pdf = array_module(x).exp(-0.5 * x * x) / math.sqrt(2 * math.pi)          # φ
    return x * cdf, (cdf + x * pdf,)


@accelerated
def gelu_erf_backward(dy, saved):
    """dy: (...)  →  dx: (...)"""
    dy_dx, = saved
    return dy * dy_dx


def erf(x):
    """The error function, off by 1e-14 at most.   x: (...) → (...)"""
    xp = array_module(x)
    size = xp.minimum(abs(x), 6.0)
    s = size / 3 - 1                                                          # [0, 6] → [−1, 1]
    *lower, b1 = _erfcx_coefficients()
    b2 = 0.0
    for c in reversed(lower[1:]):                              # Clenshaw's recurrence for Σ cₖ Tₖ(s)
        b1, b2 = 2 * s * b1 - b2 + c, b1
    erfcx = s * b1 - b2 + lower[0]
    return xp.sign(x) * (1 - xp.exp(-size * size) * erfcx)


@functools.cache
def _erfcx_coefficients():
    """Chebyshev coefficients of erfcx(3 + 3s) on s ∈ [−1, 1], as Python floats, lowest degree first."""
    def erfcx(s):
        return np.array([math.exp(x * x) * math.erfc(x) for x in 3 + 3 * s])
    return np.polynomial.chebyshev.chebinterpolate(erfcx, 31).tolist()
