"""Causal self-attention: every position asks all positions up to itself, in several heads at once."""

from npgpt.errors import ConfigError
from npgpt.layers.dropout import Dropout
from npgpt.layers.linear import Linear
from npgpt.layers.module import Module
from npgpt.ops.attention import attention_backward, attention_forward
from npgpt.tensor import array_module


class SelfAttention(Module):
    """c_attn makes queries, keys and values in one product, c_proj mixes the heads.   x, y: (B, T, C)

    proj_std: of c_proj's initial values.  dropout: on y.  key_mask, in forward: bool (B, T), False hides a
    position.

    kv_cache, in forward: keys and values of the positions before these T, which join them there
    (npgpt.generation.kv_cache.LayerCache). The queries then ask all S positions, and key_mask is (B, S).
    Only for causal attention, and there is no backward from such a forward.
    """

    def __init__(self, n_embd: int, n_head: int, dropout: float = 0.0, bias: bool = True, causal: bool = True,
                 proj_std: float = 0.02):
        if n_embd % n_head:
            raise ConfigError(f"n_embd must be a multiple of n_head, so that heads are of one size; "
                              f"{n_embd} is no multiple of {n_head}")
        self.n_head, self.causal = n_head, causal
        self.c_attn = Linear(n_embd, 3 * n_embd, bias)
        self.c_proj = Linear(n_embd, n_embd, bias, std=proj_std)
        self.dropout = Dropout(dropout)

    def forward(self, x, key=None, key_mask=None, kv_cache=None):
        qkv, s1 = self.c_attn.forward(x)                                      # (B, T, 3C)
        q, k, v = split_heads(qkv, 3, self.n_head)                            # (B, H, T, D) each
        if kv_cache is not None:
            k, v = kv_cache.append(k, v)                                      # (B, H, S, D) each
        y, s2   = attention_forward(q, k, v, self.causal, key_mask)           # (B, H, T, D)
        y, s3   = self.c_proj.forward(y.swapaxes(1, 2).reshape(x.shape))      # heads side by side: (B, T, C)
        y, s4   = self.dropout.forward(y, key)
        return y, (s1, s2, s3, s4)

    def backward(self, dy, saved):
        s1, s2, s3, s4 = saved
        dy   = self.c_proj.backward(self.dropout.backward(dy, s4), s3)        # (B, T, C)
        dy,  = split_heads(dy, 1, self.n_head)                                # (B, H, T, D)
        dqkv = attention_backward(dy, s2)                                     # dq, dk, dv
        return self.c_attn.backward(merge_heads(dqkv), s1)


def split_heads(x, n: int, n_head: int):
    """(B, T, n·C) → n views (B, H, T, D), where C = H·D and head h is columns h·D to (h+1)·D of its C"""
    B, T, nC = x.shape
    return x.reshape(B, T, n, n_head, nC // (n * n_head)).transpose(2, 0, 3, 1, 4)


def merge_heads(parts):
    """n arrays (B, H, T, D) → (B, T, n·C): undoes split_heads"""
    B, H, T, D = parts[0].shape
    xp = array_module(parts[0])
    merged = xp.empty((B, T, len(parts), H, D), parts[0].dtype)
    for n, part in enumerate(parts):
        merged[:, :, n] = part.swapaxes(1, 2)
    return merged.reshape(B, T, len(parts) * H * D)
