"""x W + b in one launch, of 16 bits: cuBLASLt adds the bias to the sums of a product before they leave the
chip. CuPy's product and an addition would write y, read it and write it again, and round it twice.

CuPy 14 has no cuBLASLt. But cuBLAS is made of it: the one is loaded with the other, and takes its handles.
What is left is to describe a product, once for each shape, and to have an algorithm chosen for it. Names and
numbers are those of cublasLt.h.
"""

import ctypes
import functools
from typing import Any, NamedTuple

import numpy as np

from npgpt.kernels.cuda import launch as cuda
from npgpt.kernels.cuda.products import ONE, ZERO, kind
from npgpt.tensor.device import Array, array_module

COMPUTE_32F, R_32F = 68, 0                                                    # of sums; of α and β
EPILOGUE, BIAS_POINTER, EPILOGUE_BIAS = 7, 8, 4                               # of an operation
MAX_WORKSPACE, ALIGNMENTS = 1, (5, 6, 7, 8)                                   # preferred; of A, B, C, D
REDUCTIONS, IN_COMPUTE_TYPE = 3, 2                                            # of what parts of a sum are
WORKSPACE = 32 << 20                                                          # bytes, as NVIDIA advises

Pointer = ctypes.c_void_p


class Choice(ctypes.Structure):
    """cublasLtMatmulHeuristicResult_t"""

    _fields_ = (("algorithm", ctypes.c_uint64 * 8), ("workspace", ctypes.c_size_t), ("status", ctypes.c_int),
                ("waves", ctypes.c_float), ("reserved", ctypes.c_int * 4))


class Plan(NamedTuple):
    """A product, where the numbers of its arrays lie, and by which algorithm it is computed."""

    operation: Pointer
    weight: Pointer
    x: Pointer
    y: Pointer
    choice: Choice


def multiply_and_shift(x: Array, weight: Array, bias: Array, y: Array) -> bool:
    """x: (M, K)  weight: (K, N)  bias: (N,)  y: (M, N) becomes x W + b; contiguous, of one type of 16 bits.

    Whether it does: not where cuBLASLt is not found, or knows no algorithm for it, or the bias lies at no
    multiple of 16 bytes. That it is told, but chooses algorithms all the same that read packs of it.
    """
    xp = array_module(y)
    w, x_, y_, b = (array.data.ptr for array in (weight, x, y, bias))
    handle, library = xp.cuda.get_cublas_handle(), _library(xp)
    if b % cuda.PACK or not library:
        return False
    plan = _plan(library, handle, kind(xp, y.dtype), *x.shape, bias.size,
                 tuple(min(place & -place, 256) for place in (w, x_, y_, y_ | b)))
    if not plan:
        return False
    _set(library.cublasLtMatmulDescSetAttribute, plan.operation, BIAS_POINTER, Pointer(b))
    workspace = xp.empty(plan.choice.workspace, np.uint8)
    return not library.cublasLtMatmul(
        handle, plan.operation, ONE, w, plan.weight, x_, plan.x, ZERO, y_, plan.y, y_, plan.y,
        ctypes.byref(plan.choice), workspace.data.ptr, workspace.nbytes, xp.cuda.get_current_stream().ptr)


@functools.cache
def _library(xp: Any) -> Any:
    """The one that CuPy has loaded; None if there is none of that name."""
    try:
        library = ctypes.CDLL(f"libcublasLt.so.{xp.cuda.runtime.runtimeGetVersion() // 1000}")
    except OSError:
        return None
    library.cublasLtMatmul.argtypes = (*[Pointer] * 14, ctypes.c_size_t, Pointer)
    return library


@functools.cache
def _plan(library: Any, handle: int, type_: int, M: int, K: int, N: int, aligned: tuple) -> Plan | None:
    """aligned: what the places of weight, x, y, and of y and bias both, are multiples of, in bytes, at most
    256: the bias is read as y is written. A sum may be computed in parts, but these are added up in float32.

    cuBLAS counts along columns first: to it each array is its transpose, and yᵀ = Wᵀ xᵀ the product. A
    handle, and so a plan, is of one thread.
    """
    operation, preference, weight, x, y = (Pointer() for _ in range(5))
    choice, found = Choice(), ctypes.c_int()
    describe = functools.partial(_set, library.cublasLtMatmulDescSetAttribute, operation)
    prefer   = functools.partial(_set, library.cublasLtMatmulPreferenceSetAttribute, preference)

    def lay_out(matrix, rows, columns):
        return library.cublasLtMatrixLayoutCreate(ctypes.byref(matrix), type_, ctypes.c_uint64(rows),
                                                  ctypes.c_uint64(columns), ctypes.c_int64(rows))

    failures = [
        library.cublasLtMatmulDescCreate(ctypes.byref(operation), COMPUTE_32F, R_32F),
        describe(EPILOGUE, ctypes.c_uint32(EPILOGUE_BIAS)),
        describe(BIAS_POINTER, Pointer(aligned[3])),                          # only its alignment matters yet
        lay_out(weight, N, K), lay_out(x, K, M), lay_out(y, N, M),
        library.cublasLtMatmulPreferenceCreate(ctypes.byref(preference)),
        prefer(MAX_WORKSPACE, ctypes.c_uint64(WORKSPACE)),
        prefer(REDUCTIONS, ctypes.c_uint32(IN_COMPUTE_TYPE)),
        *(prefer(name, ctypes.c_uint32(bytes_)) for name, bytes_ in zip(ALIGNMENTS, aligned, strict=True)),
        library.cublasLtMatmulAlgoGetHeuristic(Pointer(handle), operation, weight, x, y, y, preference, 1,
                                               ctypes.byref(choice), ctypes.byref(found)),
        library.cublasLtMatmulPreferenceDestroy(preference)]
    if any(failures) or not found.value or choice.status:
        return None
    return Plan(operation, weight, x, y, choice)


def _set(function: Any, what: Pointer, name: int, value: Any) -> int:
    return function(what, name, ctypes.byref(value), ctypes.c_size_t(ctypes.sizeof(value)))
