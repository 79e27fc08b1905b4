"""Every kernel is compiled by NVIDIA's own compiler, for every type, for T4, A100 and H100, without a warning
and within a budget: none spills, and enough threads fit on a multiprocessor to hide memory's latency.
"""

import itertools
import re

import ml_dtypes  # noqa: F401
import numpy as np
import nvrtc
import pytest

from npgpt.kernels.cuda import attention, launch
from npgpt.tensor.device import AMPERE
from npgpt.tensor.precision import NARROW

REGISTERS = 64                                    # of 65,536: 1,024 threads, of whom each waits for 16 bytes
OF_TILES  = 128                                   # attention's, which works on the chip: two blocks of 256
OF_CORES  = 255                                   # and on tensor cores: two of 128
BY_CUPY   = ("-ftz=true", "--device-as-default-execution-space")              # added in cupy/cuda/compiler.py
FILES     = sorted(path.name for path in launch.HERE.glob("*.cu"))

needs_nvrtc = pytest.mark.skipif(nvrtc.library() is None, reason="needs nvidia-cuda-nvrtc-cu12")


def kernels_in(file):
    """Those that are templates of a type, with a %s for it, and perhaps of one that is 0 or 1; or of none."""
    found = re.findall(r"^(template .*\n)?__global__ void (\w+)\(", launch.source(file), re.MULTILINE)
    kinds = {"": ("",), "template <typename T>\n": ("<%s>",)}
    return [f"{kernel}{arguments}" for template, kernel in found if template.count(",") < 2
            for arguments in kinds.get(template, ("<%s, 0>", "<%s, 1>"))]


def kernels_of_tiles(file, types, generation):
    """Those of attention, whose templates take the sizes of tiles, too."""
    found = set()
    for name, width, kernel, drops in itertools.product(types, range(1, 129), attention.ON_CORES, (0, 1)):
        tiles = attention._tiles(np.dtype(name), width, kernel, drops, generation)
        if tiles and tiles.file == file:
            found.add(f"{tiles.kernel}<{', '.join([launch.TYPES[name], *map(str, tiles.constants)])}>")
    return sorted(found)


def test_every_kernel_is_found():
    assert FILES
    for file in FILES:
        of_tiles = 3 * file.startswith("attention")
        names = {kernel.partition("<")[0] for kernel in kernels_in(file)}
        assert len(names) + of_tiles == launch.source(file).count("__global__") > 0


@needs_nvrtc
@pytest.mark.parametrize("generation", [75, 80, 90])
@pytest.mark.parametrize("file", FILES)
def test_kernels_compile_within_their_budget(file, generation):
    types = [name for name in launch.TYPES if name != "bfloat16" or generation >= AMPERE]
    expressions = [kernel.replace("%s", launch.TYPES[name]) for kernel in kernels_in(file) for name in types
                   if not kernel.startswith("adamw") or (name in NARROW) == kernel.startswith("adamw_narrow")]
    expressions += kernels_of_tiles(file, types, generation)
    log, resources = nvrtc.compile_kernels(launch.source(file), (*launch.OPTIONS, *BY_CUPY), expressions,
                                           f"sm_{generation}")
    assert "warning" not in log
    for expression, need in resources.items():
        print(f"sm_{generation} {expression}: {need.registers} registers")
        tiles = OF_CORES if "_16<" in expression else OF_TILES
        assert need.registers <= (tiles if expression.startswith("attention") else REGISTERS)
        assert need.stack == need.spills == 0, expression


@needs_nvrtc
def test_the_compilers_word_is_heard():
    with pytest.raises(ValueError, match="identifier .nothing. is undefined"):
        nvrtc.compile_kernels("template <typename T> __global__ void f(T* x) { *x = nothing; }",
                              launch.OPTIONS, ["f<float>"], "sm_90")
    from_memory = """
        template <typename T> __global__ void f(T* x, int n) {
            T a[64];
            for (int i = 0; i < 64; i++) a[i] = x[i];
            for (int i = 0; i < n; i++) x[i] = a[i * 7 % 64];
        }"""
    _, resources = nvrtc.compile_kernels(from_memory, launch.OPTIONS, ["f<float>"], "sm_90")
    assert resources["f<float>"].stack == 256
