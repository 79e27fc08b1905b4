"""LayerNorm in one launch each way; backward's sums over rows are finished by a second."""

from npgpt.kernels.cuda import launch as cuda
from npgpt.tensor import array_module
from npgpt.tensor.precision import accumulator


def layernorm_forward(x, gamma, beta=None, eps=1e-5):
    if not cuda.covers(x, gamma, gamma if beta is None else beta):
        return NotImplemented
    xp, C   = array_module(x), x.shape[-1]
    y       = xp.empty(x.shape, x.dtype)
    mean    = xp.empty((*x.shape[:-1], 1), accumulator(x.dtype))
    rstd    = xp.empty(mean.shape, mean.dtype)
    blocks  = -(-mean.size // (cuda.THREADS // 32))                           # a warp a row
    cuda.launch("layernorm.cu", "layernorm_forward", blocks, x, gamma, gamma if beta is None else beta, y,
                mean, rstd, mean.size, C, int(beta is not None), float(eps))
    return y, (x, gamma, beta is not None, mean, rstd)


def layernorm_backward(dy, saved):
    x, gamma, has_beta, mean, rstd = saved
    xp, C  = array_module(x), x.shape[-1]
    shared = cuda.bytes_of(32 + 2 * C, x.dtype)
    if not cuda.covers(dy, x, gamma, sums=(mean, rstd)) or shared > cuda.SHARED:
        return NotImplemented
    dx      = xp.empty(x.shape, x.dtype)
    blocks  = min(mean.size, cuda.BLOCKS)
    partial = xp.empty((blocks, 2, C), mean.dtype)
    cuda.launch("layernorm.cu", "layernorm_backward", blocks, dy, x, gamma, mean, rstd, dx, partial,
                mean.size, C, shared=shared)
    dgamma, dbeta = partial.sum(0).astype(x.dtype, copy=False)
    return dx, dgamma, dbeta if has_beta else None
