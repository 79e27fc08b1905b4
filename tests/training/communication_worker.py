"""What the tests of ranks start with mpiexec: `exchange`, `steps FOLDER DTYPE …`, `fail`, or npgpt's own
command line, on this process's rank; with `cuda` before it, on stand-ins for CuPy and NCCL."""

import sys
import time
from pathlib import Path

import numpy as np
import pytest
from mpi4py import MPI
from test_communication import exchange, steps

from npgpt.cli.main import main
from npgpt.errors import TrainingError
from npgpt.tensor import to_numpy
from npgpt.training.communication import processes
from npgpt.training.nccl import gpu_ranks


def fail():
    """Rank 1 does, while the others are at work."""
    with processes() as ranks:
        if on_gpus:
            strict_cupy.machine.devices = ranks.size
            ranks, _ = gpu_ranks(ranks, "cuda")
        if ranks.rank == 1:
            raise TrainingError("this rank has failed")
        time.sleep(60)


on_gpus = sys.argv[1] == "cuda"
if on_gpus:
    import fake_nccl
    import strict_cupy
    del sys.argv[1]
    fake_nccl.install(strict_cupy.install(pytest.MonkeyPatch()))
    strict_cupy.machine.devices, strict_cupy.machine.order = 2, "C"
if sys.argv[1] == "npgpt":
    status = main(sys.argv[2:])
    if on_gpus:
        touched = set(strict_cupy.machine.math_modes)
        assert touched <= {MPI.COMM_WORLD.rank}, f"rank {MPI.COMM_WORLD.rank} has used GPUs {touched}"
    sys.exit(status)
if sys.argv[1] == "fail":
    try:
        fail()
    except TrainingError as error:                         # as in main: told, and what it held is forgotten
        print(f"TrainingError: {error}", file=sys.stderr)
    sys.exit(1)
with processes() as ranks:
    device = "cpu"
    if on_gpus:
        strict_cupy.machine.devices = ranks.size
        ranks, device = gpu_ranks(ranks, "cuda")
    if sys.argv[1] == "exchange":
        print(exchange(ranks, device))
    elif sys.argv[1] == "steps":
        folder, *dtypes = sys.argv[2:]
        for dtype in dtypes:
            model, losses, evaluated, moments = steps(ranks, None, dtype, 10 if on_gpus else 20, device)
            np.savez(Path(folder) / f"{dtype}-{ranks.size}-{ranks.rank}.npz", data=to_numpy(model.flat.data),
                     losses=np.array([*losses, evaluated]), **moments)
