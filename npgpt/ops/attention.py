"""Scaled dot-product attention (Vaswani et al. 2017): each query takes a mean of the values, weighted by how
well it fits their keys.  For one head, with queries Q (T, D), keys K (S, D), values V (S, D):

    A = Q Kᵀ/√D + mask        mask: 0 where query t may look at key s, −∞ elsewhere
    P = softmax(A), by rows   y = P V

Causal: the queries are the last T of the S positions, so query t may look at the keys s ≤ t + S − T. A row
that may look at nothing gives y = 0. Of the probabilities only ℓₜ = log Σₛ e^Aₜₛ is kept, one number a row
(as in FlashAttention, Dao et al. 2022): backward rebuilds P = e^(A − ℓ), so no (T, S) array outlives either
pass. A row that may look at nothing has ℓ = +∞, which makes its P zero.

Backward.  From y = P V:               dV = Pᵀ dy             dP = dy Vᵀ
From P = softmax(A) (see softmax.py):  dA = P (dP − Σₛ dPₜₛ Pₜₛ)
and the sum needs no P:                Σₛ dPₜₛ Pₜₛ = Σₛ Σᵢ dyₜᵢ Vₛᵢ Pₜₛ = Σᵢ dyₜᵢ yₜᵢ
From A = Q Kᵀ/√D + mask:               dQ = dA K/√D           dK = dAᵀ Q/√D
Where the mask is −∞, P = 0 and with it dA = 0: nothing comes back from where nobody looked.
In words: a key is drawn towards the queries that would have gained by weighing its value more than they did.
"""

from npgpt.tensor import accelerated, array_module


@accelerated
def attention_forward(q, k, v, causal=True, key_mask=None):
    """q: (B, H, T, D)  k, v: (B, H, S, D)  →  y: (B, H, T, D)

    key_mask: bool (B, S), False hides a key from every query; None hides none.
    """
    xp = array_module(q)
    a     = attention_scores(q, k, causal, key_mask)                          # A   (B, H, T, S)
    top   = a.max(-1, keepdims=True)                                          # (B, H, T, 1)
    e     = xp.exp(a - xp.where(top == -xp.inf, 0, top))
    total = e.sum(-1, keepdims=True)
    blind = total == 0                                                        # rows that may look at nothing
    lse   = xp.where(blind, xp.inf, top + xp.log(total + blind))              # ℓ   (B, H, T, 1)
    y     = (e @ v) / (total + blind)
    return y, (q, k, v, causal, key_mask, y, lse)


@accelerated
def attention_backward(dy, saved):
    """dy: (B, H, T, D)  →  dq: (B, H, T, D)  dk, dv: (B, H, S, D)"""
    q, k, v, causal, key_mask, y, lse = saved
    xp = array_module(q)
    scale = q.shape[-1] ** -0.5
    p  = xp.exp(attention_scores(q, k, causal, key_mask) - lse)               # P   (B, H, T, S)
    dv = p.swapaxes(-1, -2) @ dy
    dp = dy @ v.swapaxes(-1, -2)
    da = p * (dp - (dy * y).sum(-1, keepdims=True))
    return (da @ k) * scale, (da.swapaxes(-1, -2) @ q) * scale, dv


def attention_scores(q, k, causal, key_mask):
    """A = Q Kᵀ/√D + mask   (B, H, T, S)"""
    xp = array_module(q)
    a = (q @ k.swapaxes(-1, -2)) * q.shape[-1] ** -0.5
    if causal:
        T, S = a.shape[-2:]
        a = xp.where(xp.arange(S) <= xp.arange(T)[:, None] + (S - T), a, -xp.inf)
    if key_mask is not None:
        a = xp.where(key_mask[:, None, None, :], a, -xp.inf)
    return a
