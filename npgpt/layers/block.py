"""The block: attention, then feed-forward, each added to what it was given."""

from npgpt.layers.attention import SelfAttention
from npgpt.layers.feed_forward import FeedForward
from npgpt.layers.module import Module
from npgpt.layers.norm import LayerNorm
from npgpt.ops.residual import residual_backward, residual_forward


class Block(Module):
    """Pre-norm, as GPT-2: x + attention(norm(x)), then x + feed_forward(norm(x)).   x, y: (B, T, C)

    kv_cache, in forward: as in SelfAttention.
    """

    def __init__(self, n_embd: int, n_head: int, dropout: float = 0.0, bias: bool = True,
                 activation: str = "gelu_tanh", proj_std: float = 0.02):
        self.ln_1 = LayerNorm(n_embd, bias)
        self.attn = SelfAttention(n_embd, n_head, dropout, bias, proj_std=proj_std)
        self.ln_2 = LayerNorm(n_embd, bias)
        self.mlp  = FeedForward(n_embd, dropout, bias, activation, proj_std)

    def forward(self, x, key=None, kv_cache=None):
        h, s1 = self.ln_1.forward(x)
        h, s2 = self.attn.forward(h, key and key.child(0), kv_cache=kv_cache)
        x, s3 = residual_forward(x, h)
        h, s4 = self.ln_2.forward(x)
        h, s5 = self.mlp.forward(h, key and key.child(1))
        y, s6 = residual_forward(x, h)
        return y, (s1, s2, s3, s4, s5, s6)

    def backward(self, dy, saved):
        s1, s2, s3, s4, s5, s6 = saved
        dx, dh = residual_backward(dy, s6)
        dx, dh = residual_backward(dx + self.ln_2.backward(self.mlp.backward(dh, s5), s4), s3)
        return dx + self.ln_1.backward(self.attn.backward(dh, s2), s1)
