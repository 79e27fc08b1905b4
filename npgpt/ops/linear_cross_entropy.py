"""The head and its loss as one op: cross-entropy of the logits x Wᵀ, a few rows at a time.

    z = x Wᵀ            loss = (1/N) Σₙ (ℓₙ − zₙ,ₜₙ)            as in cross_entropy.py

For GPT-2 the logits of 4 × 1024 tokens are 4096 × 50257 numbers, four times what a block saves for backward.
Each row's loss needs only its own logits, so they are made for some rows, used, and dropped; only m and Z are
kept, two numbers a row. The weight is (V, C), one row a token, as in the embedding that it usually is tied
to.

Backward.  It makes the logits of the same rows again, and from them dz (cross_entropy.py).
From z = x Wᵀ, which is linear.py's map with Wᵀ (C, V) as its matrix, dx = dz (Wᵀ)ᵀ and d(Wᵀ) = xᵀ dz:
    dx = dz W            dW = dzᵀ x, a sum over rows, and so over the groups of rows
Where one group holds all rows there is nothing to drop them for: dz is known as soon as Z is, but for the
factor dloss/N, and is kept in the place of the logits, which saves their second product.
In words: a row's loss looks at that row alone, so rows may come one after the other; W, which all of them
read, adds up what each says.
"""

from npgpt.ops.cross_entropy import cross_entropy_backward, cross_entropy_forward
from npgpt.ops.linear import weight_gradient
from npgpt.tensor import accelerated, array_module

LOGITS_AT_ONCE = 1 << 25    # 128 MiB in float32: 667 rows of GPT-2's vocabulary, all rows of a small one


@accelerated(takes_16_bits=True)
def linear_cross_entropy_forward(x, weight, targets, num_items_in_batch=None, ignore_index=-100, rows=None):
    """x: (..., C)  weight: (V, C)  targets: integers (...)  →  loss: 0-d, nats

    targets, num_items_in_batch (N), ignore_index: as in cross_entropy_forward.  rows: how many rows of logits
    exist at once, by default what LOGITS_AT_ONCE allows.
    """
    xp = array_module(x)
    flat_x, t = x.reshape(-1, x.shape[-1]), targets.reshape(-1)
    rows = rows or max(1, LOGITS_AT_ONCE // weight.shape[0])
    if t.size <= rows:
        loss, saved = cross_entropy_forward(flat_x @ weight.T, t, num_items_in_batch, ignore_index)
        _, _, top, total, n, _ = saved
        dz = cross_entropy_backward(n, saved)                                 # (N, V), of dloss/N = 1
        return loss, (x, weight, targets, dz, top, total, n, ignore_index, t.size)
    loss, parts = 0, []
    for start in range(0, t.size, rows):
        part = slice(start, start + rows)
        part_loss, saved = cross_entropy_forward(flat_x[part] @ weight.T, t[part], 1, ignore_index)
        loss = loss + part_loss
        parts.append(saved[2:4])
    top, total = (xp.concatenate(each) for each in zip(*parts, strict=True))  # (N, 1) each
    n   = max(num_items_in_batch, 1) if num_items_in_batch is not None \
        else xp.maximum((t != ignore_index).sum(dtype=total.dtype), 1)
    return loss / n, (x, weight, targets, None, top, total, n, ignore_index, rows)


@accelerated(takes_16_bits=True)
def linear_cross_entropy_backward(dloss, saved, out=None, learned=True):
    """dloss: 0-d  →  dx: (..., C)  dweight: (V, C), written into `out` if given; None if not learned"""
    x, weight, targets, dz, top, total, n, ignore_index, rows = saved
    xp = array_module(x)
    flat_x, t = x.reshape(-1, x.shape[-1]), targets.reshape(-1)
    if dz is not None:                                   # dloss/N goes to the two small factors, not to dz
        scale = xp.asarray(dloss / n, x.dtype)
        dx = ((dz @ weight) * scale).reshape(x.shape)
        return dx, weight_gradient(dz, flat_x * scale, out) if learned else None
    dx, dweight = xp.empty(flat_x.shape, x.dtype), None
    if learned:
        dweight = xp.empty(weight.shape, total.dtype) if out is None else out
        dweight[...] = 0
    for start in range(0, t.size, rows):
        part = slice(start, start + rows)
        z  = flat_x[part] @ weight.T                                          # (rows, V)
        dz = cross_entropy_backward(dloss, (z, t[part], top[part], total[part], n, ignore_index))
        dx[part] = dz @ weight
        if learned:
            dweight += weight_gradient(dz, flat_x[part])
    return dx.reshape(x.shape), dweight
