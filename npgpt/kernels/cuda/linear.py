"""The linear map: a bias is added in one launch, and its gradient summed in two (columns.py). Products are
CuPy's, but for the weights' gradient of 16 bits: cuBLAS adds it up in float32, and here is told to leave it.
"""

import numpy as np

from npgpt.kernels.cuda import columns
from npgpt.kernels.cuda import launch as cuda
from npgpt.ops import linear as formula
from npgpt.tensor import array_module
from npgpt.tensor.precision import NARROW, accumulator

ONE, ZERO = np.ones((), np.float32), np.zeros((), np.float32)                 # cuBLAS is told where they are


def linear_forward(x, weight, bias=None):
    if bias is None or not cuda.covers(bias) or x.dtype != bias.dtype or x.size == 0:
        return NotImplemented
    y, _ = formula.linear_forward.reference(x, weight)
    cuda.launch("linear.cu", "add_bias", cuda.blocks_of_packs(y), y, bias, y.size, bias.size)
    return y, (x, weight, True)


def linear_backward(dy, saved, out=None, learned=(True, True)):
    x, weight, has_bias = saved
    if not (has_bias and learned[1]) or not cuda.covers(dy):
        return NotImplemented
    dx, dweight, _ = formula.linear_backward.reference(dy, (x, weight, False), out, learned)
    D      = dy.shape[-1]
    rows   = dy.size // D
    width  = 32 * cuda.PACK // dy.dtype.itemsize                              # a pack for each lane of a warp
    groups = -(-D // width)
    shares = max(1, min(cuda.BLOCKS // groups, rows // (4 * cuda.THREADS // 32)))
    partial = array_module(dy).empty((shares, D), accumulator(dy.dtype))
    cuda.launch("linear.cu", "column_sums", shares * groups, dy, partial, rows, D, groups,
                shared=cuda.bytes_of(cuda.THREADS // 32 * width, dy.dtype))
    return dx, dweight, columns.add_up(partial)


def weight_gradient(x, dy, out=None):
    """Of 16 bits: in float32, in `out` where that is given and is float32."""
    if x.dtype.name not in NARROW or not cuda.covers(x, dy, sums=() if out is None else (out,)):
        return NotImplemented
    xp, (N, C), D = array_module(x), x.shape, dy.shape[1]
    if out is None:
        out = xp.empty((C, D), np.float32)
    # cuBLAS counts along columns first. To it x is xᵀ and dy is dyᵀ, and outᵀ = dyᵀ x is what it computes.
    cublas, runtime = xp.cuda.cublas, xp.cuda.runtime
    kind = runtime.CUDA_R_16F if x.dtype == np.float16 else runtime.CUDA_R_16BF
    cublas.gemmEx(xp.cuda.get_cublas_handle(), cublas.CUBLAS_OP_N, cublas.CUBLAS_OP_T, D, C, N,
                  ONE.ctypes.data, dy.data.ptr, kind, D, x.data.ptr, kind, C, ZERO.ctypes.data, out.data.ptr,
                  runtime.CUDA_R_32F, D, cublas.CUBLAS_COMPUTE_32F, cublas.CUBLAS_GEMM_DEFAULT)
    return out
