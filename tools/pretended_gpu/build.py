"""CuPy itself, on a machine without a GPU: calls into CUDA are answered, and nothing is computed.

    python tools/pretended_gpu/build.py FOLDER                          # once, a minute
    FOLDER/python -m npgpt bench --device cuda                          # this Python, with that CuPy

That shows two things which the tests' stand-in for CuPy cannot: that CuPy takes every call that npgpt makes
of it, and how long a training step keeps the host, which has to be ahead of the GPU. Numbers mean nothing
there: kernels are compiled and loaded but never run, and arrays hold what was copied into them, or zeros.

CuPy's wheel carries NVIDIA's runtime within one of its extension modules. That one is compiled anew from
CuPy's source, against runtime.c. Beside it, driver.c, cublaslt.c, and an empty cuBLAS and NCCL are libraries.
Needs gcc.
"""

import argparse
import os
import subprocess
import sys
import sysconfig
import tarfile
from pathlib import Path

CUPY   = "14.2.0"               # whose source and wheel must be of one version
CYTHON = "3.2.4"                # with which that wheel was made
CUDA   = 12090
WHEELS = (f"cupy-cuda12x=={CUPY}", "cuda-pathfinder", f"cython=={CYTHON}", "nvidia-cuda-nvrtc-cu12==12.9.*",
          "nvidia-cuda-runtime-cu12==12.9.*", "nvidia-cuda-nvcc-cu12==12.9.*",
          "nvidia-cuda-profiler-api-cu12==12.9.*")
HERE   = Path(__file__).resolve().parent
MODULE = "cupy_backends/cuda/api/runtime"
ADDED  = """

# Added by npgpt: the sort of CuPy's wheel calls NVIDIA's runtime by itself, of which there is none.
def argsort(a, axis=-1, kind=None):
    return asarray(a.get().argsort(axis, 'stable'))


# And what is compiled is never run: it is to be there soon, not to be fast. With --pch it were sooner still,
# but NVRTC 12.9 once asked for 216 GB then, and was gone.
_compile = cuda.compiler._NVRTCProgram.compile
cuda.compiler._NVRTCProgram.compile = lambda self, options=(), log_stream=None: _compile(
    self, (*options, "--Ofast-compile=max"), log_stream)
"""
PYTHON = """#!/bin/sh
export PYTHONPATH={folder}/site LD_LIBRARY_PATH={folder}/lib:{folder}/site/nvidia/cuda_nvrtc/lib
export CUPY_CACHE_DIR={folder}/cache CUPY_ACCELERATORS=
exec {python} "$@"
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="made if need be; 700 MB")
    folder = parser.parse_args().folder.resolve()
    site, library = folder / "site", folder / "lib"
    library.mkdir(parents=True, exist_ok=True)
    pip("install", "--no-deps", "--upgrade", "--target", site, *WHEELS)
    os.environ["CUPY_INSTALL_USE_STUB"] = "1"             # or its source is refused where there is no CUDA
    pip("download", "--no-deps", "--no-binary", "cupy", "--dest", folder, f"cupy=={CUPY}")
    with tarfile.open(folder / f"cupy-{CUPY}.tar.gz") as archive:
        archive.extractall(folder, filter="data")
    source, nvidia = folder / f"cupy-{CUPY}", site / "nvidia"
    includes = [f"-I{path}" for path in (
        sysconfig.get_paths()["include"], *nvidia.glob("*/include"), source, source / "cupy_backends")]

    constants = {"CUPY_CUDA_VERSION": CUDA, "CUPY_HIP_VERSION": 0, "CUPY_USE_CUDA_PYTHON": False,
                 "CUPY_CUFFT_STATIC": False, "CUPY_CYTHON_VERSION": CYTHON}
    options = [f"-E{name}={value}" for name, value in constants.items()]
    run([sys.executable, "-m", "cython", "--cplus", "-3", "-X", "binding=False", *options, f"{MODULE}.pyx"],
        cwd=source, env=os.environ | {"PYTHONPATH": str(site)})
    run(["g++", "-c", "-O1", "-fPIC", "-DCYTHON_EXTERN_C=extern \"C\"", *includes, source / f"{MODULE}.cpp",
         "-o", folder / "runtime.o"])
    run(["gcc", "-c", "-fPIC", *includes, HERE / "runtime.c", "-o", folder / "ours.o"])
    missing = symbols(folder / "runtime.o", "U", "cuda") - symbols(folder / "ours.o", "T", "cuda")
    shared(library / "libcudart.so.12", folder / "ours.o", stubs(folder, "cudart", missing))
    built, = site.glob(f"{MODULE}.*.so")
    run(["g++", "-shared", folder / "runtime.o", library / "libcudart.so.12", "-o", built])

    shared(library / "libcuda.so.1", HERE / "driver.c")
    versions = folder / "cublas.version"
    versions.write_text("libcublas.so.12 { global: *; };")
    shared(library / "libcublas.so.12", stubs(folder, "cublas", needed(site, "cublas")),
           f"-Wl,--version-script={versions}")
    shared(library / "libcublasLt.so.12", HERE / "cublaslt.c")
    shared(library / "libnccl.so.2", stubs(folder, "nccl", needed(site, "nccl")))
    init = site / "cupy" / "__init__.py"
    init.write_text(init.read_text() + ADDED)

    python = folder / "python"
    python.write_text(PYTHON.format(folder=folder, python=sys.executable))
    python.chmod(0o755)


def pip(*arguments) -> None:
    run([sys.executable, "-m", "pip", "-q", "--disable-pip-version-check", *arguments])


def run(command: list, **options) -> str:
    """Its output. If it fails, what it said is the end."""
    try:
        done = subprocess.run([str(word) for word in command], capture_output=True, text=True, **options)
    except FileNotFoundError as error:
        sys.exit(f"{error.filename} is needed, and is not here")
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command[:4]))} …\n{done.stdout}{done.stderr}")
    return done.stdout


def symbols(file: Path, kind: str, prefix: str, *options: str) -> set[str]:
    """Names of an object file that begin so. kind: U those it needs, T those it gives."""
    found = (line.split()[-2:] for line in run(["nm", *options, file]).splitlines())
    return {name.partition("@")[0] for type_, name in found if type_ == kind and name.startswith(prefix)}


def needed(site: Path, library: str) -> set[str]:
    """What CuPy's module of that name calls of the library."""
    module, = site.glob(f"cupy_backends/cuda/libs/{library}.*.so")
    return symbols(module, "U", library, "-D")


def stubs(folder: Path, library: str, names: set[str]) -> Path:
    """A C file of functions that do nothing, and report success."""
    file = folder / f"{library}.c"
    file.write_text("".join(f"int {name}(void) {{ return 0; }}\n" for name in sorted(names)))
    return file


def shared(library: Path, *arguments) -> None:
    run(["gcc", "-shared", "-fPIC", "-w", f"-Wl,-soname,{library.name}", *arguments, "-o", library])


if __name__ == "__main__":
    main()
