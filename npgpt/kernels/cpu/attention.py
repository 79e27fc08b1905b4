"""Attention, a block of queries at a time, so that its scores are still in cache. Where it is causal, keys
after the block's last query are never touched, nearly half of all; nor are, where segments are packed, the
keys before the block's first. The row sum divides y, which has D columns, instead of the probabilities,
which have S. Of dropout there is the mask of a few examples at a time, a byte for each probability.

Probabilities that are no larger than queries and keys, those of short texts, are kept for backward behind
what the formula saves: to read them is several times quicker than to make them again.

Left to the formula: causal attention of more queries than keys, and arrays of different types.
"""

import functools
import itertools

import numpy as np

from npgpt.kernels.cpu import tiles
from npgpt.kernels.heads import side_by_side
from npgpt.ops.attention import grouped
from npgpt.ops.dropout import share_kept
from npgpt.tensor.random import keep_mask

QUERIES = 64        # of a block; more skips less of the upper triangle, fewer makes the products thin


def attention_forward(q, k, v, causal=True, key_mask=None, segments=None, dropout=0.0, dropout_key=None):
    B, H, T, D = q.shape
    if not _covered(q, k, v, causal):
        return NotImplemented
    share = share_kept(dropout) if dropout and dropout_key else 1
    y   = np.empty((B, T, H, D), q.dtype).swapaxes(1, 2)                      # so that merging heads is free
    lse = np.empty((B, H, T, 1), q.dtype)
    keeps = k.shape[2] * (q.size // D) <= q.size + k.size                     # P is no larger than q and k
    made  = []                                                                # then of each block e and total
    for part, block, keys, ahead, own, kept in _blocks(q, k, causal, segments, share, dropout_key):
        a = _scores(q[part, :, block], k[part, :, keys], ahead, own, key_mask, part, keys)  # (b, G, H/G·t, s)
        top = a.max(-1, keepdims=True)              # each its own: one for all would change bits of the past
        if key_mask is not None:
            np.maximum(top, np.finfo(top.dtype).min, out=top)                 # of a row that sees nothing, −∞
        a -= top
        e = np.exp(a, out=a)
        total = e @ np.ones((e.shape[-1], 1), e.dtype)                        # BLAS sums faster than NumPy
        if key_mask is not None:
            blind = total == 0
            top[blind], total[blind] = np.inf, 1
        y_ = (e if kept is None else e * kept) @ v[part, :, keys]
        y_ /= share * total
        y[part, :, block]   = y_.reshape(y[part, :, block].shape)
        top += np.log(total)
        lse[part, :, block] = top.reshape(lse[part, :, block].shape)
        if keeps:
            made.append((e, total))
    return y, (q, k, v, causal, key_mask, segments, dropout, dropout_key, y, lse, *made)


def attention_backward(dy, saved):
    q, k, v, causal, key_mask, segments, dropout, dropout_key, y, lse, *made = saved
    if not _covered(q, k, v, causal) or dy.dtype != q.dtype:
        return NotImplemented
    share = share_kept(dropout) if dropout and dropout_key else 1
    dq, dk, dv = side_by_side(q, k, v)
    dk[...] = dv[...] = 0
    scale, G = q.shape[-1] ** -0.5, k.shape[1]
    delta = np.vecdot(dy, y)[..., None]                                       # Σₛ dP P   (B, H, T, 1)
    blocks = _blocks(q, k, causal, segments, share, dropout_key)
    for (part, block, keys, ahead, own, kept), known in itertools.zip_longest(blocks, made):
        k_, dy_, delta_ = k[part, :, keys], grouped(dy[part, :, block], G), grouped(delta[part, :, block], G)
        if known:
            p, total = known                                                  # P = p/total: divides D columns
            dy_, delta_ = dy_ / (share * total), delta_ / total
        else:
            p = _scores(q[part, :, block], k_, ahead, own, key_mask, part, keys)   # (b, G, H/G·t, s)
            p -= grouped(lse[part, :, block], G)
            np.exp(p, out=p)
            dy_ = dy_ / share
        da = dy_ @ v[part, :, keys].swapaxes(-1, -2)                          # dP, then dA
        if kept is not None:
            da *= kept
        da -= delta_
        da *= p
        da *= scale
        dq[part, :, block] = (da @ k_).reshape(dq[part, :, block].shape)
        dk[part, :, keys] += da.swapaxes(-1, -2) @ grouped(q[part, :, block], G)
        if kept is not None:
            p = p * kept
        dv[part, :, keys] += p.swapaxes(-1, -2) @ dy_
    return dq, dk, dv


def _covered(q, k, v, causal) -> bool:
    return not (causal and k.shape[2] < q.shape[2]) and q.size > 0 and k.size > 0 and \
        q.dtype.kind == "f" and q.dtype == k.dtype == v.dtype


def _blocks(q, k, causal, segments, share, dropout_key):
    """Slices of examples, of queries, of the keys they may see; what hides those ahead, or None; which are of
    the query's own segment, bool (b, t, s), or None; and which dropout keeps, bool (b, G, H/G·t, s), or None.
    """
    B, H, T, _ = q.shape
    S = k.shape[2]
    examples = max(1, tiles.TILE_BYTES // (H * min(QUERIES, T) * S * q.itemsize))
    later = min(QUERIES, T)
    ahead = _later(later, q.dtype)
    for b in range(0, B, examples):
        part = slice(b, min(b + examples, B))
        if share < 1:
            key  = dropout_key._replace(example=dropout_key.example + b)
            mask = keep_mask(key, (part.stop - b, H, T, S), share)
        for t in range(0, T, QUERIES):
            end = min(t + QUERIES, T)
            first, seen, own = 0, S - T + end if causal else S, None
            if segments is not None:
                own   = segments[part, S - T + t:S - T + end, None] == segments[part, None, :seen]
                first = int(own.any((0, 1)).argmax())                         # each query sees itself
                own   = own[:, :, first:]
            kept = grouped(mask[:, :, t:end, first:seen], k.shape[1]) if share < 1 else None
            yield (part, slice(t, end), slice(first, seen), ahead[:end - t, :end - t] if causal else None,
                   own, kept)


@functools.cache
def _later(count, dtype):
    """(count, count): −∞ where the key comes later than the query, else 0"""
    return np.triu(np.full((count, count), -np.inf, dtype), 1)


def _scores(q, k, ahead, own, key_mask, part, keys):
    """A = Q Kᵀ/√D + mask for one block, the heads of a group one after the other: (b, G, H/G·t, s)"""
    a = grouped(q, k.shape[1]) @ k.swapaxes(-1, -2)
    a *= q.shape[-1] ** -0.5
    by_head = a.reshape(*q.shape[:-1], a.shape[-1])                           # (b, H, t, s), a view
    if ahead is not None:
        by_head[..., -ahead.shape[1]:] += ahead
    if own is not None:
        by_head += np.where(own, 0, a.dtype.type(-np.inf))[:, None]
    if key_mask is not None:
        a += np.where(key_mask[part, keys], 0, a.dtype.type(-np.inf))[:, None, None]
    return a
