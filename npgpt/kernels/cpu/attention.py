"""Attention, a block of queries at a time: scores and probabilities live in cache only. Where it is causal,
keys after the block's last query are never touched, nearly half of all. The row sum divides y, which has D
columns, instead of the probabilities, which have S.
"""

import numpy as np

from npgpt.kernels.cpu import tiles

QUERIES = 64        # of a block; more skips less of the upper triangle, fewer makes the products thin


def attention_forward(q, k, v, causal=True, key_mask=None):
    B, H, T, D = q.shape
    if key_mask is not None or (causal and k.shape[2] < T) or q.size == 0 or k.size == 0:
        return NotImplemented
    y   = np.empty((B, T, H, D), q.dtype).swapaxes(1, 2)                      # so that merging heads is free
    lse = np.empty((B, H, T, 1), q.dtype)
    for part, block, keys, hidden in _blocks(q, k, causal):
        a = _scores(q[part, :, block], k[part, :, keys], hidden)              # (b, H, t, s)
        top = a.max(-1, keepdims=True)
        a -= top
        e = np.exp(a, out=a)
        total = e @ np.ones((e.shape[-1], 1), e.dtype)                        # BLAS sums faster than NumPy
        np.matmul(e, v[part, :, keys], out=y[part, :, block])
        y[part, :, block] /= total
        np.add(top, np.log(total), out=lse[part, :, block])
    return y, (q, k, v, causal, key_mask, y, lse)


def attention_backward(dy, saved):
    q, k, v, causal, key_mask, y, lse = saved
    if key_mask is not None or (causal and k.shape[2] < q.shape[2]) or q.size == 0 or k.size == 0:
        return NotImplemented
    dq, dk, dv = np.empty(q.shape, q.dtype), np.zeros(k.shape, k.dtype), np.zeros(v.shape, v.dtype)
    scale = q.shape[-1] ** -0.5
    delta = np.vecdot(dy, y)[..., None]                                       # Σₛ dP P   (B, H, T, 1)
    for part, block, keys, hidden in _blocks(q, k, causal):
        q_, k_, dy_ = q[part, :, block], k[part, :, keys], dy[part, :, block]
        p = _scores(q_, k_, hidden)                                           # (b, H, t, s)
        p -= lse[part, :, block]
        np.exp(p, out=p)
        dv[part, :, keys] += p.swapaxes(-1, -2) @ dy_
        da = dy_ @ v[part, :, keys].swapaxes(-1, -2)                          # dP, then dA
        da -= delta[part, :, block]
        da *= p
        da *= scale
        np.matmul(da, k_, out=dq[part, :, block])
        dk[part, :, keys] += da.swapaxes(-1, -2) @ q_
    return dq, dk, dv


def _blocks(q, k, causal):
    """Slices of examples, of queries, of the keys they may see; and what hides the last of these, or None."""
    B, H, T, _ = q.shape
    S = k.shape[2]
    examples = max(1, tiles.TILE_BYTES // (H * min(QUERIES, T) * S * q.itemsize))
    later = min(QUERIES, T)
    ahead = np.triu(np.full((later, later), -np.inf, q.dtype), 1)             # −∞ where the key comes later
    for b in range(0, B, examples):
        for t in range(0, T, QUERIES):
            end = min(t + QUERIES, T)
            seen = S - T + end if causal else S
            yield slice(b, b + examples), slice(t, end), slice(0, seen), \
                ahead[:end - t, :end - t] if causal else None


def _scores(q, k, hidden):
    """A = Q Kᵀ/√D + mask for one block."""
    a = q @ k.swapaxes(-1, -2)
    a *= q.shape[-1] ** -0.5
    if hidden is not None:
        a[..., -hidden.shape[1]:] += hidden
    return a
