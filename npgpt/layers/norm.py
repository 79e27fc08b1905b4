"""Norms: each row to a standard size, then scaled, and shifted by LayerNorm alone."""

from npgpt.layers.module import Module, Parameter
from npgpt.ops.layernorm import layernorm_backward, layernorm_forward
from npgpt.ops.rmsnorm import rmsnorm_backward, rmsnorm_forward


class LayerNorm(Module):
    """weight (γ), bias (β): (n_embd,).   x: (..., n_embd) → y: (..., n_embd), of mean 0 and variance 1"""

    def __init__(self, n_embd: int, bias: bool = True, eps: float = 1e-5):
        self.weight = Parameter(n_embd, constant=1.0)
        self.bias = Parameter(n_embd) if bias else None
        self.eps = eps

    def forward(self, x):
        return layernorm_forward(x, self.weight.data, self.bias.data if self.bias else None, self.eps)

    def backward(self, dy, saved):
        dx, dgamma, dbeta = layernorm_backward(dy, saved)
        self.weight.add_grad(dgamma)
        if self.bias:
            self.bias.add_grad(dbeta)
        return dx


class RMSNorm(Module):
    """weight (γ): (n_embd,).   x: (..., n_embd) → y: (..., n_embd), of mean square 1"""

    def __init__(self, n_embd: int, eps: float = 1e-5):
        self.weight = Parameter(n_embd, constant=1.0)
        self.eps = eps

    def forward(self, x):
        return rmsnorm_forward(x, self.weight.data, self.eps)

    def backward(self, dy, saved):
        dx, dgamma = rmsnorm_backward(dy, saved)
        self.weight.add_grad(dgamma)
        return dx
