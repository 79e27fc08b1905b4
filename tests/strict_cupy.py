"""A strict stand-in for CuPy over NumPy: a formula that runs on it is legal on a GPU.

What CuPy refuses, this refuses. What CuPy silently does otherwise than NumPy, this does, or makes an error.
What CuPy allows but a training step must not do (wait for the GPU, fetch from it, mix in host scalars), this
forbids. It offers only what formulas use; a function is added after a look whether CuPy has it and what it
does there.

    module = strict_cupy.install(monkeypatch)          `import cupy`, array_module(x), … now give this module
    with strict_cupy.forbid_synchronisation(): …       a training step

The facts are those of CuPy 14: its guide "Differences between CuPy and NumPy", and its source, named at each
rule.
"""

import contextlib
import os
import sys
import types

import cuda_on_cpu
import numpy as np
import strict_cublas

from npgpt.kernels.cuda import biased_product
from npgpt.tensor import twins


class SynchronisationError(RuntimeError):
    """Something within a step would wait for the GPU."""


class OutOfMemoryError(MemoryError):
    """cupy.cuda.memory.OutOfMemoryError"""


class Machine:
    """The pretended machine, what was carried to it and from it, and what it was told to compute."""

    def __init__(self):
        self.launches = []                                   # (name, bytes read and written) of each kernel
        self.devices, self.current, self.free_bytes = 2, 0, float("inf")
        self.capability, self.allocated = "90", 0            # of each device; bytes, none of them ever freed
        self.in_step, self.order = False, "F"                # order: of what is computed
        self.uploads, self.downloads = [], 0                 # the shape and type of each; how many
        self.math_modes = {}                                 # cuBLAS's, by device
        self.addresses = set()                               # in its memory, as far as they were asked for

    def synchronise(self, what: str) -> None:
        if self.in_step:
            raise SynchronisationError(f"{what} waits for the GPU; not within a step")

    def count(self, name: str, *operands) -> None:
        """A kernel is launched, which crosses the memory bus with these; numbers of the host do not."""
        self.launches.append((name, sum(getattr(operand, "nbytes", 0) for operand in operands)))

    def address(self, array: np.ndarray) -> int:
        place = array.__array_interface__["data"][0]
        self.addresses.add(place)
        return place

    def allocate(self, array: np.ndarray) -> "ndarray":
        if array.nbytes > self.free_bytes:
            raise OutOfMemoryError(f"Out of memory allocating {array.nbytes} bytes")
        self.allocated += array.nbytes
        return ndarray(array, self.current)


machine = Machine()


@contextlib.contextmanager
def forbid_synchronisation():
    machine.in_step = True
    try:
        yield machine
    finally:
        machine.in_step = False


def install(monkeypatch, with_twins=False) -> types.ModuleType:
    """Makes this the module `cupy`, on a fresh machine. Every op runs its formula, or with_twins its twin for
    CUDA, whose kernels run on the CPU (cuda_on_cpu/).
    """
    machine.__init__()
    cuda_on_cpu.launcher.__init__()
    module = StrictCupy("cupy")
    monkeypatch.setitem(sys.modules, "cupy", module)
    library = strict_cublas.CublasLt(machine)
    monkeypatch.setattr(biased_product, "_library", lambda xp: library)
    if not with_twins:
        monkeypatch.setattr(twins, "find_twin", lambda formula, kind: None)
    return module


# ---- the array -------------------------------------------------------------------------------------------

class ndarray:
    """A device array; its numbers are in `_host`, which only this file may see."""

    __hash__ = None                                                           # as CuPy's

    def __init__(self, host: np.ndarray, device: int, base: "ndarray | None" = None):
        self._host, self.device, self.base = host, Device(device), base

    shape  = property(lambda self: self._host.shape)
    dtype  = property(lambda self: self._host.dtype)
    ndim   = property(lambda self: self._host.ndim)
    size   = property(lambda self: self._host.size)
    nbytes = property(lambda self: self._host.nbytes)
    flags  = property(lambda self: self._host.flags)
    strides = property(lambda self: self._host.strides)
    T      = property(lambda self: self.transpose())

    data   = property(lambda self: types.SimpleNamespace(ptr=machine.address(self._host)))

    def _view(self, host):
        """The array whose memory it is stays known (core.pyx: view)."""
        shared = np.may_share_memory(host, self._host)
        return ndarray(host, self.device.id, (self if self.base is None else self.base) if shared else None)

    def reshape(self, *shape):
        return self._view(self._host.reshape(*shape))

    def transpose(self, *axes):
        return self._view(self._host.transpose(*axes))

    def swapaxes(self, axis1, axis2):
        return self._view(self._host.swapaxes(axis1, axis2))

    def copy(self, order="C"):
        machine.count("copy", self, self)
        return machine.allocate(_operand(self).copy(order))

    def view(self, dtype):
        return self._view(self._host.view(dtype))

    def astype(self, dtype, copy=True):
        if not copy and self.dtype == dtype:
            return self
        with np.errstate(all="ignore"):
            result = _fresh(_operand(self).astype(dtype))
        machine.count("astype", self, result)
        return result

    # CuPy raises this TypeError (core.pyx). It does take over NumPy's functions; but npgpt asks for the array
    # module, so a function of NumPy's that meets a device array is an oversight.
    def __array__(self, *_, **__):
        raise TypeError("Implicit conversion to a NumPy array is not allowed")

    def __array_ufunc__(self, function, *_, **__):
        raise TypeError(f"numpy.{function.__name__} on a device array: take it from array_module(...)")

    def __array_function__(self, function, *_, **__):
        raise TypeError(f"numpy.{function.__name__} on a device array: take it from array_module(...)")

    # These fetch a number, and wait until it is computed. (CuPy's arrays have no __index__ either.)
    def item(self):
        machine.synchronise("item()")
        return self._host.item()

    def get(self):
        return asnumpy(self)

    def __float__(self):
        machine.synchronise("float()")
        return float(self._host)

    def __int__(self):
        machine.synchronise("int()")
        return int(self._host)

    def __bool__(self):
        machine.synchronise("a truth value (if, and, or, not, in, min, max)")
        return bool(self._host)

    def __format__(self, form):
        machine.synchronise("formatting")
        return format(self._host[()], form)

    def __repr__(self):
        machine.synchronise("printing")
        return f"strict {self._host!r}"

    def __len__(self):
        return len(self._host)

    def __iter__(self):
        """Views along the first axis, as in `q, k, v = qkv`: no wait. Over numbers it would be a loop."""
        if self.ndim == 0:
            raise TypeError("iteration over a 0-d array")
        if self.ndim == 1:
            machine.synchronise("iteration over numbers")
        return (self[n] for n in range(len(self)))

    def __getitem__(self, index):
        index, gathers = _index(index, self.shape)
        host = self._host[index]
        if gathers:
            machine.count("take", host, host)
        return _fresh(host.copy()) if gathers else self._view(host)

    def __setitem__(self, index, value):
        # Which of several values in one place is kept is undefined (guide, "Duplicate values in indices").
        index, scatters = _index(index, self.shape)
        if scatters:
            places = np.arange(self.size).reshape(self.shape)[index]
            if len(np.unique(places)) < places.size:
                raise ValueError("an index is repeated: which value stays is undefined on a GPU; use add.at")
        with np.errstate(all="ignore"):
            _operand(self)[index] = _operand(value)
        machine.count("assign", value, self._host[index])

    def __getattr__(self, name):
        raise AttributeError(f"the stand-in's arrays have no {name}: add it if CuPy's have it and a formula "
                             "needs it")

    def __matmul__(self, other):
        return matmul(self, other)


def _index(index, shape):
    """The index as NumPy takes it, and whether it gathers (a copy) or not (a view, 0-d for a full index).

    Integer arrays wrap around (_routines_indexing.pyx: `indices % index_range`), Python integers are checked.
    The ones of a mask are counted on the host (`n_true = int(mask_scanned[-1])`), in reading and in writing.
    """
    parts = list(index) if isinstance(index, tuple) else [index]
    if not any(part is Ellipsis for part in parts):
        parts.append(Ellipsis)                                                # or a full index gives a scalar
    masks = [part for part in parts if isinstance(part, ndarray) and part.dtype.kind == "b"]
    used  = sum(part is not None for part in parts) - 1 + sum(mask.ndim - 1 for mask in masks)
    axis, gathers = 0, False
    for n, part in enumerate(parts):
        if isinstance(part, ndarray) and part.dtype.kind == "b":
            machine.synchronise("a boolean mask")
            parts[n], axis, gathers = _operand(part), axis + part.ndim, True
        elif isinstance(part, ndarray) and part.dtype.kind in "iu":
            parts[n], axis, gathers = _operand(part) % max(shape[axis], 1), axis + 1, True
        elif part is Ellipsis:
            axis += len(shape) - used
        elif isinstance(part, (slice, int, np.integer)) and not isinstance(part, bool):
            axis += 1
        elif part is not None:
            raise IndexError(f"{type(part).__name__} as an index: upload it first, or use Python integers")
    return tuple(parts), gathers


# ---- computing -------------------------------------------------------------------------------------------

def _operand(value):
    """The numbers of what an operation is given: an array of the current device, or a Python number."""
    if isinstance(value, ndarray):
        if value.device.id != machine.current:                               # _kernel.pyx: _check_peer_access
            raise ValueError(f"The device where the array resides ({value.device.id}) is different from the "
                             f"current device ({machine.current})")
        return value._host
    if isinstance(value, np.generic):                                         # CuPy takes it, and promotes
        raise TypeError(f"a {type(value).__name__} of NumPy: use a Python number")
    if isinstance(value, (bool, int, float)):
        return value
    raise TypeError(f"Unsupported type {type(value)}")                        # _kernel.pyx: _preprocess_arg


def _fresh(host):
    """A computed result. Its strides are not promised (guide, "Contiguity / Strides"): not C's, then."""
    return machine.allocate(np.asarray(host, order=machine.order))


def _is_narrow(value):
    return isinstance(value, ndarray) and value.dtype.name in ("float16", "bfloat16")


def _elementwise(function):
    """Of arrays of 16 bits and wider ones the result is wide without a word; and what a Python number does to
    bfloat16 is not the same everywhere.
    """
    def call(*arguments, out=None):
        operands = [_operand(argument) for argument in arguments]
        if any(map(_is_narrow, arguments)) and out is None:
            kinds = {getattr(operand, "dtype", type(operand)) for operand in operands}
            if len(kinds - {np.dtype(bool)}) > 1:
                raise TypeError(f"16 bits with others: {kinds}")
        with np.errstate(all="ignore"):                                       # a GPU does not warn of NaN
            if out is None:
                out = _fresh(function(*operands))
            elif isinstance(out, ndarray):
                function(*operands, out=_operand(out), casting="same_kind")
            else:
                raise TypeError("out must be a device array")
        machine.count(getattr(function, "__name__", "where"), *operands, out)
        return out
    return call


def _reduction(name):
    def call(self, axis=None, *, dtype=None, keepdims=False):
        options = {} if dtype is None else {"dtype": dtype}
        host    = _operand(self)
        with np.errstate(all="ignore"):
            if _is_narrow(self):                                              # CuPy adds up in float32
                result = getattr(host.astype("f4"), name)(axis=axis, keepdims=keepdims).astype(host.dtype)
            else:
                result = getattr(host, name)(axis=axis, keepdims=keepdims, **options)
        result = _fresh(result)
        for _ in range(2 if name in ("var", "std") else 1):                   # of these the mean comes first
            machine.count(name, self, result)
        return result
    return call


for _name in ("sum", "prod", "mean", "var", "std", "max", "min", "argmax", "argmin", "all", "any"):
    setattr(ndarray, _name, _reduction(_name))

for _name, _function in {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "truediv": np.true_divide, "pow": np.power,
    "floordiv": np.floor_divide, "mod": np.remainder, "and": np.bitwise_and, "or": np.bitwise_or,
}.items():
    _call = _elementwise(_function)
    setattr(ndarray, f"__{_name}__", _call)
    setattr(ndarray, f"__r{_name}__", lambda self, other, call=_call: call(other, self))
    setattr(ndarray, f"__i{_name}__", lambda self, other, call=_call: call(self, other, out=self))

for _name, _function in {
    "lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal, "eq": np.equal,
    "ne": np.not_equal, "neg": np.negative, "abs": np.absolute, "invert": np.invert,
}.items():
    setattr(ndarray, f"__{_name}__", _elementwise(_function))


def _tf32(a):
    """Rounded to 10 bits of fraction, halves up."""
    return ((a.view("u4") + 0x1000) & 0xffffe000).view("f4")


def matmul(a, b, out=None):
    """Products of vectors, of matrices, and batches of float32 or float64 with as many axes on both sides.

    CuPy does other batches through copies, many small products or float32, and mixed types by casting.
    It checks of `out` the size only, and what is of another type or order it copies there
    (_routines_linalg.pyx: matmul, dot); here that is allowed of float32 for a product of 16 bits.
    """
    if not (isinstance(a, ndarray) and isinstance(b, ndarray)):
        raise TypeError(f"matmul of {type(a).__name__} and {type(b).__name__}")
    if a.ndim != b.ndim or a.ndim == 0:
        raise ValueError(f"matmul of {a.ndim} and {b.ndim} axes: reshape to two first")
    if a.dtype != b.dtype or (a.ndim > 2 and a.dtype not in (np.float32, np.float64)):
        raise TypeError(f"matmul of {a.dtype} and {b.dtype} in {a.ndim} axes")
    if _is_narrow(a) and a.ndim != 2:
        raise TypeError(f"a product of vectors in {a.dtype} is no better than that")
    with np.errstate(all="ignore"):
        if _is_narrow(a):                                                     # cublasGemmEx: sums in float32
            result = (_operand(a).astype("f4") @ _operand(b).astype("f4")).astype(a.dtype)
        elif a.dtype == np.float32 and os.environ.get("CUPY_TF32") == "1":
            result = np.matmul(_tf32(_operand(a)), _tf32(_operand(b)))
        else:
            result = np.matmul(_operand(a), _operand(b))
    machine.count("matmul", a, b, result)
    if out is None:
        return machine.allocate(np.asarray(result))
    wider = isinstance(out, ndarray) and _is_narrow(a) and out.dtype == np.float32
    if not isinstance(out, ndarray) or out.shape != result.shape or not (wider or out.dtype == result.dtype):
        raise ValueError("out must be a device array of the product's shape and type")
    if not out.flags.c_contiguous:
        raise ValueError("Output array must be C-contiguous")
    _operand(out)[...] = result
    if wider:
        machine.count("copy", result, out)
    return out


def concatenate(arrays, axis=0):
    """Device arrays of one type: of several, CuPy makes the wider (_core/_routines_manipulation.pyx)."""
    if not all(isinstance(array, ndarray) for array in arrays) or len({array.dtype for array in arrays}) > 1:
        raise TypeError("concatenate needs device arrays of one type")
    result = machine.allocate(np.concatenate([_operand(array) for array in arrays], axis))
    for array in arrays:
        machine.count("concatenate", array, array)
    return result


def stack(arrays):
    return concatenate([array[None] for array in arrays])


def argsort(a):
    """Stable, the only kind CuPy has (_routines_sorting.pyx)."""
    result = _fresh(np.argsort(_operand(a), kind="stable"))
    machine.count("argsort", a, result)
    return result


def where(condition, x, y):
    if not isinstance(condition, ndarray):                                    # CuPy calls its astype
        raise TypeError("where needs a device array as condition")
    return _elementwise(np.where)(condition, x, y)


def _add_at(a, index, b):
    """a[index] += b, repeated places counted, in the types of CUDA's atomicAdd (_routines_indexing.pyx)."""
    if a.dtype.name not in ("float16", "float32", "float64", "int32", "uint32", "uint64"):
        raise TypeError(f"add.at of {a.dtype}")
    np.add.at(_operand(a), _index(index, a.shape)[0], _operand(b))
    machine.count("add.at", b, b, b)


add = _elementwise(np.add)
add.at = _add_at


# ---- making arrays, to the device and back ---------------------------------------------------------------

def asarray(values, dtype=None):
    """The explicit upload, counted. A device array stays what it is, or is copied to the current device."""
    if isinstance(values, ndarray):
        here = values.device.id == machine.current
        array = values if here else machine.allocate(values._host.copy())
        return array if dtype is None else array.astype(dtype, copy=False)
    host = np.array(values, dtype)
    machine.uploads.append((host.shape, host.dtype.name))
    return machine.allocate(host)


def asnumpy(values):
    """The explicit download, counted."""
    machine.synchronise("asnumpy()")
    machine.downloads += 1
    return values._host.copy()


def may_share_memory(one, other):
    return np.may_share_memory(one._host, other._host)


def empty(shape, dtype=float):
    """Filled with what must not be read."""
    host = np.empty(shape, dtype)
    kind = host.dtype.kind
    host[...] = np.nan if kind in "fV" else np.iinfo(host.dtype).max if kind in "iu" else True
    return machine.allocate(host)


def full(shape, value, dtype=None):
    result = machine.allocate(np.full(shape, _operand(value), dtype))
    machine.count("fill", result)
    return result


def zeros(shape, dtype=float):
    return full(shape, 0, dtype)


def ones(shape, dtype=float):
    return full(shape, 1, dtype)


def arange(*bounds, dtype=None):
    if not all(isinstance(bound, (int, float)) for bound in bounds):
        raise TypeError("arange of something else than Python numbers")
    result = machine.allocate(np.arange(*bounds, dtype=dtype))
    machine.count("arange", result)
    return result


class Device:
    """cupy.cuda.Device: `with` makes it the current one for a while, `use` for good."""

    def __init__(self, id=None):
        self.id = machine.current if id is None else id

    compute_capability = property(lambda self: machine.capability)

    def use(self):
        machine.current = self.id

    def synchronize(self):
        machine.synchronise("Device.synchronize()")

    def __enter__(self):
        self._before, machine.current = machine.current, self.id
        return self

    def __exit__(self, *_):
        machine.current = self._before


ELEMENTWISE = ("exp", "isfinite", "log", "maximum", "minimum", "sign", "sqrt", "tanh")
MADE_HERE   = (arange, argsort, asarray, asnumpy, concatenate, empty, full, matmul, may_share_memory,
               ndarray, ones, stack, where, zeros)
FUNCTIONS   = {f.__name__: f for f in MADE_HERE} \
    | {name: _elementwise(getattr(np, name)) for name in ELEMENTWISE} \
    | {"add": add, "zeros_like": lambda a: zeros(a.shape, a.dtype)} \
    | {name: getattr(np, name) for name in ("bool_", "float32", "float64", "int32", "int64", "inf", "nan")}


class StrictCupy(types.ModuleType):
    """The module. What is not in FUNCTIONS it has not."""

    def __init__(self, name):
        super().__init__(name)
        vars(self).update(FUNCTIONS)
        self.RawModule = cuda_on_cpu.RawModule
        self.get_default_memory_pool = lambda: types.SimpleNamespace(total_bytes=lambda: machine.allocated)
        self.cuda = types.SimpleNamespace(
            Device=Device, memory=types.SimpleNamespace(OutOfMemoryError=OutOfMemoryError),
            cublas=strict_cublas.module(machine), get_cublas_handle=lambda: strict_cublas.HANDLE,
            get_current_stream=lambda: types.SimpleNamespace(ptr=0),
            runtime=types.SimpleNamespace(getDeviceCount=lambda: machine.devices, **strict_cublas.CUDA_TYPES))

    def __getattr__(self, name):
        raise AttributeError(f"the stand-in has no cupy.{name}: add it if CuPy has it and a formula needs it")
