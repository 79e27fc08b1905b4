"""The head and its loss, forward, where all logits exist at once: they become dz where they are."""

from npgpt.kernels.cuda import launch as cuda
from npgpt.kernels.cuda.cross_entropy import SLOTS, items, takes_targets
from npgpt.ops import linear_cross_entropy as formula
from npgpt.tensor import array_module
from npgpt.tensor.precision import accumulator

LOGITS_AT_ONCE = 1 << 30               # 2 GiB in 16 bits: 21,364 rows of GPT-2's vocabulary


def linear_cross_entropy_forward(x, weight, targets, num_items_in_batch=None, ignore_index=-100, rows=None):
    if not cuda.covers(x, weight) or not takes_targets(targets):
        return NotImplemented
    rows = rows or max(1, LOGITS_AT_ONCE // weight.shape[0])
    if targets.size > rows:
        return formula.linear_cross_entropy_forward.reference(x, weight, targets, num_items_in_batch,
                                                              ignore_index, rows)
    xp     = array_module(x)
    t      = targets.reshape(-1)
    lse    = xp.empty((t.size, 1), accumulator(x.dtype))
    loss   = xp.empty((t.size,), lse.dtype)
    n      = items(t, num_items_in_batch, ignore_index, lse.dtype)
    dz     = x.reshape(-1, x.shape[-1]) @ weight.T                            # still the logits   (N, V)
    cuda.launch("cross_entropy.cu", "cross_entropy_in_place", t.size, dz, t, lse, loss, dz.shape[1],
                ignore_index, shared=cuda.bytes_of(SLOTS, x.dtype))
    return loss.sum() / n, (x, weight, targets, dz, lse, n, ignore_index, t.size)
