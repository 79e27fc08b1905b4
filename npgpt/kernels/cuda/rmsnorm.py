"""RMSNorm in one launch each way; backward's sum over rows is finished by a second (columns.py)."""

from npgpt.kernels.cuda import columns
from npgpt.kernels.cuda import launch as cuda
from npgpt.tensor import array_module
from npgpt.tensor.precision import accumulator


def rmsnorm_forward(x, gamma, eps=1e-5, h=None):
    """h: (..., C), added to x first; then that sum is returned with y."""
    added = x if h is None else h
    if not cuda.covers(x, added, gamma):
        return NotImplemented
    xp, C  = array_module(x), x.shape[-1]
    s      = x if h is None else xp.empty(x.shape, x.dtype)
    y      = xp.empty(x.shape, x.dtype)
    rstd   = xp.empty((*x.shape[:-1], 1), accumulator(x.dtype))
    blocks = -(-rstd.size // (cuda.THREADS // 32))                            # a warp a row
    cuda.launch("rmsnorm.cu", "rmsnorm_forward", blocks, x, added, gamma, s, y, rstd, rstd.size, C,
                int(h is not None), float(eps))
    return y if h is None else (s, y), (s, gamma, rstd)


def rmsnorm_backward(dy, saved, ds=None):
    """ds: (..., C), added to dx."""
    x, gamma, rstd = saved
    plan = columns.plan(rstd.size, x, kinds=1)
    added = dy if ds is None else ds
    if not cuda.covers(dy, x, gamma, added, sums=(rstd,)) or not plan:
        return NotImplemented
    xp, C   = array_module(x), x.shape[-1]
    dx      = xp.empty(x.shape, x.dtype)
    partial = xp.empty((plan.blocks, C), rstd.dtype)
    cuda.launch("rmsnorm.cu", "rmsnorm_backward", plan.blocks, dy, x, gamma, rstd, added, dx,
                partial, rstd.size, C, int(ds is not None), threads=plan.threads, shared=plan.shared)
    return dx, columns.add_up(partial)
