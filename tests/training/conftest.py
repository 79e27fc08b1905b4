"""mpiexec, where it is there."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

WORKER = Path(__file__).with_name("communication_worker.py")
PATHS = f"{WORKER.parent}:{WORKER.parents[1]}:{WORKER.parents[2]}"


@pytest.fixture(scope="session")
def mpiexec():
    """Runs communication_worker.py on so many processes; skipped where there is no mpiexec."""
    pytest.importorskip("mpi4py")
    program = Path(sys.executable).with_name("mpiexec")
    if not program.exists():
        pytest.skip("no mpiexec beside this Python")

    def run(size, *arguments):
        return subprocess.run([program, "-n", str(size), sys.executable, WORKER, *map(str, arguments)],
                              capture_output=True, text=True, timeout=60,
                              env=os.environ | {"OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": PATHS})
    return run
