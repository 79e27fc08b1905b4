"""LayerNorm in one launch each way; backward's sums over rows are finished by a second (columns.py). Both
take what residual_norm.py adds, too.
"""

from npgpt.kernels.cuda import columns
from npgpt.kernels.cuda import launch as cuda
from npgpt.tensor import array_module
from npgpt.tensor.precision import accumulator


def layernorm_forward(x, gamma, beta=None, eps=1e-5, h=None):
    """h: (..., C), added to x first; then that sum is returned with y."""
    added, shift = x if h is None else h, gamma if beta is None else beta
    if not cuda.covers(x, added, gamma, shift):
        return NotImplemented
    xp, C  = array_module(x), x.shape[-1]
    s      = x if h is None else xp.empty(x.shape, x.dtype)
    y      = xp.empty(x.shape, x.dtype)
    mean   = xp.empty((*x.shape[:-1], 1), accumulator(x.dtype))
    rstd   = xp.empty(mean.shape, mean.dtype)
    blocks = -(-mean.size // (cuda.THREADS // 32))                            # a warp a row
    cuda.launch("layernorm.cu", "layernorm_forward", blocks, x, added, gamma, shift, s, y, mean, rstd,
                mean.size, C, int(h is not None), int(beta is not None), float(eps))
    return y if h is None else (s, y), (s, gamma, beta is not None, mean, rstd)


def layernorm_backward(dy, saved, ds=None):
    """ds: (..., C), added to dx."""
    x, gamma, has_beta, mean, rstd = saved
    plan = columns.plan(mean.size, x, kinds=2)
    added = dy if ds is None else ds
    if not cuda.covers(dy, x, gamma, added, sums=(mean, rstd)) or not plan:
        return NotImplemented
    xp, C   = array_module(x), x.shape[-1]
    dx      = xp.empty(x.shape, x.dtype)
    partial = xp.empty((plan.blocks, 2, C), mean.dtype)
    cuda.launch("layernorm.cu", "layernorm_backward", plan.blocks, dy, x, gamma, mean, rstd, added,
                dx, partial, mean.size, C, int(ds is not None), threads=plan.threads, shared=plan.shared)
    dgamma, dbeta = columns.add_up(partial)
    return dx, dgamma, dbeta if has_beta else None
