"""Causal self-attention: every position asks all positions up to itself, in several heads at once."""

from npgpt.errors import ConfigError
from npgpt.layers.dropout import Dropout, chance
from npgpt.layers.linear import Linear
from npgpt.layers.module import Module
from npgpt.layers.norm import RMSNorm
from npgpt.ops.attention import attention_backward, attention_forward
from npgpt.ops.rotary import rotary_backward, rotary_forward
from npgpt.tensor import array_module
from npgpt.tensor.device import address


class SelfAttention(Module):
    """c_attn makes queries, keys and values in one product, c_proj mixes the heads.   x, y: (B, T, C)

    n_kv_head: G key and value heads, each shared by H/G query heads (grouped-query attention, Ainslie et
    al. 2023; for G = 1 multi-query attention, Shazeer 2019); by default all H.  head_dim: D, by default C/H.
    dropout: on y.  attention_dropout: on the probabilities.
    bias: of c_attn; proj_bias: of c_proj, by default as bias.  proj_std: of c_proj's initial values.
    qk_norm: the ε of an RMSNorm over each head's queries and keys (Henry et al. 2020), or None for none.
    rope_interleaved: which channels a rotation turns together, see npgpt.ops.rotary.
    causal: False lets every position ask all.  Raises ConfigError for heads that cannot be.

    In forward:  rotation: cos and sin of npgpt.layers.RotaryPosition, for queries and keys.
    key_mask: bool (B, T), False hides a position.  segments: integers (B, T): each position asks those of its
    own segment alone.
    kv_cache: keys and values of the positions before these T, which join them there
    (npgpt.generation.kv_cache.LayerCache). The queries then ask all S positions, and both masks are (B, S).
    Only for causal attention, and there is no backward from such a forward.
    """

    def __init__(self, n_embd: int, n_head: int, n_kv_head: int | None = None, head_dim: int | None = None,
                 dropout: float = 0.0, attention_dropout: float = 0.0, bias: bool = True,
                 proj_bias: bool | None = None, qk_norm: float | None = None, rope_interleaved: bool = False,
                 causal: bool = True, proj_std: float = 0.02):
        n_kv_head = n_kv_head or n_head
        if head_dim is None and n_embd % n_head:
            raise ConfigError(f"n_embd must be a multiple of n_head, so that heads are of one size; "
                              f"{n_embd} is no multiple of {n_head}")
        if n_head % n_kv_head:
            raise ConfigError(f"n_head must be a multiple of n_kv_head, so that equally many queries share a "
                              f"key; {n_head} is no multiple of {n_kv_head}")
        D = head_dim or n_embd // n_head
        self.heads, self.causal = (n_head, n_kv_head, n_kv_head), causal      # of q, k, v
        self.attention_dropout, self.rope_interleaved = chance(attention_dropout), rope_interleaved
        self.c_attn = Linear(n_embd, sum(self.heads) * D, bias)
        self.q_norm = None if qk_norm is None else RMSNorm(D, qk_norm)
        self.k_norm = None if qk_norm is None else RMSNorm(D, qk_norm)
        self.c_proj = Linear(n_head * D, n_embd, bias if proj_bias is None else proj_bias, std=proj_std)
        self.dropout = Dropout(dropout)

    def forward(self, x, key=None, rotation=None, key_mask=None, segments=None, kv_cache=None):
        qkv, s1 = self.c_attn.forward(x)                                      # (B, T, (H + 2G) D)
        q, k, v = split_heads(qkv, self.heads)                                # (B, H or G, T, D)
        q, s2   = self._place(q, self.q_norm, rotation)
        k, s3   = self._place(k, self.k_norm, rotation)
        if kv_cache is not None:
            k, v = kv_cache.append(k, v)                                      # (B, G, S, D) each
        y, s4   = attention_forward(q, k, v, self.causal, key_mask, segments,
                                    self.attention_dropout, key and key.child(0))     # (B, H, T, D)
        y, s5   = self.c_proj.forward(merge_heads([y]))                       # (B, T, C)
        y, s6   = self.dropout.forward(y, key)
        return y, (s1, s2, s3, s4, s5, s6)

    def backward(self, dy, saved):
        s1, s2, s3, s4, s5, s6 = saved
        dy,  = split_heads(self.c_proj.backward(self.dropout.backward(dy, s6), s5), self.heads[:1])
        dq, dk, dv = attention_backward(dy, s4)                               # (B, H or G, T, D)
        dq   = self._place_backward(dq, self.q_norm, s2)
        dk   = self._place_backward(dk, self.k_norm, s3)
        return self.c_attn.backward(merge_heads([dq, dk, dv]), s1)            # (B, T, (H + 2G) D) → (B, T, C)

    def _place(self, x, norm, rotation):
        """Queries or keys, (B, H, T, D): of one length if qk_norm, then turned to their places if rotary."""
        s1 = s2 = None
        if norm:
            x, s1 = norm.forward(x)
        if rotation:
            x, s2 = rotary_forward(x, rotation, self.rope_interleaved)
        return x, (s1, s2)

    def _place_backward(self, dx, norm, saved):
        s1, s2 = saved
        if s2:
            dx = rotary_backward(dx, s2)
        return norm.backward(dx, s1) if norm else dx


def split_heads(x, heads: tuple[int, ...]):
    """(B, T, Σh·D) → for each h of heads a view (B, h, T, D): its heads are columns side by side, D each"""
    B, T, width = x.shape
    by_head = x.reshape(B, T, sum(heads), width // sum(heads)).swapaxes(1, 2)
    ends = [sum(heads[:n + 1]) for n in range(len(heads))]
    return tuple(by_head[:, end - h:end] for end, h in zip(ends, heads, strict=True))


def merge_heads(parts):
    """Arrays (B, h, T, D), each with its own h → (B, T, Σh·D): undoes split_heads"""
    by_place = [part.swapaxes(1, 2) for part in parts]                        # (B, T, h, D)
    merged   = _whole(by_place)
    if merged is None:
        merged = array_module(*parts).concatenate(by_place, 2)
    B, T, heads, D = merged.shape
    return merged.reshape(B, T, heads * D)


def _whole(parts):
    """The array (B, T, Σh, D) whose neighbouring columns, from first to last, the parts are; or None."""
    if len(parts) == 1:
        return parts[0]
    whole, (B, T, _, D), first = parts[0].base, parts[0].shape, 0
    if whole is None or whole.shape != (B, T, sum(part.shape[2] for part in parts), D):
        return None
    for part in parts:
        here  = whole[:, :, first:first + part.shape[2]]
        first = first + part.shape[2]
        if address(part) != address(here) or part.strides != here.strides or part.dtype != here.dtype:
            return None
    return whole
