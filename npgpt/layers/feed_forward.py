"""The feed-forward layer: each position by itself, widened, bent, and narrowed again."""

from npgpt.errors import ConfigError
from npgpt.layers.dropout import Dropout
from npgpt.layers.linear import Linear
from npgpt.layers.module import Module
from npgpt.ops.gelu import gelu_erf_backward, gelu_erf_forward, gelu_tanh_backward, gelu_tanh_forward
from npgpt.ops.relu import relu_backward, relu_forward

ACTIVATIONS = {
    "gelu_tanh": (gelu_tanh_forward, gelu_tanh_backward),                     # GPT-2's
    "gelu_erf": (gelu_erf_forward, gelu_erf_backward),
    "relu": (relu_forward, relu_backward),
}


class FeedForward(Module):
    """c_proj(activation(c_fc(x))), four times as wide inside.   x: (B, T, C) → y: (B, T, C)

    proj_std: of c_proj's initial values.  dropout: on y.
    """

    def __init__(self, n_embd: int, dropout: float = 0.0, bias: bool = True, activation: str = "gelu_tanh",
                 proj_std: float = 0.02):
        if activation not in ACTIVATIONS:
            raise ConfigError(f"unknown activation {activation!r}: use one of {', '.join(ACTIVATIONS)}")
        self.c_fc = Linear(n_embd, 4 * n_embd, bias)
        self.act_forward, self.act_backward = ACTIVATIONS[activation]
        self.c_proj = Linear(4 * n_embd, n_embd, bias, std=proj_std)
        self.dropout = Dropout(dropout)

    def forward(self, x, key=None):
        h, s1 = self.c_fc.forward(x)                                          # (B, T, 4C)
        h, s2 = self.act_forward(h)
        y, s3 = self.c_proj.forward(h)                                        # (B, T, C)
        y, s4 = self.dropout.forward(y, key)
        return y, (s1, s2, s3, s4)

    def backward(self, dy, saved):
        s1, s2, s3, s4 = saved
        dh = self.c_proj.backward(self.dropout.backward(dy, s4), s3)          # (B, T, 4C)
        return self.c_fc.backward(self.act_backward(dh, s2), s1)
