"""Ranks: the same training step in several places at once, each on its own share of the batch.

A rank has its own activations and gradients. The ranks meet on flat arrays (npgpt/layers/flat.py), of which
each owns one part:

    reduce_scatter(grad)    afterwards this rank's part of grad is the sum over all ranks
    all_gather(data)        afterwards every rank's part of data is what its owner has there

and between the two each updates its own part of the parameters, with its own part of Adam's moments (ZeRO-1,
Rajbhandari et al. 2020). Ranks are one alone (`Ranks`), processes that mpiexec started, GPUs
(npgpt/training/nccl.py), or, on one machine, threads or processes that are forked (npgpt/training/forks.py).
Those last have one memory, and in it the flat arrays themselves in common: each adds its gradients to the one
array `in_turn`, so their sum is there when all have, and all there is to do in the two meetings is to wait.
What runs on ranks need not know which they are:

    def work(ranks):
        ...                         # on every rank; ranks.rank says which, ranks.size of how many

    run_on_processes(4, work)                           # or run_on_threads; or, in all that mpiexec starts:
    with processes() as ranks: work(ranks)

A rank that fails ends all: the others leave at their next meeting, and its error is the one that is told.
"""

import atexit
import contextlib
import os
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from npgpt.errors import DeviceError
from npgpt.workers import physical_cores

WAIT_FOR_OTHERS = 5.0       # seconds that the other ranks have to leave by themselves when one has failed
LATE_TURNS = 2              # as many things as a rank may have to do in turn while it goes on
LAUNCHERS = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE")        # what mpiexec of MPICH and of Open MPI sets


class Ranks:
    """One rank alone; the other kinds of ranks do the same for several.

    Every method is a meeting: all ranks call it, in the same order. Values are floats or 0-d arrays.
    """

    rank, size = 0, 1

    def part(self, length: int, rank: int | None = None) -> slice:
        """Which of `length` things are this rank's, or another's: neighbours, as many for each as can be."""
        rank = self.rank if rank is None else rank
        return slice(length * rank // self.size, length * (rank + 1) // self.size)

    def in_turn(self, action: Callable[[], Any]) -> None:
        """Calls action() at once; ranks of one memory one after the other, by number, each when it finds that
        those before it have, reduce_scatter at the latest. No meeting: nobody waits for the next.
        """
        action()

    def reduce_early(self, flat, stretch: slice) -> None:
        """That stretch of `flat` will change no more before reduce_scatter, and may be added up meanwhile."""

    def reduce_scatter(self, flat) -> None:
        """This rank's part of `flat` becomes the sum of all ranks'; the other parts are then of no use."""

    def all_gather(self, flat) -> None:
        """Every part of `flat` becomes what the rank that owns it has there."""

    def all_reduce(self, *values) -> tuple:
        """The sum of each value over all ranks, the same on all."""
        return values

    def gather(self, part) -> list:
        """On rank 0 the parts of all ranks, in order; nothing on the others."""
        return [part]

    def broadcast(self, value=None):
        """What rank 0 brings, on all: anything, or nothing, where the ranks are only to wait for it."""
        return value


class _Meeting:
    """Where threads meet: a place for what each brings, and a barrier; and where each waits for its turn."""

    def __init__(self, size: int):
        self.barrier = threading.Barrier(size)
        self.places: tuple[list, list] = ([None] * size, [None] * size)
        self.turns = [threading.Semaphore(0) for _ in range(size)]

    def abort(self) -> None:
        """Nobody waits any longer."""
        self.barrier.abort()
        for turn in self.turns:
            turn.release(10_000)                           # more than a rank takes before its next meeting


class ThreadRanks(Ranks):
    """One of several threads, whose flat arrays are the very same."""

    def __init__(self, rank: int, size: int, meeting: _Meeting):
        self.rank, self.size = rank, size
        self._turns: list[Any] = meeting.turns
        self._due: deque[Callable[[], Any]] = deque()
        self._meeting, self._at = meeting, 0

    def in_turn(self, action: Callable[[], Any]) -> None:
        self._due.append(action)
        self._act(LATE_TURNS)

    def _act(self, left: int) -> None:
        """Does what is due and whose turn it is; waits until not more than that is left."""
        while self._due and (self.rank == 0 or self._take(self._turns[self.rank], len(self._due) > left)):
            self._due.popleft()()
            if self.rank + 1 < self.size:
                self._turns[self.rank + 1].release()

    def _take(self, semaphore: Any, wait: bool = True) -> bool:
        """One of its permits; returns whether there was one, or waits for it."""
        return semaphore.acquire(wait)

    def reduce_scatter(self, flat) -> None:
        self._act(0)
        self._meet()

    def all_gather(self, flat) -> None:
        self._meet()

    def _meet(self) -> None:
        """All wait for the last."""
        self._meeting.barrier.wait()

    def all_reduce(self, *values) -> tuple:
        return tuple(sum(column[1:], column[0]) for column in zip(*self._exchange(values), strict=True))

    def gather(self, part) -> list:
        parts = self._exchange(part)
        return parts if self.rank == 0 else []

    def broadcast(self, value=None):
        return self._exchange(value)[0]

    def _exchange(self, mine) -> list:
        """What every rank brings, by rank.

        The places alternate: whoever is first at the next meeting writes where nobody still reads of this.
        """
        places = self._meeting.places[self._at]
        self._at = 1 - self._at
        places[self.rank] = mine
        self._meeting.barrier.wait()
        return list(places)


class MPIRanks(Ranks):
    """One of several processes, on one machine or many, that mpiexec started."""

    def __init__(self, communicator: Any):
        self.communicator = communicator
        self.rank, self.size = communicator.Get_rank(), communicator.Get_size()
        self._early: list[tuple[slice, list]] = []         # what is being added up, and what to wait for

    def number_on_machine(self) -> int:
        """Which of the processes on its machine this is."""
        from mpi4py import MPI
        return self.communicator.Split_type(MPI.COMM_TYPE_SHARED).rank

    def reduce_early(self, flat, stretch: slice) -> None:
        self._early.append((stretch, self._start(flat, stretch)))

    def reduce_scatter(self, flat) -> None:
        done = 0
        for stretch in sorted((stretch for stretch, _ in self._early), key=lambda stretch: stretch.start):
            self.reduce_early(flat, slice(done, stretch.start))
            done = stretch.stop
        self.reduce_early(flat, slice(done, flat.size))
        self._finish([request for _, requests in self._early for request in requests])
        self._early = []

    def _start(self, flat, stretch: slice) -> list:
        """Begins to add that stretch up, where each of its owners has it."""
        from mpi4py import MPI
        return [self.communicator.Ireduce(MPI.IN_PLACE if rank == self.rank else flat[place],
                                          flat[place] if rank == self.rank else None, root=rank)
                for rank, place in self._owners(flat.size, stretch)]

    def _finish(self, pending: list) -> None:
        from mpi4py import MPI
        MPI.Request.Waitall(pending)

    def _owners(self, length: int, stretch: slice) -> Iterator[tuple[int, slice]]:
        """The ranks that own something of a stretch, each with what of it is theirs."""
        for rank in range(self.size):
            part = self.part(length, rank)
            place = slice(max(part.start, stretch.start), min(part.stop, stretch.stop))
            if place.start < place.stop:
                yield rank, place

    def all_gather(self, flat) -> None:
        from mpi4py import MPI
        starts = [self.part(flat.size, rank).start for rank in range(self.size)]
        self.communicator.Allgatherv(MPI.IN_PLACE, [flat, self._lengths(flat.size), starts, None])

    def all_reduce(self, *values) -> tuple:
        total = np.array([float(value) for value in values])
        self.communicator.Allreduce(total.copy(), total)
        return tuple(np.asarray(mine).dtype.type(sum_) for mine, sum_ in zip(values, total, strict=True))

    def gather(self, part) -> list:
        lengths = self.communicator.gather(part.size)
        if self.rank:
            self.communicator.Send(part, 0)
            return []
        parts = [part, *(np.empty(length, part.dtype) for length in lengths[1:])]
        for rank in range(1, self.size):
            self.communicator.Recv(parts[rank], rank)
        return parts

    def broadcast(self, value=None):
        return self.communicator.bcast(value)

    def _lengths(self, length: int) -> list[int]:
        parts = [self.part(length, rank) for rank in range(self.size)]
        return [part.stop - part.start for part in parts]


def run_on_threads(size: int, work: Callable[[Ranks], Any]) -> Any:
    """Calls work(ranks) in `size` threads at once and returns what it gave on rank 0.

    The cores are shared out: BLAS gets cores // size threads a rank, at least one. Raises what the first rank
    to fail raised, at the latest WAIT_FOR_OTHERS seconds after that.
    """
    if size == 1:
        return work(Ranks())
    meeting = _Meeting(size)
    ended: queue.SimpleQueue = queue.SimpleQueue()

    def run(rank: int) -> None:
        try:
            ended.put((rank, work(ThreadRanks(rank, size, meeting)), None))
        except BaseException as error:
            ended.put((rank, None, error))
            meeting.abort()                                # the others break off at their next meeting

    threads = [threading.Thread(target=run, args=(rank,), name=f"rank {rank}", daemon=True)
               for rank in range(size)]
    results: dict[int, Any] = {}
    with blas_threads(size):
        try:
            for thread in threads:
                thread.start()
            while len(results) < size:
                rank, results[rank], error = ended.get()
                if error is not None:
                    raise error
        except BaseException as reason:
            meeting.abort()                                # where this thread itself was interrupted
            deadline = time.monotonic() + (WAIT_FOR_OTHERS if isinstance(reason, Exception) else 0)
            for thread in filter(threading.Thread.is_alive, threads):
                thread.join(max(0, deadline - time.monotonic()))
            raise
    return results[0]


@contextlib.contextmanager
def processes() -> Iterator[Ranks]:
    """The ranks that mpiexec started, this process being one of them; one alone where nothing of it is seen.

    Only rank 0 keeps its standard output. An error that leaves the block ends all the processes, once this
    one has said what it says while it ends. Raises DeviceError without mpi4py.
    """
    if not any(name in os.environ for name in LAUNCHERS):
        yield Ranks()
        return
    try:
        from mpi4py import MPI
    except ImportError as error:
        raise DeviceError("mpiexec needs mpi4py to reach its processes: pip install 'npgpt[mpi]'") from error
    world = MPI.COMM_WORLD
    with contextlib.ExitStack() as stack:
        if world.rank:
            silence = stack.enter_context(Path(os.devnull).open("w"))
            stack.enter_context(contextlib.redirect_stdout(silence))
        stack.enter_context(blas_threads(world.Split_type(MPI.COMM_TYPE_SHARED).size))
        try:
            yield MPIRanks(world) if world.size > 1 else Ranks()
        except BaseException as error:
            if not isinstance(error, SystemExit):
                if world.rank:
                    time.sleep(1.0)                        # what befell every rank alike, rank 0 tells alone
                atexit.register(world.Abort, 1)
                atexit.register(time.sleep, 0.25)          # but first: mpiexec may drop what was just said
            raise


def blas_threads(ranks: int) -> contextlib.AbstractContextManager:
    """Several ranks on this machine share its cores out; one alone leaves BLAS as it is."""
    if ranks == 1:
        return contextlib.nullcontext()
    return threadpool_limits(max(1, physical_cores() // ranks), user_api="blas")
