"""Cross-entropy of softmax: how many nats the target costs under the predicted distribution, from logits.

A row of logits z predicts the probabilities p = softmax(z), and its target t costs −log pₜ nats, natural
logarithms. As pₜ = e^zₜ/Σⱼ e^zⱼ, that is ℓ − zₜ:

    loss = (1/N) Σₙ (ℓₙ − zₙ,ₜₙ)        ℓₙ = log Σⱼ e^zₙⱼ        tₙ: the target of row n; n: rows that count

Rows with the target `ignore_index` do not count; N is the number that do, at least 1, so that a batch without
any has loss 0 and gradient 0. With m = max(z) taken out first, and Z = Σⱼ e^(zⱼ − m), nothing overflows:

    ℓ = m + log Z        ℓ − zₜ = log Z − (zₜ − m)        p = e^(z − m)/Z

m cancels, so nothing comes back through the max (softmax.py). Nor is ℓ itself ever made: a float32 near 100
is rounded to 8e-6, and so would a loss be that may be smaller than that.

Backward.  ∂ℓₙ/∂zₙⱼ = e^zₙⱼ/Σᵢ e^zₙᵢ = pₙⱼ, and ∂zₙ,ₜₙ/∂zₙⱼ = [j = tₙ]:
    dzₙⱼ = (pₙⱼ − [j = tₙ]) dloss / N        0 in rows that do not count
In words: what was predicted minus what happened. Each row that counts sums to 0: what the target is to gain
the others are to lose.
"""

from npgpt.tensor import accelerated, array_module


@accelerated
def cross_entropy_forward(logits, targets, num_items_in_batch=None, ignore_index=-100):
    """logits: (..., V)  targets: integers (...)  →  loss: 0-d, nats

    Targets must lie in [0, V) or be ignore_index: check them on the host, here −1 would be the last class.
    num_items_in_batch: N, where the batch is part of a larger one; None counts the targets of this one.
    """
    xp = array_module(logits)
    z, t = logits.reshape(-1, logits.shape[-1]), targets.reshape(-1)
    counts = t != ignore_index                                                # (N,) bool
    top    = z.max(-1, keepdims=True)                                         # m   (N, 1)
    total  = xp.exp(z - top).sum(-1, keepdims=True)                           # Z   (N, 1)
    hit    = z[xp.arange(t.size), xp.where(counts, t, 0)]                     # zₙ,ₜₙ   (N,)
    nats   = xp.where(counts, xp.log(total[:, 0]) - (hit - top[:, 0]), 0)     # not · counts: ∞ · 0 is NaN
    n      = max(num_items_in_batch, 1) if num_items_in_batch is not None \
        else xp.maximum(counts.sum(dtype=z.dtype), 1)
    return nats.sum() / n, (logits, targets, top, total, n, ignore_index)


@accelerated
def cross_entropy_backward(dloss, saved):
    """dloss: 0-d  →  dlogits: (..., V)"""
    logits, targets, top, total, n, ignore_index = saved
    xp = array_module(logits)
    z, t = logits.reshape(-1, logits.shape[-1]), targets.reshape(-1)
    counts = t != ignore_index
    each   = dloss / n
    dz  = xp.exp(z - top)                                                     # (N, V)
    dz *= each / total                                                        # p dloss/N
    dz  = xp.where(counts[:, None], dz, 0)
    dz[xp.arange(t.size), xp.where(counts, t, 0)] -= counts * each      # one place a row: no index repeats
    return dz.reshape(logits.shape)
