"""The head and its loss, forward, where all logits exist at once: they become dz in the place where they are,
a few rows at a time, and each is raised to a power of e once instead of twice.
"""

import numpy as np

from npgpt.kernels.cpu.tiles import are_plain, row_tiles
from npgpt.ops import linear_cross_entropy as formula


def linear_cross_entropy_forward(x, weight, targets, num_items_in_batch=None, ignore_index=-100, rows=None):
    flat_x, t = x.reshape(-1, x.shape[-1]), targets.reshape(-1)
    rows = rows or max(1, formula.LOGITS_AT_ONCE // weight.shape[0])
    if not are_plain(x, weight) or t.size > rows or t.size == 0:
        return NotImplemented
    counts = t != ignore_index
    n = max(num_items_in_batch, 1) if num_items_in_batch is not None \
        else np.maximum(counts.sum(dtype=x.dtype), 1)
    places, hit = np.where(counts, t, 0)[:, None], np.empty((t.size, 1), x.dtype)
    top, total = np.empty((2, t.size, 1), x.dtype)
    factor = counts.astype(x.dtype)[:, None]                                  # 1, or 0 where none counts
    dz = flat_x @ weight.T                                                    # still the logits   (N, V)
    for z, place, hit_, top_, total_, factor_ in row_tiles(dz, places, hit, top, total, factor):
        hit_[...] = np.take_along_axis(z, place, 1)                           # zₙ,ₜₙ
        np.max(z, -1, keepdims=True, out=top_)
        z -= top_
        np.exp(z, out=z)
        np.sum(z, -1, keepdims=True, out=total_)
        z *= factor_ / total_                                                 # p
        z[np.arange(len(z)), place[:, 0]] -= factor_[:, 0]
    nats = np.log(total) - (hit - top)
    loss = np.where(counts, nats[:, 0], 0).sum() / n
    return loss, (x, weight, targets, dz, top, total, n, ignore_index, t.size)
