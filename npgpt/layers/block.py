"""The block: attention and feed-forward, each added to what it was given. Where the norm stands, and whether
one follows the other, tells the four kinds apart.

A block is put together from its parts, and knows nothing of their options.   x, y: (B, T, C)
Backward goes the same way from the end. Where x takes two roads, past a layer and through it, it gets the sum
of what comes back on both (npgpt/ops/residual.py).

`context`, in forward: what attention alone takes: rotation, key_mask, segments, kv_cache
(npgpt.layers.SelfAttention).
"""

from npgpt.layers.attention import SelfAttention
from npgpt.layers.feed_forward import FeedForward
from npgpt.layers.module import Module
from npgpt.layers.norm import LayerNorm, RMSNorm
from npgpt.ops.residual import residual_backward, residual_forward

Norm = LayerNorm | RMSNorm


class Block(Module):
    """Pre-norm, as GPT-2 (Radford et al. 2019) and Llama:
    x + attention(norm(x)), then x + feed_forward(norm(x))
    """

    def __init__(self, ln_1: Norm, attn: SelfAttention, ln_2: Norm, mlp: FeedForward):
        self.ln_1, self.attn, self.ln_2, self.mlp = ln_1, attn, ln_2, mlp

    def forward(self, x, key=None, **context):
        h, s1 = self.ln_1.forward(x)
        h, s2 = self.attn.forward(h, key and key.child(0), **context)
        (x, h), s3 = self.ln_2.forward_sum(x, h)                              # x + h, and its norm
        h, s4 = self.mlp.forward(h, key and key.child(1))
        y, s5 = residual_forward(x, h)
        return y, (s1, s2, s3, s4, s5)

    def backward(self, dy, saved):
        s1, s2, s3, s4, s5 = saved
        dx, dh = residual_backward(dy, s5)
        dx = self.ln_2.backward_sum(dx, self.mlp.backward(dh, s4), s3)        # of x + h, so of x and of h
        return self.ln_1.backward_sum(dx, self.attn.backward(dx, s2), s1)     # the road, and past ln_1


class PostNormBlock(Module):
    """Post-norm, as the first Transformer (Vaswani et al. 2017) and GPT (Radford et al. 2018):
    norm(x + attention(x)), then norm(x + feed_forward(x))
    """

    def __init__(self, attn: SelfAttention, ln_1: Norm, mlp: FeedForward, ln_2: Norm):
        self.attn, self.ln_1, self.mlp, self.ln_2 = attn, ln_1, mlp, ln_2

    def forward(self, x, key=None, **context):
        h, s1 = self.attn.forward(x, key and key.child(0), **context)
        (_, x), s2 = self.ln_1.forward_sum(x, h)
        h, s3 = self.mlp.forward(x, key and key.child(1))
        (_, y), s4 = self.ln_2.forward_sum(x, h)
        return y, (s1, s2, s3, s4)

    def backward(self, dy, saved):
        s1, s2, s3, s4 = saved
        dx, dh = residual_backward(self.ln_2.backward(dy, s4), ())
        dx = dx + self.mlp.backward(dh, s3)
        dx, dh = residual_backward(self.ln_1.backward(dx, s2), ())
        return dx + self.attn.backward(dh, s1)


class ParallelBlock(Module):
    """Both read the same normalised x, as GPT-J (Wang & Komatsuzaki 2021) and PaLM (Chowdhery et al. 2022):
    x + attention(norm(x)) + feed_forward(norm(x))
    """

    def __init__(self, ln_1: Norm, attn: SelfAttention, mlp: FeedForward):
        self.ln_1, self.attn, self.mlp = ln_1, attn, mlp

    def forward(self, x, key=None, **context):
        h, s1 = self.ln_1.forward(x)
        a, s2 = self.attn.forward(h, key and key.child(0), **context)
        f, s3 = self.mlp.forward(h, key and key.child(1))
        return x + a + f, (s1, s2, s3)

    def backward(self, dy, saved):
        s1, s2, s3 = saved
        return dy + self.ln_1.backward(self.attn.backward(dy, s2) + self.mlp.backward(dy, s3), s1)


class ParallelPostNormBlock(Module):
    """Both read x, and their sum with it is normalised once:   norm(x + attention(x) + feed_forward(x))"""

    def __init__(self, attn: SelfAttention, mlp: FeedForward, ln_1: Norm):
        self.attn, self.mlp, self.ln_1 = attn, mlp, ln_1

    def forward(self, x, key=None, **context):
        a, s1 = self.attn.forward(x, key and key.child(0), **context)
        f, s2 = self.mlp.forward(x, key and key.child(1))
        y, s3 = self.ln_1.forward(x + a + f)
        return y, (s1, s2, s3)

    def backward(self, dy, saved):
        s1, s2, s3 = saved
        dh = self.ln_1.backward(dy, s3)
        return dh + self.attn.backward(dh, s1) + self.mlp.backward(dh, s2)
