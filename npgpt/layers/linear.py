"""Linear: y = x W + b."""

from npgpt.layers.module import Module, Parameter
from npgpt.ops.linear import linear_backward, linear_forward


class Linear(Module):
    """weight: (n_in, n_out), as in GPT-2; std: of its initial values.   x: (..., n_in) → y: (..., n_out)"""

    def __init__(self, n_in: int, n_out: int, bias: bool = True, std: float = 0.02):
        self.weight = Parameter(n_in, n_out, std=std)
        self.bias = Parameter(n_out) if bias else None

    def forward(self, x):
        return linear_forward(x, self.weight.data, self.bias.data if self.bias else None)

    def backward(self, dy, saved):
        learned = not self.weight.frozen, bool(self.bias and not self.bias.frozen)
        dx, dweight, dbias = linear_backward(dy, saved, self.weight.unwritten_grad, learned)
        self.weight.add_grad(dweight)
        if self.bias:
            self.bias.add_grad(dbias)
        return dx
