"""Scaled dot-product attention (Vaswani et al. 2017): each query takes a mean of the values, weighted by how
well it fits their keys.  For one head, with queries Q (T, D), keys K (S, D), values V (S, D):

    A = Q Kᵀ/√D + mask        mask: 0 where query t may look at key s, −∞ elsewhere
    P = softmax(A), by rows   y = P V

Why √D: of elements of variance 1 a sum of D products has variance D, and softmax of such numbers would nearly
be 0 and 1, where its gradient vanishes. Divided so, scores have variance 1 for any D.

Causal: the queries are the last T of the S positions, so query t may look at the keys s ≤ t + S − T. A row
that may look at nothing gives y = 0. Of the probabilities only ℓₜ = log Σₛ e^Aₜₛ is kept, one number a row
(as in FlashAttention, Dao et al. 2022): backward rebuilds P = e^(A − ℓ), so no (T, S) array outlives either
pass. A row that may look at nothing has ℓ = +∞, which makes its P zero.

Backward.  Each step is linear.py or softmax.py.
From y = P V:               dV = Pᵀ dy                    dP = dy Vᵀ
From P = softmax(A):        dAₜₛ = Pₜₛ (dPₜₛ − Δₜ)          Δₜ = Σₛ dPₜₛ Pₜₛ
and Δ needs no P:           Δₜ = Σₛ (Σᵢ dyₜᵢ Vₛᵢ) Pₜₛ = Σᵢ dyₜᵢ Σₛ Pₜₛ Vₛᵢ = Σᵢ dyₜᵢ yₜᵢ
From A = Q Kᵀ/√D + mask:    dQ = dA K/√D                  dK = dAᵀ Q/√D
Where the mask is −∞, P = 0 and with it dA = 0: nothing comes back from where nobody looked.
In words: a key is drawn towards the queries that would have gained by weighing its value more than they did.

Grouped queries (Ainslie et al. 2023): H query heads share G key and value heads, H/G neighbours each. To a
key head its group's queries are simply more queries: Q becomes (H/G·T, D), and the formulas above stand as
they are; that dK and dV sum over the group is part of their matrix products.

Segments: several texts packed into one row, each to be read as if it stood alone. A key of another segment
than the query's has mask = −∞ like any other that is hidden, and nothing else changes.

Dropout on the probabilities:  y = P̃ V with P̃ = M ⊙ P/q, M (its m) and q as in dropout.py
Backward.                      dV = P̃ᵀ dy                    dP = M ⊙ (dy Vᵀ)/q
and still Δₜ = Σₛ dPₜₛ Pₜₛ = Σₛ (dy Vᵀ)ₜₛ Mₜₛ Pₜₛ/q = Σₛ (dy Vᵀ)ₜₛ P̃ₜₛ = Σᵢ dyₜᵢ yₜᵢ. M is a function of the
dropout key, and made again.
"""

from npgpt.ops.dropout import dropout_backward, dropout_forward
from npgpt.tensor import accelerated, array_module


@accelerated
def attention_forward(q, k, v, causal=True, key_mask=None, segments=None, dropout=0.0, dropout_key=None):
    """q: (B, H, T, D)  k, v: (B, G, S, D), H a multiple of G  →  y: (B, H, T, D)

    causal: whether keys after a query's own place are hidden from it; the queries are the last T places.
    key_mask: bool (B, S), False hides a key from every query; None hides none.
    segments: integers (B, S), T ≤ S, of the keys; the queries are the last T. Each sees its own alone.
    dropout: the chance that a probability becomes 0; dropout_key: npgpt.tensor.Key, or None for no dropout.
    """
    xp, G = array_module(q), k.shape[1]
    a     = attention_scores(q, k, causal, key_mask, segments)                          # A   (B, H, T, S)
    top   = a.max(-1, keepdims=True)                                          # (B, H, T, 1)
    e     = xp.exp(a - xp.where(xp.isfinite(top), top, 0))
    total = e.sum(-1, keepdims=True)
    blind = total == 0                                                        # rows that may look at nothing
    lse   = xp.where(blind, xp.inf, top + xp.log(total + blind))              # ℓ   (B, H, T, 1)
    if dropout and dropout_key:
        e, _ = dropout_forward(e, dropout, dropout_key)
    y     = (grouped(e, G) @ v).reshape(q.shape) / (total + blind)            # P V: rows of P are e/total
    return y, (q, k, v, causal, key_mask, segments, dropout, dropout_key, y, lse)


@accelerated
def attention_backward(dy, saved):
    """dy: (B, H, T, D)  →  dq: (B, H, T, D)  dk, dv: (B, G, S, D)"""
    q, k, v, causal, key_mask, segments, dropout, dropout_key, y, lse = saved[:10]    # a twin's has more
    xp, G = array_module(q), k.shape[1]
    scale = q.shape[-1] ** -0.5
    p  = xp.exp(attention_scores(q, k, causal, key_mask, segments) - lse)               # P   (B, H, T, S)
    dp = (grouped(dy, G) @ v.swapaxes(-1, -2)).reshape(p.shape)
    kept = p                                                                  # P̃
    if dropout and dropout_key:
        kept, _ = dropout_forward(p, dropout, dropout_key)
        dp      = dropout_backward(dp, (dropout, dropout_key))
    delta = (dy * y).sum(-1, keepdims=True)                                   # Δ   (B, H, T, 1)
    da    = grouped(p * (dp - delta), G)                                      # (B, G, H/G·T, S)
    dq    = (da @ k).reshape(q.shape) * scale
    dk    = (da.swapaxes(-1, -2) @ grouped(q, G)) * scale
    dv    = grouped(kept, G).swapaxes(-1, -2) @ grouped(dy, G)
    return dq, dk, dv


def attention_scores(q, k, causal, key_mask=None, segments=None):
    """A = Q Kᵀ/√D + mask   (B, H, T, S)"""
    xp = array_module(q)
    G, T, S = k.shape[1], q.shape[2], k.shape[2]
    a = (grouped(q * q.shape[-1] ** -0.5, G) @ k.swapaxes(-1, -2)).reshape(*q.shape[:-1], S)
    visible = []                                                             # each broadcasts to (B, H, T, S)
    if causal:
        visible.append(xp.arange(S) <= xp.arange(T)[:, None] + (S - T))
    if key_mask is not None:
        visible.append(key_mask[:, None, None, :])
    if segments is not None:
        visible.append(segments[:, None, -T:, None] == segments[:, None, None, :])
    for keys in visible:
        a += xp.where(keys, 0.0, -xp.inf).astype(a.dtype)
    return a


def grouped(x, G):
    """(B, H, T, n) → (B, G, H/G·T, n): the rows of the H/G heads of a group, one head after the other."""
    B, H, T, n = x.shape
    return x.reshape(B, G, H // G * T, n)
