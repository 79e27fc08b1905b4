"""Cross-entropy of softmax: how many nats the target costs under the predicted distribution, from logits.

A row of logits z predicts the probabilities p = softmax(z), and its target t costs −log pₜ nats, natural
logarithms. As pₜ = e^zₜ/Σⱼ e^zⱼ, that is ℓ − zₜ:

    loss = (1/N) Σₙ (ℓₙ − zₙ,ₜₙ)        ℓₙ = log Σⱼ e^zₙⱼ        tₙ: the target of row n; n: rows that count

Rows with the target `ignore_index` do not count; N is the number that do, at least 1, so that a batch without
any has loss 0 and gradient 0. With m = max(z) taken out first, ℓ = m + log Σⱼ e^(zⱼ − m), nothing overflows;
m cancels, so nothing comes back through the max (softmax.py).

Backward.  ∂ℓₙ/∂zₙⱼ = e^zₙⱼ/Σᵢ e^zₙᵢ = pₙⱼ = e^(zₙⱼ − ℓₙ), and ∂zₙ,ₜₙ/∂zₙⱼ = [j = tₙ]:
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
    top  = z.max(-1, keepdims=True)
    lse  = top + xp.log(xp.exp(z - top).sum(-1, keepdims=True))               # ℓ   (N, 1)
    hit  = z[xp.arange(t.size), xp.where(counts, t, 0)]                       # zₙ,ₜₙ   (N,)
    nats = xp.where(counts, lse[:, 0] - hit, 0)                               # not · counts: ∞ · 0 is NaN
    n    = max(num_items_in_batch, 1) if num_items_in_batch is not None \
        else xp.maximum(counts.sum(dtype=z.dtype), 1)
    return nats.sum() / n, (logits, targets, lse, n, ignore_index)


@accelerated
def cross_entropy_backward(dloss, saved):
    """dloss: 0-d  →  dlogits: (..., V)"""
    logits, targets, lse, n, ignore_index = saved
    xp = array_module(logits)
    z, t = logits.reshape(-1, logits.shape[-1]), targets.reshape(-1)
    counts = t != ignore_index
    dz = xp.where(counts[:, None], xp.exp(z - lse), 0)                        # p   (N, V)
    dz[xp.arange(t.size), xp.where(counts, t, 0)] -= counts         # one place a row: no index repeats
    dz *= dloss / n
    return dz.reshape(logits.shape)
