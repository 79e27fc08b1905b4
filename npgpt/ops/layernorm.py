"""Layer normalisation (Ba, Kiros & Hinton 2016): each row to mean 0 and variance 1, then scaled and shifted.

    μ = mean(x)    r = 1/√(var(x) + ε)    x̂ = (x − μ) r    y = γ x̂ + β

The mean of a float32 row is off by a rounding of its own, 1e-4 where numbers are near 1000; what it is off by
is the mean of x − μ, and is taken out as well, or a row of equal numbers would not become β.

Backward.  γ and β go into every row:              dγ = Σₙ dyₙ x̂ₙ    dβ = Σₙ dyₙ    dx̂ = γ dy
Then through x̂ = (x − μ) r, within one row of C numbers.  With var = mean((x − μ)²):
    ∂μ/∂xᵢ = 1/C
    ∂var/∂xᵢ = (2/C) (xᵢ − μ)                     the term through μ vanishes, for Σ (x − μ) = 0
    ∂r/∂xᵢ = −½ (var + ε)^(−3/2) ∂var/∂xᵢ = −r³ (xᵢ − μ)/C = −r² x̂ᵢ/C
    ∂x̂ⱼ/∂xᵢ = r (δᵢⱼ − 1/C) + (xⱼ − μ) ∂r/∂xᵢ = r (δᵢⱼ − 1/C − x̂ᵢ x̂ⱼ/C)
and dxᵢ = Σⱼ dx̂ⱼ ∂x̂ⱼ/∂xᵢ = r (dx̂ᵢ − Σⱼ dx̂ⱼ/C − x̂ᵢ Σⱼ dx̂ⱼ x̂ⱼ/C) is
    dx = r (dx̂ − mean(dx̂) − x̂ mean(dx̂ x̂))
In words: dx̂ loses its components along 1 and along x̂, the two directions that normalising erased. (The second
all but wholly: mean(x̂²) = var/(var + ε) is 1 only where var ≫ ε. In a row of equal numbers x̂ is 0, nothing is
lost along it, and r is 1/√ε.)
"""

from npgpt.tensor import accelerated


@accelerated
def layernorm_forward(x, gamma, beta=None, eps=1e-5):
    """x: (..., C)  gamma: (C,)  beta: (C,) or None  →  y: (..., C)"""
    mean  = x.mean(-1, keepdims=True)                                         # μ   (..., 1)
    apart = x - mean
    off   = apart.mean(-1, keepdims=True)                                     # 0 but for rounding   (..., 1)
    apart = apart - off
    rstd  = ((apart * apart).mean(-1, keepdims=True) + eps) ** -0.5           # r   (..., 1)
    x_hat = apart * rstd                                                      # x̂   (..., C)
    y     = gamma * x_hat
    return y if beta is None else y + beta, (x, gamma, beta is not None, mean + off, rstd)


@accelerated
def layernorm_backward(dy, saved):
    """dy: (..., C)  →  dx: (..., C)  dgamma: (C,)  dbeta: (C,) or None"""
    x, gamma, has_beta, mean, rstd = saved
    x_hat  = (x - mean) * rstd                      # rebuilt: μ and r are two numbers a row, x̂ is C of them
    dx_hat = dy * gamma
    dx     = rstd * (dx_hat - dx_hat.mean(-1, keepdims=True)
                     - x_hat * (dx_hat * x_hat).mean(-1, keepdims=True))
    rows   = tuple(range(x.ndim - 1))
    return dx, (dy * x_hat).sum(rows), dy.sum(rows) if has_beta else None
