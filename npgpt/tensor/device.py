"""Devices: arrays are made on one, and everything after follows the arrays.

A device is named as in PyTorch: "cpu", "cuda" or "cuda:1". This is the only file that imports CuPy. CuPy
computes on the thread's current GPU, and reaches for arrays of another over the bus or refuses to. So to name
a GPU here, as a model does with each batch of tokens, is to make it the current one.

It is also to tell cuBLAS there to keep sums in float32: where it computes a product of 16 bits in parts, so
that all of the GPU is busy, it would else round these before it adds them up. CuPy 14 leaves that alone: from
compute capability 5.0 on it says with each product in what type to compute, TF32 too, and sets no mode.
"""

import os
import sys
from typing import Any

import numpy as np

from npgpt.errors import DeviceError
from npgpt.tensor.memory import shared

Array = Any        # a numpy.ndarray or a cupy.ndarray; the formulas run on either
TURING, AMPERE = 75, 80                # compute capabilities, those of T4 and A100
WIDE_SUMS = 16                         # cublas_api.h: CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION


def array_module(*arrays: Array):
    """numpy, or cupy if any of the arrays lives on a GPU.

    An array can only be CuPy's once CuPy has been imported, so nothing is imported here.
    """
    cupy = sys.modules.get("cupy")
    if cupy is not None:
        for array in arrays:
            if isinstance(array, cupy.ndarray):
                return cupy
    return np


def address(array: Array) -> int:
    """Where its first number lies in the memory of its device."""
    return array.__array_interface__["data"][0] if array_module(array) is np else array.data.ptr


def device_of(array: Array) -> str:
    """The device on which an array lives, as `to_device` takes it."""
    return "cpu" if array_module(array) is np else f"cuda:{array.device.id}"


def capability(array: Array) -> int:
    """The compute capability of the GPU on which an array lives, ten times NVIDIA's number: 75 is 7.5."""
    return int(array.device.compute_capability)


def to_device(array: Array, device: str = "cpu") -> Array:
    """The same values on `device`; the array itself if it is there already.

    Raises DeviceError if the device's name is unknown, CuPy or a driver is missing, or the GPU's memory is
    full.
    """
    if device == "cpu":
        return to_numpy(array)
    cupy = _cuda(device)
    try:
        return cupy.asarray(array)
    except cupy.cuda.memory.OutOfMemoryError as error:
        raise DeviceError(f"no room on {device} for {array.nbytes / 2**20:.0f} MiB more: "
                          "use a smaller model or batch, or another device") from error


def empty(size: int, dtype: str, device: str = "cpu") -> Array:
    """A flat array of `size` numbers on `device`, its values undefined; on the CPU one that forked processes
    share. Raises as `to_device` does, and where the GPU has no such numbers.
    """
    if device == "cpu":
        return shared(size, dtype)
    cupy, kind = _cuda(device), _float_type(dtype)
    has = cupy.cuda.Device().compute_capability
    if dtype == "bfloat16" and int(has) < AMPERE:
        raise DeviceError(f"dtype bfloat16 needs a GPU of compute capability 8.0 or above, and {device} has "
                          f"{has[:-1]}.{has[-1]}: use float16")
    try:
        return cupy.empty(size, kind)
    except cupy.cuda.memory.OutOfMemoryError as error:
        raise DeviceError(f"no room on {device} for {size * kind.itemsize / 2**20:.0f} MiB: "
                          "use a smaller model, or another device") from error


def to_numpy(array: Array) -> np.ndarray:
    """The same values as a NumPy array; the array itself if it is one. A GPU's floats of 16 bits become
    float32, for NumPy adds them up in 16 bits.
    """
    xp = array_module(array)
    if xp is np:
        return np.asarray(array)
    narrow = array.dtype.itemsize == 2 and array.dtype.kind not in "iu"       # bfloat16's kind is "V"
    return xp.asnumpy(array.astype(np.float32) if narrow else array)


def synchronize(device: str = "cpu") -> None:
    """Waits until everything queued on `device` is done; nothing is ever queued on the CPU."""
    if device != "cpu":
        _cuda(device).cuda.Device().synchronize()


def bytes_held(device: str) -> int:
    """What CuPy has taken of a GPU's memory, and keeps for what comes."""
    cupy = _cuda(device)
    return cupy.get_default_memory_pool().total_bytes()


def check_device(device: str) -> str:
    """The device's name, if arrays can be made there; else DeviceError in one sentence."""
    if device != "cpu":
        _cuda(device)
    return device


def allow_tf32() -> None:
    """From now on, matrix products of float32 on a GPU may round their factors to TF32, 10 bits of fraction,
    which tensor cores multiply several times faster. CuPy looks once, at the first such product.
    """
    os.environ["CUPY_TF32"] = "1"


def _float_type(name: str) -> np.dtype:
    """NumPy's type of that name, bfloat16 too, which the package ml_dtypes makes known to it."""
    if name == "bfloat16":
        try:
            import ml_dtypes  # noqa: F401
        except ImportError as error:
            raise DeviceError("dtype bfloat16 needs ml_dtypes: pip install ml_dtypes") from error
    return np.dtype(name)


def _cuda(device: str) -> Any:
    """CuPy, after "cuda" or "cuda:N" was made the current GPU."""
    kind, colon, number = str(device).partition(":")
    if kind != "cuda" or (colon and not number.isdecimal()):
        raise DeviceError(f"unknown device {device!r}: use cpu, cuda or cuda:N")
    index = int(number or 0)
    try:
        import cupy
    except ImportError as error:
        raise DeviceError(f"device {device} needs CuPy: pip install 'npgpt[cuda12]' or 'npgpt[cuda13]', "
                          "after the CUDA version that nvidia-smi shows") from error
    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except Exception as error:             # CUDARuntimeError: no driver, or one too old for this CuPy
        reason = str(error).strip() or type(error).__name__
        raise DeviceError(f"device {device} needs an NVIDIA GPU with a working driver: {reason}") from error
    if index >= count:
        raise DeviceError(f"no device {device}: this machine has {count} CUDA device{'s' * (count != 1)}")
    cupy.cuda.Device(index).use()
    cupy.cuda.cublas.setMathMode(cupy.cuda.get_cublas_handle(), WIDE_SUMS)    # a thread has one for each GPU
    return cupy
