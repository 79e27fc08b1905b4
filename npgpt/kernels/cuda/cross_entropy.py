"""Cross-entropy, one block a row: the logits are read once in forward, read and written once in backward.
Where they become dz at once (linear_cross_entropy.py), they are read twice; the second time from the cache,
if that holds the rows that are at work. So these shall be few, and have many threads each.
"""

from npgpt.kernels.cuda import launch as cuda
from npgpt.tensor import array_module
from npgpt.tensor.precision import accumulator

SLOTS = 32                             # numbers of shared memory that a block's sums need
MOST  = 1024                           # threads of a block


def cross_entropy_forward(logits, targets, num_items_in_batch=None, ignore_index=-100):
    if not cuda.covers(logits) or not takes_targets(targets):
        return NotImplemented
    xp, ignore_index = array_module(logits), int(ignore_index)
    top, total = (xp.empty((targets.size, 1), accumulator(logits.dtype)) for _ in range(2))
    loss = xp.empty((targets.size,), total.dtype)
    n    = items(targets, num_items_in_batch, ignore_index, total.dtype)
    cuda.launch("cross_entropy.cu", "cross_entropy_forward", targets.size, logits, targets, top, total,
                loss, logits.shape[-1], logits.shape[-1], ignore_index, threads=threads_of(logits),
                shared=cuda.bytes_of(SLOTS, logits.dtype))
    return loss.sum() / n, (logits, targets, top, total, n, ignore_index)


def cross_entropy_backward(dloss, saved):
    logits, targets, top, total, n, ignore_index = saved
    if not cuda.covers(logits, sums=(top, total)) or not takes_targets(targets):
        return NotImplemented
    xp = array_module(logits)
    dz = xp.empty(logits.shape, logits.dtype)
    cuda.launch("cross_entropy.cu", "cross_entropy_backward", targets.size, logits, targets, top, total,
                cuda.number(xp, dloss / n, total.dtype), dz, logits.shape[-1], logits.shape[-1],
                ignore_index)
    return dz


def threads_of(logits):
    """A block's, of forward: one for each pack of a row, as far as there may be so many; whole warps."""
    packs = -(-logits.shape[-1] * logits.dtype.itemsize // cuda.PACK)
    return min(MOST, -(-packs // 32) * 32)


def takes_targets(targets):
    return targets.flags.c_contiguous and targets.dtype == "int64"


def items(targets, num_items_in_batch, ignore_index, dtype):
    """N of npgpt/ops/cross_entropy.py."""
    if num_items_in_batch is not None:
        return max(num_items_in_batch, 1)
    return array_module(targets).maximum((targets != ignore_index).sum(dtype=dtype), 1)
