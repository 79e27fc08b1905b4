"""CuPy itself takes every call that a training step makes of it. What is computed is not looked at, for there
is no GPU: `python tools/pretended_gpu/build.py build/pretended_gpu` makes what answers in its place.
"""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT   = Path(__file__).parents[1]
PYTHON = ROOT / "build" / "pretended_gpu" / "python"

pytestmark = pytest.mark.skipif(not PYTHON.exists(), reason="needs tools/pretended_gpu/build.py")


def run(*arguments):
    return subprocess.run([PYTHON, *arguments], cwd=ROOT, capture_output=True, text=True)


def test_cupy_takes_every_op_and_step():
    done = run("tests/on_pretended_gpu.py")
    assert done.returncode == 0, done.stderr
    steps = [f"steps {name} {dtype}" for name in ("gpt2", "llama")
             for dtype in ("float32", "float64", "bfloat16", "float16")]
    assert done.stdout.splitlines()[1:] == [*steps, "lora", "cublasLt"]


@pytest.mark.parametrize(("code", "error"), [
    ("a = cupy.ones((2, 3, 3), 'bfloat16'); a @ a", "data type 'E' not understood"),
    ("cupy.ones(3) + numpy.ones(3)", "Unsupported type"),
    ("cupy.RawModule(code='__global__ void f() {}').get_function('g')", "NOT_FOUND"),
    ("cupy.RawKernel('extern \"C\" __global__ void f() {}', 'f')((1,), (2048,), ())", "CUDA_ERROR"),
])
def test_what_cupy_or_the_driver_refuses_is_heard(code, error):
    done = run("-c", f"import cupy, ml_dtypes, numpy; {code}")
    assert done.returncode == 1 and error in done.stderr


def test_nccl_takes_what_two_processes_ask_of_it(tmp_path):
    mpiexec = Path(sys.executable).with_name("mpiexec")
    if not mpiexec.exists():
        pytest.skip("needs npgpt[mpi]")
    done = subprocess.run(
        [mpiexec, "-n", "2", PYTHON, "-m", "npgpt", "train", "--device", "cuda", "--dtype", "bfloat16",
         "--max-iters", "2", "--eval-interval", "2", "--eval-iters", "1", "--out-dir", tmp_path / "run"],
        cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "metrics.jsonl").exists()


def test_the_host_has_its_time_told():
    done = run("tools/bench_gpu.py", "host", "--shape", "tiny", "--dtype", "bfloat16")
    assert done.returncode == 0 and "a step keeps the host for" in done.stdout
