"""AdamW (Kingma & Ba 2015; Loshchilov & Hutter 2019): each weight steps by its gradient's mean over its size.

    g ← s g                          s: what scales all gradients, by clipping or a loss scale, or 1
    m ← β₁ m + (1 − β₁) g            a running mean of the gradient
    v ← β₂ v + (1 − β₂) g²           and of its square
    m̂ = m/(1 − β₁ᵗ)    v̂ = v/(1 − β₂ᵗ)
    w ← w − η λ w − η m̂/(√v̂ + ε)     t: the step's number, from 1   η: the learning rate   λ: the weight decay
                                     ε: a little, that nothing is divided by 0

Why the hats: m starts at 0, so after t steps it is Σᵢ (1 − β₁) β₁^(t−i) gᵢ, i from 1 to t, whose weights sum
to 1 − β₁ᵗ only. Dividing by that makes it a true weighted mean; the same for v. In the first step m̂ = g and
v̂ = g², and each weight moves by η, if its g is far above ε.

In words: the step is about η in every weight, whatever the scale of its gradient, and shrinks where the
gradient keeps changing sign. The decay λ works on the weight itself, not through the gradient ("decoupled"),
so that it is not divided by √v̂. λ is PyTorch's, times η; the paper's is times η's schedule alone.

A model of 16 bits learns in float32 (Micikevicius et al. 2018): its steps are too small for its own numbers,
so w is a float32 master of its weights, which follow it, rounded (npgpt/ops/stochastic_rounding.py).
"""

from npgpt.ops.stochastic_rounding import stochastic_rounding
from npgpt.tensor import accelerated, array_module


@accelerated(takes_16_bits=True)
def adamw(w, g, m, v, t, lr, beta1=0.9, beta2=0.95, eps=1e-8, weight_decay=0.1, grad_scale=1.0, out=None,
          narrow=None, key=None, first=0):
    """w, g, m, v: (...)  t: the step's number, from 1  lr: η  weight_decay: λ  grad_scale: s, also 0-d
    →  the new w, m, v

    out: three arrays to write them into, usually w, m, v themselves.
    narrow: an array of 16 bits that takes the new w too; bfloat16 by stochastic_rounding(w, key, first).
    """
    xp = array_module(w)
    g = grad_scale * g
    m = beta1 * m + (1 - beta1) * g
    v = beta2 * v + (1 - beta2) * (g * g)
    m_hat = m / (1 - beta1 ** t)
    v_hat = v / (1 - beta2 ** t)
    w = (1 - lr * weight_decay) * w - lr * m_hat / (xp.sqrt(v_hat) + eps)
    if narrow is not None:
        narrow[...] = w if narrow.dtype.name != "bfloat16" else stochastic_rounding(w, key, first)
    if out is None:
        return w, m, v
    for old, new in zip(out, (w, m, v), strict=True):
        old[...] = new
    return out
