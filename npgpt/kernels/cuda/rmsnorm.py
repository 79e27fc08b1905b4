"""RMSNorm in one launch each way; backward's sum over rows is finished by a second (layernorm.py)."""

from npgpt.kernels.cuda import launch as cuda
from npgpt.tensor import array_module
from npgpt.tensor.precision import accumulator


def rmsnorm_forward(x, gamma, eps=1e-5):
    if not cuda.covers(x, gamma):
        return NotImplemented
    xp, C  = array_module(x), x.shape[-1]
    y      = xp.empty(x.shape, x.dtype)
    rstd   = xp.empty((*x.shape[:-1], 1), accumulator(x.dtype))
    blocks = -(-rstd.size // (cuda.THREADS // 32))                            # a warp a row
    cuda.launch("rmsnorm.cu", "rmsnorm_forward", blocks, x, gamma, y, rstd, rstd.size, C, float(eps))
    return y, (x, gamma, rstd)


def rmsnorm_backward(dy, saved):
    x, gamma, rstd = saved
    xp, C  = array_module(x), x.shape[-1]
    shared = cuda.bytes_of(32 + C, x.dtype)
    if not cuda.covers(dy, x, gamma, sums=(rstd,)) or shared > cuda.SHARED:
        return NotImplemented
    dx      = xp.empty(x.shape, x.dtype)
    blocks  = min(rstd.size, cuda.BLOCKS)
    partial = xp.empty((blocks, C), rstd.dtype)
    cuda.launch("rmsnorm.cu", "rmsnorm_backward", blocks, dy, x, gamma, rstd, dx, partial, rstd.size, C,
                shared=shared)
    return dx, partial.sum(0).astype(x.dtype, copy=False)
