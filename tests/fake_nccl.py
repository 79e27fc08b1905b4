"""`cupy.cuda.nccl` over MPI, and streams: what NCCL and CUDA would do with processes that have a GPU each.

Stricter than they are: all ranks must ask for the same in the same order; what is on a stream is done only
when another one waits for it, and may be put there only after it has waited for the one that computes.
"""

import ctypes
import sys
import types

import ml_dtypes  # noqa: F401
import numpy as np
import strict_cupy
from mpi4py import MPI

TYPES = {"NCCL_FLOAT16": "float16", "NCCL_FLOAT32": "float32", "NCCL_FLOAT64": "float64",
         "NCCL_BFLOAT16": "bfloat16"}
CODES = dict(zip(TYPES, (6, 7, 8, 9), strict=True))                            # nccl.h: ncclDataType_t
NAMES = {code: TYPES[name] for name, code in CODES.items()}


class Stream:
    """The current stream, if its number is 0: what is put there is done at once."""

    def __init__(self, non_blocking=False):
        assert non_blocking, "another stream is to run beside the current one"
        self.ptr, self._tasks, self._may_begin = id(self), [], False
        streams[self.ptr] = self

    def record(self):
        return types.SimpleNamespace(stream=self, count=len(self._tasks))

    def wait_event(self, event):
        event.stream.finish(event.count)
        self._may_begin = event.stream is current

    def put(self, task):
        assert self._may_begin, "nobody waited for what this reads to be computed"
        self._may_begin = False
        self._tasks.append(task)

    def finish(self, count):
        for task in self._tasks[:count]:
            task()
        del self._tasks[:count]


class CurrentStream(Stream):
    def __init__(self):
        self.ptr, self._tasks = 0, []
        streams[0] = self

    def put(self, task):
        task()


streams: dict = {}
current = CurrentStream()


class NcclCommunicator:
    """Signatures: cupy_backends/cuda/libs/nccl.pyx."""

    _group: list | None = None

    def __init__(self, ndev, commId, rank):
        assert isinstance(commId, tuple) and (ndev, rank) == (MPI.COMM_WORLD.size, MPI.COMM_WORLD.rank)
        assert set(MPI.COMM_WORLD.allgather(commId)) == {commId}
        self._world = MPI.COMM_WORLD

    def __del__(self):
        """As ncclCommDestroy, which CuPy calls: who comes waits for all others."""
        self._world.Barrier()

    def reduce(self, sendbuf, recvbuf, count, datatype, op, root, stream):
        assert op == nccl.NCCL_SUM and streams[stream] is not current, "backward would wait for it"

        def task():
            total = self._sum(sendbuf, count, datatype)
            if MPI.COMM_WORLD.rank == root:
                _array(recvbuf, count, datatype)[...] = total
        self._add(("reduce", count, datatype, root), stream, task)

    def allReduce(self, sendbuf, recvbuf, count, datatype, op, stream):
        assert op == nccl.NCCL_SUM

        def task():
            _array(recvbuf, count, datatype)[...] = self._sum(sendbuf, count, datatype)
        self._add(("allReduce", count, datatype), stream, task)

    def broadcast(self, sendbuff, recvbuff, count, datatype, root, stream):
        def task():
            numbers = MPI.COMM_WORLD.bcast(_array(sendbuff, count, datatype).tobytes(), root)
            _array(recvbuff, count, datatype)[...] = np.frombuffer(numbers, NAMES[datatype])
        self._add(("broadcast", count, datatype, root), stream, task)

    def _sum(self, place, count, datatype):
        """In the order of ranks; of 16 bits in float32."""
        parts = MPI.COMM_WORLD.allgather(_array(place, count, datatype).tobytes())
        wide  = np.result_type(NAMES[datatype], "float32") if datatype in (7, 8) else "float32"
        return sum(np.frombuffer(part, NAMES[datatype]).astype(wide) for part in parts)

    @classmethod
    def _add(cls, what, stream, task):
        def together():
            asked = MPI.COMM_WORLD.allgather(what)
            assert len(set(asked)) == 1, f"ranks ask for different things: {asked}"
            task()
        if cls._group is None:
            streams[stream].put(together)
        else:
            cls._group.append((stream, together))


def _group_start():
    assert NcclCommunicator._group is None
    NcclCommunicator._group = []


def _group_end():
    tasks, NcclCommunicator._group = NcclCommunicator._group, None
    by_stream: dict = {}
    for stream, task in tasks:
        by_stream.setdefault(stream, []).append(task)
    for stream, together in by_stream.items():
        streams[stream].put(lambda all_=together: [task() for task in all_])


def _array(place, count, datatype):
    assert place in strict_cupy.machine.addresses, "this is the host's memory"
    kind = np.dtype(NAMES[datatype])
    return np.frombuffer((ctypes.c_char * (count * kind.itemsize)).from_address(place), kind)


nccl = types.SimpleNamespace(
    available=True, NCCL_SUM=0, NcclCommunicator=NcclCommunicator, groupStart=_group_start,
    groupEnd=_group_end, get_unique_id=lambda: (1, 2, 3), **CODES)


def install(cupy):
    """Into the stand-in for CuPy. `import cupy` does not import the module (cupy/cuda/__init__.py)."""
    sys.modules["cupy.cuda"] = types.SimpleNamespace(nccl=nccl)               # type: ignore[assignment]
    cupy.cuda.Stream, cupy.cuda.get_current_stream = Stream, lambda: current
