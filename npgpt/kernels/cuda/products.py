"""Products of matrices where CuPy's are not enough: in float32 of 16-bit numbers, added to what is there, or
of parts of larger arrays. cuBLAS is told where these lie; CuPy would copy them first.
"""

import functools
from typing import Any

import numpy as np

from npgpt.tensor.device import Array, array_module
from npgpt.tensor.precision import is_narrow

FACTORS   = np.array([1, 0], np.float32)
ONE, ZERO = FACTORS.ctypes.data, FACTORS[1:].ctypes.data                      # cuBLAS is told where they are


def multiply(a: Array, b: Array, out: Array, add: bool = False) -> None:
    """a: (M, K)  b: (K, N)  out: (M, N) becomes a b, or out + a b

    Of 16 bits, a and b may be parts of arrays or transposed, if numbers lie side by side along one axis; out
    along its last, in rows that may lie apart, in their type or in float32. The sums are float32.
    """
    xp = array_module(out)
    if not is_narrow(a.dtype):
        if add:
            out += a @ b
        else:
            xp.matmul(a, b, out=out)
        return
    # cuBLAS counts along columns first: to it each array is its transpose, and outᵀ = bᵀ aᵀ what it computes.
    cublas = xp.cuda.cublas
    (M, K), N = a.shape, b.shape[1]
    (op_b, apart_b), (op_a, apart_a), (_, apart) = (_layout(matrix, cublas) for matrix in (b, a, out))
    cublas.gemmEx(xp.cuda.get_cublas_handle(), op_b, op_a, N, M, K, ONE,
                  b.data.ptr, kind(xp, b.dtype), apart_b, a.data.ptr, kind(xp, a.dtype), apart_a,
                  ONE if add else ZERO, out.data.ptr, kind(xp, out.dtype), apart,
                  cublas.CUBLAS_COMPUTE_32F, cublas.CUBLAS_GEMM_DEFAULT)


@functools.cache
def kind(xp: Any, dtype: Any) -> int:
    """What NVIDIA's libraries call a type."""
    names = {"float16": "CUDA_R_16F", "bfloat16": "CUDA_R_16BF", "float32": "CUDA_R_32F"}
    return getattr(xp.cuda.runtime, names[dtype.name])


def _layout(matrix, cublas):
    """Whether it is transposed, its columns each together; and how far apart these, or else its rows, are."""
    (rows, columns), size = matrix.shape, matrix.dtype.itemsize
    down, along = matrix.strides
    if along == size:
        return cublas.CUBLAS_OP_N, max(down // size, columns)
    return cublas.CUBLAS_OP_T, max(along // size, rows)
