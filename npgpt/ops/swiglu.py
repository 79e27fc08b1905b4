"""SwiGLU (Shazeer 2020): one half of the channels, through a soft gate, multiplies the other half.

    x = [g | u]           s = σ(g) = 1/(1 + e^(−g))           y = g s u

g s is the sigmoid linear unit SiLU, also called Swish (Elfwing et al. 2018; Ramachandran et al. 2017).

Backward.  1 − s = e^(−g)/(1 + e^(−g)), so σ' = e^(−g)/(1 + e^(−g))² = s (1 − s). By the product rule:
    ∂(g s)/∂g = s + g s (1 − s)               dg = dy u s (1 + g (1 − s))
                                              du = dy g s
and dx = [dg | du]. σ(g) is computed as ½ (1 + tanh(g/2)), which is the same and never overflows; far to the
left, where s is below a rounding of 1, it is 0.
In words: each half is the other's gain. The gate learns by as much as stood behind it, u, and what stood
there by as much as was let through, g s.
"""

from npgpt.tensor import accelerated, array_module


@accelerated
def swiglu_forward(x):
    """x: (..., 2F), the gate g and then u  →  y: (..., F)"""
    g, u = _halves(x)
    s = 0.5 * (1 + array_module(x).tanh(0.5 * g))                             # σ(g)
    return g * s * u, (x, s)


@accelerated
def swiglu_backward(dy, saved):
    """dy: (..., F)  →  dx: (..., 2F)"""
    x, s = saved
    g, u = _halves(x)
    dg = dy * u * s * (1 + g * (1 - s))
    du = dy * g * s
    return array_module(x).concatenate([dg, du], -1)


def _halves(x):
    F = x.shape[-1] // 2
    return x[..., :F], x[..., F:]
