"""Norms: each row to a standard size, then scaled, and shifted by LayerNorm alone.

On the residual road a norm reads what was just added up, and the road goes on past it
(npgpt/ops/residual_norm.py): `forward_sum(x, h)` gives x + h and its norm, `backward_sum(ds, dy, saved)`
takes the gradients of both and gives that of x + h; where `forward` saved, nothing was added, and it is x's.
"""

from npgpt.layers.module import Module, Parameter
from npgpt.ops.layernorm import layernorm_backward, layernorm_forward
from npgpt.ops.residual_norm import (
    residual_layernorm_backward,
    residual_layernorm_forward,
    residual_rmsnorm_backward,
    residual_rmsnorm_forward,
)
from npgpt.ops.rmsnorm import rmsnorm_backward, rmsnorm_forward


class LayerNorm(Module):
    """weight (γ), bias (β): (n_embd,).   x, y: (..., n_embd); before γ and β y has mean 0, variance 1"""

    def __init__(self, n_embd: int, bias: bool = True, eps: float = 1e-5):
        self.weight = Parameter(n_embd, constant=1.0)
        self.bias = Parameter(n_embd) if bias else None
        self.eps = eps

    def forward(self, x):
        return layernorm_forward(x, self.weight.data, self.bias.data if self.bias else None, self.eps)

    def forward_sum(self, x, h):
        return residual_layernorm_forward(x, h, self.weight.data, self.bias.data if self.bias else None,
                                          self.eps)

    def backward(self, dy, saved):
        dx, *gradients = layernorm_backward(dy, saved)
        self._add(*gradients)
        return dx

    def backward_sum(self, ds, dy, saved):
        ds, _, *gradients = residual_layernorm_backward((ds, dy), saved)
        self._add(*gradients)
        return ds

    def _add(self, dgamma, dbeta):
        self.weight.add_grad(dgamma)
        if self.bias:
            self.bias.add_grad(dbeta)


class RMSNorm(Module):
    """weight (γ): (n_embd,).   x, y: (..., n_embd); before γ y has mean square 1"""

    def __init__(self, n_embd: int, eps: float = 1e-5):
        self.weight = Parameter(n_embd, constant=1.0)
        self.eps = eps

    def forward(self, x):
        return rmsnorm_forward(x, self.weight.data, self.eps)

    def forward_sum(self, x, h):
        return residual_rmsnorm_forward(x, h, self.weight.data, self.eps)

    def backward(self, dy, saved):
        dx, dgamma = rmsnorm_backward(dy, saved)
        self.weight.add_grad(dgamma)
        return dx

    def backward_sum(self, ds, dy, saved):
        ds, _, dgamma = residual_rmsnorm_backward((ds, dy), saved)
        self.weight.add_grad(dgamma)
        return ds
