"""What of cuBLAS npgpt calls by itself, for the stand-in for CuPy: a product of matrices, by address.

Numbers of constants are those of cublas_api.h and library_types.h.
"""

import ctypes
import types

import ml_dtypes  # noqa: F401
import numpy as np

HANDLE     = 1 << 40
CUDA_TYPES = {"CUDA_R_16F": 2, "CUDA_R_16BF": 14, "CUDA_R_32F": 0}
KINDS      = {2: np.dtype("float16"), 14: np.dtype("bfloat16"), 0: np.dtype("float32")}
COMPUTE_32F, GEMM_DEFAULT = 68, -1


def module(machine) -> types.SimpleNamespace:
    """machine: of strict_cupy, which counts launches."""
    def gemmEx(handle, transa, transb, m, n, k, alpha, a, a_kind, lda, b, b_kind, ldb, beta, c, c_kind, ldc,
               compute, algorithm):
        """C = α op(A) op(B) + β C, as in cublasGemmEx's documentation; sums in float32.
        op(A): (m, k), op(B): (k, n), C: (m, n)
        """
        if (handle, compute, algorithm) != (HANDLE, COMPUTE_32F, GEMM_DEFAULT):
            raise ValueError("another handle, type of sums or algorithm than is known here")
        if a_kind != b_kind or not {transa, transb} <= {0, 1}:
            raise ValueError("factors of two types, or conjugated")
        left   = _matrix(a, a_kind, k, m, lda).T if transa else _matrix(a, a_kind, m, k, lda)
        right  = _matrix(b, b_kind, n, k, ldb).T if transb else _matrix(b, b_kind, k, n, ldb)
        result = _matrix(c, c_kind, m, n, ldc)
        alpha, beta = (ctypes.c_float.from_address(address).value for address in (alpha, beta))
        with np.errstate(all="ignore"):
            product     = alpha * (left.astype("f4") @ right.astype("f4"))
            result[...] = product + beta * result if beta else product
        machine.count("matmul", left, right, result)

    return types.SimpleNamespace(gemmEx=gemmEx, CUBLAS_OP_N=0, CUBLAS_OP_T=1, CUBLAS_COMPUTE_32F=COMPUTE_32F,
                                 CUBLAS_GEMM_DEFAULT=GEMM_DEFAULT)


def _matrix(address, kind, rows, columns, apart):
    """One whose columns lie one after the other, `apart` numbers from each to the next."""
    if apart < rows:
        raise ValueError(f"columns of {rows} numbers that lie {apart} apart")
    dtype  = KINDS[kind]
    memory = (ctypes.c_char * (((columns - 1) * apart + rows) * dtype.itemsize)).from_address(address)
    return np.lib.stride_tricks.as_strided(np.frombuffer(memory, dtype), (rows, columns),
                                           (dtype.itemsize, apart * dtype.itemsize))
