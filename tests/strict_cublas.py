"""What of cuBLAS and cuBLASLt npgpt calls by itself, for the stand-in for CuPy: products, by address.

Numbers of constants are those of cublas_api.h, cublasLt.h and library_types.h.
"""

import ctypes
import itertools
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

    def setMathMode(handle, mode):
        machine.math_modes[machine.current] = mode

    return types.SimpleNamespace(gemmEx=gemmEx, setMathMode=setMathMode, CUBLAS_OP_N=0, CUBLAS_OP_T=1,
                                 CUBLAS_COMPUTE_32F=COMPUTE_32F, CUBLAS_GEMM_DEFAULT=GEMM_DEFAULT)


REFUSED     = 7                                                               # CUBLAS_STATUS_INVALID_VALUE
ATTRIBUTES  = {7: 4, 8: 8}                                                    # of an operation: their sizes
PREFERENCES = {1: 8, 3: 4, 5: 4, 6: 4, 7: 4, 8: 4}


class CublasLt:
    """The library as ctypes shows it. As the real one does, even without a GPU, it refuses an attribute that
    it does not know or that is of another size. An address that is less aligned than it was told when the
    algorithm was chosen, and a bias that is less so than D or a pack, is an error: that may end a GPU's
    kernel. Where it may round parts of sums to the type of D, it does.
    """

    def __init__(self, machine):
        self.machine, self.made, self.numbers = machine, {}, itertools.count(1)

    def _make(self, pointer, made):
        pointer._obj.value = next(self.numbers)
        self.made[pointer._obj.value] = made
        return 0

    def _set(self, sizes, what, name, value, size):
        if what.value not in self.made or sizes.get(name) != size.value:
            return REFUSED
        self.made[what.value][name] = value._obj.value
        return 0

    def cublasLtMatmulDescCreate(self, pointer, compute, scale):
        return self._make(pointer, {}) if (compute, scale) == (COMPUTE_32F, 0) else REFUSED

    def cublasLtMatmulDescSetAttribute(self, *arguments):
        return self._set(ATTRIBUTES, *arguments)

    def cublasLtMatrixLayoutCreate(self, pointer, kind, rows, columns, apart):
        return self._make(pointer, (kind, rows.value, columns.value, apart.value))

    def cublasLtMatmulPreferenceCreate(self, pointer):
        return self._make(pointer, {})

    def cublasLtMatmulPreferenceSetAttribute(self, *arguments):
        return self._set(PREFERENCES, *arguments)

    def cublasLtMatmulPreferenceDestroy(self, preference):
        return 0 if self.made.pop(preference.value, None) is not None else REFUSED

    def cublasLtMatmulAlgoGetHeuristic(self, handle, operation, a, b, c, d, preference, count, choice, found):
        kinds = {self.made[layout.value][0] for layout in (a, b, c, d)}
        if handle.value != HANDLE or count != 1 or len(kinds) != 1 or ctypes.sizeof(choice._obj) != 96:
            return REFUSED
        preferred = self.made[preference.value]
        aligned   = [preferred.get(name, 256) for name in (5, 6, 7, 8)]
        choice._obj.algorithm[:6] = *aligned, max(aligned[3], 16), preferred.get(3, 7)
        choice._obj.workspace     = min(preferred.get(1, 0), 512)
        found._obj.value          = 1
        return 0

    def cublasLtMatmul(self, handle, operation, alpha, a, of_a, b, of_b, beta, c, of_c, d, of_d, choice,
                       workspace, workspace_size, stream):
        """D = α A B + β C + bias, which has a number for each row; sums in float32."""
        asked  = self.made[operation.value]
        places = a, b, c, d, asked[8]
        if any(place % aligned for place, aligned in zip(places, choice._obj.algorithm[:5], strict=True)):
            raise ValueError("an address that is less aligned than the algorithm takes it to be")
        if workspace_size < choice._obj.workspace or not workspace or asked.get(7) != 4:
            return REFUSED
        if (handle, c, of_c.value, stream) != (HANDLE, d, of_d.value, 0):
            return REFUSED
        left, right, result = (_matrix(pointer, *self.made[layout.value])
                               for pointer, layout in ((a, of_a), (b, of_b), (d, of_d)))
        kind, rows, *_ = self.made[of_d.value]
        bias = _matrix(asked[8], kind, rows, 1, rows)
        alpha, beta = (ctypes.c_float.from_address(address).value for address in (alpha, beta))
        with np.errstate(all="ignore"):
            parts       = [left[:, part].astype("f4") @ right[part].astype("f4")
                           for part in (slice(0, left.shape[1] // 2), slice(left.shape[1] // 2, None))]
            if choice._obj.algorithm[5] != 2:                                 # …REDUCTION_SCHEME_COMPUTE_TYPE
                parts = [part.astype(result.dtype).astype("f4") for part in parts]
            product     = alpha * sum(parts) + bias.astype("f4")
            result[...] = product + beta * result if beta else product
        self.machine.count("matmul", left, right, bias, result)
        return 0


def _matrix(address, kind, rows, columns, apart):
    """One whose columns lie one after the other, `apart` numbers from each to the next."""
    if apart < rows:
        raise ValueError(f"columns of {rows} numbers that lie {apart} apart")
    dtype  = KINDS[kind]
    memory = (ctypes.c_char * (((columns - 1) * apart + rows) * dtype.itemsize)).from_address(address)
    return np.lib.stride_tricks.as_strided(np.frombuffer(memory, dtype), (rows, columns),
                                           (dtype.itemsize, apart * dtype.itemsize))
