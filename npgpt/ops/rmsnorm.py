"""Root-mean-square normalisation (Zhang & Sennrich 2019): each row to mean square 1, then scaled. LayerNorm
without its mean and its shift, which models turned out not to miss.

    r = 1/√(mean(x²) + ε)    x̂ = x r    y = γ x̂

Backward.  γ goes into every row:     dγ = Σₙ dyₙ x̂ₙ    dx̂ = γ dy
Then through x̂ = x r, within one row of C numbers:
    ∂mean(x²)/∂xᵢ = (2/C) xᵢ
    ∂r/∂xᵢ = −½ (mean(x²) + ε)^(−3/2) (2/C) xᵢ = −r³ xᵢ/C = −r² x̂ᵢ/C
    ∂x̂ⱼ/∂xᵢ = r δᵢⱼ + xⱼ ∂r/∂xᵢ = r (δᵢⱼ − x̂ᵢ x̂ⱼ/C)
and dxᵢ = Σⱼ dx̂ⱼ ∂x̂ⱼ/∂xᵢ = r (dx̂ᵢ − x̂ᵢ Σⱼ dx̂ⱼ x̂ⱼ/C) is
    dx = r (dx̂ − x̂ mean(dx̂ x̂))
In words: dx̂ loses its component along x̂ (all of it where mean(x²) ≫ ε), the one direction that normalising
erased: a row's length.
"""

from npgpt.tensor import accelerated


@accelerated
def rmsnorm_forward(x, gamma, eps=1e-5):
    """x: (..., C)  gamma: (C,)  →  y: (..., C)"""
    rstd  = ((x * x).mean(-1, keepdims=True) + eps) ** -0.5                   # r   (..., 1)
    x_hat = x * rstd                                                          # x̂   (..., C)
    return gamma * x_hat, (x, gamma, rstd)


@accelerated
def rmsnorm_backward(dy, saved):
    """dy: (..., C)  →  dx: (..., C)  dgamma: (C,)"""
    x, gamma, rstd = saved
    x_hat  = x * rstd                                          # rebuilt: r is one number a row, x̂ is C
    dx_hat = dy * gamma
    dx     = rstd * (dx_hat - x_hat * (dx_hat * x_hat).mean(-1, keepdims=True))
    return dx, (dy * x_hat).sum(tuple(range(x.ndim - 1)))
