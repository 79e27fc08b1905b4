"""`cupy.RawModule` on a CPU: the kernels of npgpt/kernels/cuda compiled by g++, run by fibers (fibers.cpp).

Strict beyond what CuPy is: an argument must be of the type of its parameter, and an array lies between pages
of memory that cannot be touched, read or write, as near to one of them as it may.
"""

import atexit
import ctypes
import fcntl
import functools
import hashlib
import mmap
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np

HERE     = Path(__file__).parent
COMPILER = shutil.which("g++")
LIBC     = ctypes.CDLL(None)
OPTIONS  = ("-std=c++17", "-O1", "-fPIC", "-ffp-contract=off", "-Wall", "-Wno-unused-function",
            "-Wno-unknown-pragmas", "-fsanitize=alignment")
COPIED   = 1 << 24                              # bytes, at most
FOLDER   = "NPGPT_TESTS_KERNELS"                # names the environment variable that names a folder
SHIM     = """
extern "C" const char* parameters() { return parameters_of(&KERNEL); }
extern "C" const char* launch(void** arguments, const unsigned* grid, const unsigned* block, size_t shared,
                              bool reversed, size_t most) {
    return fibers::run([=] { call(&KERNEL, arguments); }, grid, block, shared, reversed, most);
}
"""


class KernelError(RuntimeError):
    """What a GPU would not have noticed, or not have told."""


class Launcher:
    """In which order threads and blocks run, how many, the last of them, and whether they do, or a launch is
    only counted.
    """

    def __init__(self):
        self.reversed, self.only_counts, self.most_blocks = False, False, 2**31


launcher = Launcher()


@functools.cache
def _folder() -> Path:
    """For what is compiled: of a whole test run (tests/conftest.py), or of this process alone."""
    if FOLDER in os.environ:
        return Path(os.environ[FOLDER])
    folder = Path(tempfile.mkdtemp(prefix="cuda-on-cpu-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _compile(place: Path, *arguments, source: str | None = None) -> Path:
    """g++ makes what shall lie there, whole or not at all, unless another process has or is about to."""
    with Path(f"{place}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not place.exists():
            part   = place.with_suffix(".part")
            result = subprocess.run([COMPILER, *OPTIONS, *arguments, "-o", part], input=source,
                                    capture_output=True, text=True)
            if result.returncode or result.stderr:
                raise KernelError(result.stderr)
            part.replace(place)
    return place


@functools.cache
def _load_fibers():
    """For all kernels of a process: they find there what they call, and need not be linked with anything."""
    ctypes.CDLL(_compile(_folder() / "fibers.so", "-shared", HERE / "fibers.cpp"), ctypes.RTLD_GLOBAL)


@functools.cache
def _library(code: str, expression: str) -> ctypes.CDLL:
    source  = f'#include <cuda.h>\n{code}\n#define KERNEL ({expression})\n{SHIM}'
    name    = hashlib.sha256(source.encode()).hexdigest()[:20] + ".so"
    header  = _compile(_folder() / "cuda.h.gch", "-x", "c++-header", HERE / "cuda.h")
    _load_fibers()
    library = ctypes.CDLL(_compile(_folder() / name, "-I", header.parent, "-shared", "-nostdlib",
                                   "-x", "c++", "-", source=source))
    library.launch.restype = library.parameters.restype = ctypes.c_char_p
    return library


class RawModule:
    """code: CUDA C++.  name_expressions: of the kernels, as "layernorm_forward<float>"."""

    def __init__(self, *, code, options=(), name_expressions=()):
        self.code, self.names = code, tuple(name_expressions)

    def get_function(self, name):
        if name not in self.names:
            raise KernelError(f"{name} is none of the name expressions")
        return Function(_library(self.code, name), name)


class Function:
    """A kernel, to be called with the sizes of grid and block and its arguments."""

    max_dynamic_shared_size_bytes = 48 << 10

    def __init__(self, library, name):
        self.library, self.name = library, name

    def __call__(self, grid, block, args, shared_mem=0):
        if shared_mem > min(self.max_dynamic_shared_size_bytes, 64 << 10):     # 64 KiB: sm_75's most
            raise KernelError(f"{self.name}: {shared_mem} bytes of shared memory need to be asked for")
        _launch(self.library, self.name, grid, block, args, shared_mem)


def _launch(library, name, grid, block, args, shared_mem):
    from strict_cupy import machine  # which imports this file
    grid, block = ((*sizes, 1, 1)[:3] for sizes in (grid, block))
    if min(grid) < 1 or min(block) < 1 or np.prod(block) > 1024 or grid[0] >= 2**31 or max(grid[1:]) > 65535:
        raise KernelError(f"{name}: no launch of {grid} blocks of {block} threads")
    kinds = library.parameters().decode().split()
    if len(kinds) != len(args):
        raise KernelError(f"{name} takes {len(kinds)} arguments, not {len(args)}")
    if any(hasattr(value, "_host") and value.device.id != machine.current for value in args):
        raise KernelError(f"{name}: an array of another device")
    memory  = _guarded([value._host for value in args if hasattr(value, "_host")])
    places  = [_place(name, *pair, memory) for pair in zip(kinds, args, strict=True)]
    machine.count(name, *{id(value): value for value in args}.values())
    if launcher.only_counts:
        return
    error = library.launch((ctypes.c_void_p * len(args))(*(place.ctypes.data for place in places)),
                           (ctypes.c_uint * 3)(*grid), (ctypes.c_uint * 3)(*block),
                           ctypes.c_size_t(shared_mem), ctypes.c_bool(launcher.reversed),
                           ctypes.c_size_t(launcher.most_blocks))
    if error:
        raise KernelError(f"{name}: {error.decode()}")
    for (first, end), (copy, beside) in memory.items():
        if any((part != 0xff).any() for part in beside):
            raise KernelError(f"{name} writes beyond an array")
        if copy.ctypes.data != first:
            _bytes_at(first, end)[...] = copy


def _place(name, kind, value, memory):
    """An array of one element, the parameter's value: of an array, where its guarded copy in `memory` is."""
    if not kind.endswith("*"):
        types = {"i8": int, "f8": float}
        if kind not in types or type(value) is not types[kind]:
            raise KernelError(f"{name}: {value!r} for a parameter of type {kind}")
        return np.array([value], kind)
    host = getattr(value, "_host", None)
    if host is None or f"{host.dtype.kind}{host.itemsize}*" != kind:
        raise KernelError(f"{name}: {type(value).__name__} of {getattr(host, 'dtype', '?')} for {kind}")
    first, end = _span(host)
    region, (copy, _) = next(item for item in memory.items() if item[0][0] <= first and end <= item[0][1])
    return np.array([copy.ctypes.data + host.ctypes.data - region[0]], np.uint64)


def _guarded(hosts):
    """{(first, end): a copy of these bytes, and what lies beside it}. Views of one array share one; what is
    too large for that stays where it is.
    """
    regions = []
    for first, end in sorted(set(map(_span, hosts))):
        if regions and first < regions[-1][1]:
            regions[-1] = (regions[-1][0], max(end, regions[-1][1]))
        else:
            regions.append((first, end))
    return {(first, end): _between_pages(first, end) if end - first <= COPIED else (_bytes_at(first, end), ())
            for first, end in regions}


def _between_pages(first, end):
    """A copy of these bytes, as far from a multiple of 16 as they are, and else at the end of the page after
    which nothing may be touched; at the beginning of that before which nothing may, if blocks run in reverse.
    What is left of these pages holds NaN.
    """
    size, page = end - first, mmap.PAGESIZE
    inner = -(-(size + 15) // page) * page
    room  = np.frombuffer(mmap.mmap(-1, inner + 2 * page), np.uint8)
    for outside in room.ctypes.data, room.ctypes.data + page + inner:
        if LIBC.mprotect(ctypes.c_void_p(outside), ctypes.c_size_t(page), 0):
            raise MemoryError("no page can be protected")
    room  = room[page:-page]
    place = first % 16 if launcher.reversed else inner - size - (inner - size - first) % 16
    room[...] = 0xff
    room[place:place + size] = _bytes_at(first, end)
    return room[place:place + size], (room[:place], room[place + size:])


def _span(host):
    return np.lib.array_utils.byte_bounds(host)


def _bytes_at(first, end):
    return np.ctypeslib.as_array((ctypes.c_uint8 * (end - first)).from_address(first))
