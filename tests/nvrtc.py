"""NVIDIA's run-time compiler without a GPU: real machine code of a kernel, and what it needs.

From the package nvidia-cuda-nvrtc-cu12, of which CuPy's `ctk` extra is a user too.
"""

import ctypes
import re
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple


class Resources(NamedTuple):
    """Of one kernel: registers a thread; bytes of a thread's memory off the chip, its stack and spills."""

    registers: int
    stack: int
    spills: int


def library():
    """None where the package is not installed."""
    found = find_spec("nvidia.cuda_nvrtc") if find_spec("nvidia") else None
    paths = sorted(Path(found.submodule_search_locations[0]).glob("lib/libnvrtc.so.*")) if found else []
    return ctypes.CDLL(paths[0]) if paths else None


def compile_kernels(source, options, expressions, architecture):
    """→ the compiler's log, and {expression: Resources}.  Raises ValueError with the log if it refuses."""
    nvrtc, program = library(), ctypes.c_void_p()
    options = [*options, f"--gpu-architecture={architecture}", "--ptxas-options=-v"]
    assert nvrtc.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"kernels.cu", 0, None, None) == 0
    for expression in expressions:
        assert nvrtc.nvrtcAddNameExpression(program, expression.encode()) == 0
    failed = nvrtc.nvrtcCompileProgram(program, len(options),
                                       (ctypes.c_char_p * len(options))(*map(str.encode, options)))
    size = ctypes.c_size_t()
    nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    nvrtc.nvrtcGetProgramLog(program, log)
    text = log.value.decode()
    if failed:
        raise ValueError(text)
    resources = {}
    for expression in expressions:
        name = ctypes.c_char_p()
        assert nvrtc.nvrtcGetLoweredName(program, expression.encode(), ctypes.byref(name)) == 0
        report = text.partition(f"Compiling entry function '{name.value.decode()}'")[2]
        report = report.partition("Compiling entry")[0]
        stack, stores, loads = (int(re.search(rf"(\d+) bytes {what}", report)[1])
                                for what in ("stack frame", "spill stores", "spill loads"))
        resources[expression] = Resources(int(re.search(r"Used (\d+) registers", report)[1]), stack,
                                          stores + loads)
    nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
    return text, resources
