"""The head and its loss. Where all logits exist at once, they become dz where they are.

Tensor cores take 16 aligned bytes at a time. So rows of 16-bit logits lie a multiple of 128 bytes apart, and
the last tokens of a vocabulary that is no multiple of 8 have products of their own: GPT-2's 50,257 are 50,256
and one.
"""

from npgpt.kernels.cuda import launch as cuda
from npgpt.kernels.cuda.cross_entropy import SLOTS, items, takes_targets, threads_of
from npgpt.kernels.cuda.products import multiply
from npgpt.tensor import array_module
from npgpt.tensor.precision import accumulator, is_narrow

LOGITS_AT_ONCE = 1 << 30               # 2 GiB in 16 bits: 21,365 rows of GPT-2's vocabulary
ALIGNED        = 128                   # bytes, to which rows of logits are filled up


def linear_cross_entropy_forward(x, weight, targets, num_items_in_batch=None, ignore_index=-100, rows=None):
    if not cuda.covers(x, weight) or not takes_targets(targets):
        return NotImplemented
    xp, ignore_index = array_module(x), int(ignore_index)
    flat_x = x.reshape(-1, x.shape[-1])
    t      = targets.reshape(-1)
    rows   = min(rows or max(1, LOGITS_AT_ONCE // len(weight)), t.size)
    top, total = (xp.empty((t.size, 1), accumulator(x.dtype)) for _ in range(2))
    loss   = xp.empty((t.size,), total.dtype)
    n      = items(t, num_items_in_batch, ignore_index, total.dtype)
    kernel = "cross_entropy_in_place" if rows == t.size else "cross_entropy_forward"
    for part, z in _logits(flat_x, weight, rows):
        cuda.launch("cross_entropy.cu", kernel, len(z), z, t[part], top[part], total[part], loss[part],
                    *_sizes(z), ignore_index, threads=threads_of(z), shared=cuda.bytes_of(SLOTS, x.dtype))
    dz = z if rows == t.size else None
    return loss.sum() / n, (x, weight, targets, dz, top, total, n, ignore_index, rows)


def linear_cross_entropy_backward(dloss, saved, out=None, learned=True):
    x, weight, targets, dz, top, total, n, ignore_index, rows = saved
    sums = (top, total, *([out] if out is not None else []))
    if not cuda.covers(x, weight, sums=sums) or not takes_targets(targets):
        return NotImplemented
    xp     = array_module(x)
    flat_x = x.reshape(-1, x.shape[-1])
    t      = targets.reshape(-1)
    dx     = xp.empty(flat_x.shape, x.dtype)
    if out is None and learned:
        out = xp.empty(weight.shape, total.dtype)
    if dz is not None:                                   # dloss/N goes to the two small factors, not to dz
        scale = (dloss / n).astype(x.dtype)
        _gradients(dz, flat_x * scale, weight, dx, out if learned else None)
        dx *= scale
    else:
        factor = cuda.number(xp, dloss / n, total.dtype)
        for part, z in _logits(flat_x, weight, rows):
            cuda.launch("cross_entropy.cu", "cross_entropy_backward", len(z), z, t[part], top[part],
                        total[part], factor, z, *_sizes(z), ignore_index)
            _gradients(z, flat_x[part], weight, dx[part], out if learned else None, add=part.start > 0)
    return dx.reshape(x.shape), out if learned else None


def _logits(x, weight, rows):
    """So many rows after the other: which they are, and their logits, in the same memory."""
    N, V   = len(x), len(weight)
    filled = ALIGNED // x.dtype.itemsize if is_narrow(x.dtype) else 1
    memory = array_module(x).empty((rows, -(-V // filled) * filled), x.dtype)
    for start in range(0, N, rows):
        part = slice(start, min(start + rows, N))
        z    = memory[:part.stop - start, :V]
        for tokens in _tokens(weight):
            multiply(x[part], weight[tokens].T, z[:, tokens])
        yield part, z


def _gradients(dz, x, weight, dx, dweight, add=False):
    """add: to dweight"""
    for tokens in _tokens(weight):
        multiply(dz[:, tokens], weight[tokens], dx, add=tokens.stop < len(weight))
        if dweight is not None:
            multiply(dz[:, tokens].T, x, dweight[tokens], add)


def _tokens(weight):
    """The last few that do not fill 16 bytes, if any; all others. The few come first: their part of dx is
    rounded to 16 bits before the others' is added.
    """
    V = len(weight)
    whole = V - V % (cuda.PACK // weight.dtype.itemsize) if is_narrow(weight.dtype) else V
    return [slice(*ends) for ends in ((whole, V), (0, whole)) if ends[0] < ends[1]]


def _sizes(z):
    """V, and how far apart rows are."""
    return z.shape[1], z.strides[0] // z.dtype.itemsize
