"""The head and its loss, forward, where all logits exist at once: they become dz in the place where they are,
a few rows at a time, and each is raised to a power of e once instead of twice.
"""

import numpy as np

from npgpt.kernels.cpu.tiles import row_tiles
from npgpt.ops import linear_cross_entropy as formula


def linear_cross_entropy_forward(x, weight, targets, num_items_in_batch=None, ignore_index=-100, rows=None):
    flat_x, t = x.reshape(-1, x.shape[-1]), targets.reshape(-1)
    rows = rows or max(1, formula.LOGITS_AT_ONCE // weight.shape[0])
    if t.size > rows or t.size == 0:
        return NotImplemented
    counts = t != ignore_index
    n = max(num_items_in_batch, 1) if num_items_in_batch is not None \
        else np.maximum(counts.sum(dtype=x.dtype), 1)
    places, hit = np.where(counts, t, 0)[:, None], np.empty((t.size, 1), x.dtype)
    lse = np.empty((t.size, 1), x.dtype)
    factor = counts.astype(x.dtype)[:, None]                                  # 1, or 0 where none counts
    dz = flat_x @ weight.T                                                    # still the logits   (N, V)
    for z, place, hit_, lse_, factor_ in row_tiles(dz, places, hit, lse, factor):
        hit_[...] = np.take_along_axis(z, place, 1)                           # zₙ,ₜₙ
        top = z.max(-1, keepdims=True)
        z -= top
        np.exp(z, out=z)
        total = z.sum(-1, keepdims=True)
        np.add(top, np.log(total), out=lse_)
        z *= factor_ / total                                                  # p
        z[np.arange(len(z)), place[:, 0]] -= factor_[:, 0]
    loss = np.where(counts, (lse - hit)[:, 0], 0).sum() / n
    return loss, (x, weight, targets, dz, lse, n, ignore_index, t.size)
