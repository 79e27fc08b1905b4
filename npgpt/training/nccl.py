"""GPUs as ranks: a process for each, started by mpiexec, whose device arrays meet through NCCL.

What is on the host (a checkpoint's parts, the number of tokens, whether to stop) goes through MPI as for
other processes (npgpt/training/communication.py). Sums need no mean after them: each rank's loss is divided
by the targets that all of them count together, so the sum of its parts is the mean.
"""

import atexit
import contextlib
from collections.abc import Iterator
from typing import Any

from npgpt.errors import ConfigError, DeviceError
from npgpt.tensor import array_module
from npgpt.tensor.device import address, check_device
from npgpt.training.communication import MPIRanks, Ranks

TYPES = {"float16": "NCCL_FLOAT16", "float32": "NCCL_FLOAT32", "float64": "NCCL_FLOAT64",
         "bfloat16": "NCCL_BFLOAT16"}


def gpu_ranks(ranks: MPIRanks, device: str) -> tuple[MPIRanks, str]:
    """The same ranks, for arrays on GPUs, and this one's device, which own_device checks."""
    device = own_device(ranks, device)
    return NCCLRanks(ranks.communicator), device


def own_device(ranks: Ranks, device: str) -> str:
    """This rank's: a machine's n-th process gets its n-th GPU. No other is touched: that takes memory there.

    device: cpu or cuda.  Raises ConfigError for a GPU by number where there are several ranks, DeviceError
    if there are fewer GPUs than processes.
    """
    if device == "cpu" or not isinstance(ranks, MPIRanks):
        return check_device(device)
    if device != "cuda":
        raise ConfigError(f"mpiexec's processes share the GPUs out: use device cuda, not {device}")
    own = check_device(f"cuda:{ranks.number_on_machine()}")
    ranks.all_reduce(0)                                    # before all have one, none goes on to begin a run
    return own


class NCCLRanks(MPIRanks):
    """One of several processes with a GPU each, the current one.

    Parts may differ in length by one, so they are added up by a reduction to each owner and handed out by a
    broadcast of each owner, which NCCL groups to one operation.
    """

    def __init__(self, communicator: Any):
        super().__init__(communicator)
        import cupy
        from cupy.cuda import nccl  # which `import cupy` leaves out
        if not nccl.available:
            raise DeviceError("several GPUs need NCCL, which this CuPy does not find: pip install "
                              "nvidia-nccl-cu12 or nvidia-nccl-cu13, after the CUDA version")
        self._cupy, self._nccl = cupy, nccl
        name        = communicator.bcast(self._nccl.get_unique_id() if self.rank == 0 else None)
        self._gpus  = self._nccl.NcclCommunicator(self.size, name, self.rank)
        self._aside = cupy.cuda.Stream(non_blocking=True)                     # where gradients are added up
        # Kept until the process has ended: who gives it up waits for all others to, and a rank that has
        # failed must not, but end them (which processes() registers later, so that it is done before).
        atexit.register(lambda kept: None, self._gpus)

    def _start(self, flat, stretch: slice) -> list:
        current = self._cupy.cuda.get_current_stream()
        self._aside.wait_event(current.record())                              # these gradients are computed
        with self._grouped():
            for rank, place in self._owners(flat.size, stretch):
                part = flat[place]
                self._gpus.reduce(address(part), address(part), part.size, self._type(part),
                                  self._nccl.NCCL_SUM, rank, self._aside.ptr)
        return []

    def _finish(self, pending: list) -> None:
        self._cupy.cuda.get_current_stream().wait_event(self._aside.record())

    def all_gather(self, flat) -> None:
        stream = self._cupy.cuda.get_current_stream().ptr
        with self._grouped():
            for rank, place in self._owners(flat.size, slice(0, flat.size)):
                part = flat[place]
                self._gpus.broadcast(address(part), address(part), part.size, self._type(part), rank, stream)

    def all_reduce(self, *values) -> tuple:
        """Of values on the device the sums stay there, and nobody waits for them."""
        xp = array_module(*values)
        if xp is not self._cupy:
            return super().all_reduce(*values)
        kinds  = [getattr(value, "dtype", "float64") for value in values]
        totals = xp.zeros(len(values), "float64")
        for n, value in enumerate(values):
            totals[n] = value
        self._gpus.allReduce(address(totals), address(totals), totals.size, self._type(totals),
                             self._nccl.NCCL_SUM, self._cupy.cuda.get_current_stream().ptr)
        return tuple(totals[n].astype(kind) for n, kind in enumerate(kinds))

    def _type(self, array) -> int:
        return getattr(self._nccl, TYPES[array.dtype.name])

    @contextlib.contextmanager
    def _grouped(self) -> Iterator[None]:
        self._nccl.groupStart()
        yield
        self._nccl.groupEnd()
