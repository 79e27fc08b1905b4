"""The feed-forward layer: each position by itself, widened, bent, and narrowed again."""

from npgpt.errors import ConfigError
from npgpt.layers.dropout import Dropout
from npgpt.layers.linear import Linear
from npgpt.layers.module import Module
from npgpt.ops.gelu import gelu_erf_backward, gelu_erf_forward, gelu_tanh_backward, gelu_tanh_forward
from npgpt.ops.relu import relu_backward, relu_forward
from npgpt.ops.swiglu import swiglu_backward, swiglu_forward

ACTIVATIONS = {
    "gelu_tanh": (gelu_tanh_forward, gelu_tanh_backward),                     # GPT-2's
    "gelu_erf": (gelu_erf_forward, gelu_erf_backward),
    "relu": (relu_forward, relu_backward),
    "swiglu": (swiglu_forward, swiglu_backward),                              # Llama's
}


class FeedForward(Module):
    """c_proj(activation(c_fc(x))), n_inner wide inside.   x: (B, T, C) → y: (B, T, C)

    n_inner: 4 C by default.  proj_std: of c_proj's initial values.  dropout: on y.  Raises ConfigError.
    Under swiglu, c_fc makes the gate and what it lets through side by side: 2 n_inner columns.
    """

    def __init__(self, n_embd: int, n_inner: int | None = None, dropout: float = 0.0, bias: bool = True,
                 activation: str = "gelu_tanh", proj_std: float = 0.02):
        if activation not in ACTIVATIONS:
            raise ConfigError(f"unknown activation {activation!r}: use one of {', '.join(ACTIVATIONS)}")
        n_inner = n_inner or 4 * n_embd
        self.c_fc = Linear(n_embd, 2 * n_inner if activation == "swiglu" else n_inner, bias)
        self.act_forward, self.act_backward = ACTIVATIONS[activation]
        self.c_proj = Linear(n_inner, n_embd, bias, std=proj_std)
        self.dropout = Dropout(dropout)

    def forward(self, x, key=None):
        h, s1 = self.c_fc.forward(x)                                          # (B, T, F), for swiglu 2F
        h, s2 = self.act_forward(h)                                           # (B, T, F)
        y, s3 = self.c_proj.forward(h)                                        # (B, T, C)
        y, s4 = self.dropout.forward(y, key)
        return y, (s1, s2, s3, s4)

    def backward(self, dy, saved):
        s1, s2, s3, s4 = saved
        dh = self.c_proj.backward(self.dropout.backward(dy, s4), s3)          # (B, T, F)
        return self.c_fc.backward(self.act_backward(dh, s2), s1)
