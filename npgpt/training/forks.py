"""Ranks that are processes of one machine, forked where they begin.

Threads take turns at Python itself: two threads that train a small model, whose arrays NumPy is done with in
some ten microseconds, wait for each other (tools/bench_step.py A --threads). Processes do not. Forked, they
begin with everything that is there, and what lies in shared memory (npgpt/tensor/memory.py), as a model's
parameters and gradients do, remains one for all, at one address; so there is as little to send as between
threads. To wait, a rank looks again and again for a moment before it has itself woken: another comes sooner
than a pipe or a sleep would tell of it.
"""

import multiprocessing
import os
import pickle
import queue
import signal
import sys
import threading
import time
import traceback
import warnings
from collections import deque
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from npgpt.errors import TrainingError
from npgpt.tensor.memory import shared
from npgpt.training import communication
from npgpt.training.communication import Ranks, ThreadRanks, blas_threads, run_on_threads
from npgpt.workers import leave_with

FORKS = sys.platform == "linux"        # elsewhere the system's own libraries do not outlive a fork
SOON  = 1e-3        # seconds that a rank looks for another before it sleeps,
LOOK_UP = 0.1       # and that rank 0 sleeps before it asks whether that one is still there
MOST  = 8           # values that `all_reduce` adds up


class OthersLeftError(Exception):
    """The other ranks have gone: one of them has failed, or has been killed."""


class ForkedRanks(ThreadRanks):
    """One of several processes, whose flat arrays are the very same. What else they exchange goes to rank 0
    and from there to all.
    """

    def __init__(self, rank: int, size: int, pipes: list[Connection], place: "_MeetingPlace"):
        """pipes: rank 0's to all the others, in order; of the others that to rank 0."""
        self.rank, self.size, self._pipes, self._turns, self._due = rank, size, pipes, place.turns, deque()
        self._place, self._at = place, 0

    def all_reduce(self, *values) -> tuple:
        here, self._at = self._place.values[self._at], 1 - self._at           # as threads alternate
        here[self.rank, :len(values)] = values
        self._meet()
        return tuple(sum(map(np.asarray(mine).dtype.type, column))
                     for mine, column in zip(values, here.T[:len(values)], strict=True))

    def _meet(self) -> None:
        came, go = self._place.came, self._place.go
        if self.rank:
            came[self.rank].release()
            self._take(go[self.rank])
            return
        for rank in range(1, self.size):
            self._take(came[rank], of=rank)
        for rank in range(1, self.size):
            go[rank].release()

    def _take(self, semaphore: Any, wait: bool = True, of: int | None = None) -> bool:
        """of: whom it is to come from."""
        until = time.perf_counter() + SOON
        while not semaphore.acquire(False):
            if not wait:
                return False
            if time.perf_counter() > until:
                left = of in self._place.left                                 # maybe after it had come
                if semaphore.acquire(timeout=0 if left else LOOK_UP):
                    break
                if left:
                    raise OthersLeftError
            os.sched_yield()                               # whoever it waits for may need this very core
        return True

    def gather(self, part) -> list:
        if self.rank == 0:
            return [part, *map(self._receive, self._pipes)]
        self._send(self._pipes[0], part)
        return []

    def broadcast(self, value=None):
        if self.rank:
            return self._receive(self._pipes[0])
        for pipe in self._pipes:
            self._send(pipe, value)
        return value

    def _send(self, pipe: Connection, value: Any) -> None:
        try:
            pipe.send_bytes(pickle.dumps(value))    # send would leave an open buffer to the error's traceback
        except OSError as error:
            raise OthersLeftError from error

    def _receive(self, pipe: Connection) -> Any:
        try:
            return pipe.recv()
        except (EOFError, OSError) as error:
            raise OthersLeftError from error


def run_on_processes(size: int, work: Callable[[Ranks], Any]) -> Any:
    """As run_on_threads, which it is where the system cannot fork: work(ranks) in this process and in
    `size` − 1 that are forked from it, and what it gave in this one, rank 0's.

    What the others change is lost with them, but for what lies in shared memory.
    """
    if size == 1 or not FORKS:
        return run_on_threads(size, work)
    ended: queue.SimpleQueue = queue.SimpleQueue()         # (rank, what it gave, its error)
    with blas_threads(size), _Children(size, work) as children:
        def lead() -> None:
            try:
                ended.put((0, work(ForkedRanks(0, size, children.pipes, children.place)), None))
            except BaseException as error:
                ended.put((0, None, error))

        def follow(rank: int, outcome: Connection) -> None:
            try:
                ended.put((rank, None, outcome.recv()))
            except EOFError:
                ended.put((rank, None, TrainingError(
                    f"a process of the training, one of {size}, was killed, perhaps for want of memory: "
                    "go on with fewer --workers")))
            children.place.left.add(rank)

        leader  = threading.Thread(target=lead, name="rank 0", daemon=True)
        threads = [leader, *(threading.Thread(target=follow, args=pair, daemon=True)
                             for pair in enumerate(children.outcomes, 1))]
        for thread in threads:
            thread.start()
        results: dict[int, Any] = {}
        while len(results) < size:
            rank, results[rank], error = ended.get()
            if isinstance(error, OthersLeftError):         # whoever left first says why
                results[rank] = error
            elif error is not None:
                children.end()
                leader.join(communication.WAIT_FOR_OTHERS)
                raise error
    if isinstance(results[0], OthersLeftError):
        raise results[0]
    return results[0]


class _MeetingPlace:
    """turns: semaphores, where each rank waits for its turn.  came, go: where rank 0 waits for each, and each
    to go on.  values: what each brings, by meeting (two that alternate) and rank.  left: the ranks that have
    gone, as rank 0 knows.
    """

    def __init__(self, size: int):
        semaphore = multiprocessing.get_context("fork").Semaphore
        self.turns, self.came, self.go = ([semaphore(0) for _ in range(size)] for _ in range(3))
        self.values = shared(2 * size * MOST, np.float64).reshape(2, size, MOST)
        self.left: set[int] = set()


class _Children:
    """The processes of ranks 1, 2, …; at the end of the block none is left.

    pipes, outcomes: of each, to hand it things, and where it says how it ended: with an error, or None.
    """

    def __init__(self, size: int, work: Callable[[Ranks], Any]):
        self.pipes: list[Connection] = []
        self.outcomes: list[Connection] = []
        self.processes: list[int] = []
        try:
            self.place = _MeetingPlace(size)
        except OSError as error:
            raise TrainingError("processes that share the work need a /dev/shm that can be written "
                                f"({error.strerror}): see to that, or train with --workers 1") from error
        try:
            self._start(size, work)
        except OSError as error:
            self.end()
            raise TrainingError(f"cannot start {size} processes that share the work ({error.strerror}): "
                                "train with fewer --workers") from error

    def _start(self, size: int, work: Callable[[Ranks], Any]) -> None:
        watched, self._held = multiprocessing.Pipe(duplex=False)              # they leave when it is closed
        for rank in range(1, size):
            mine, others = multiprocessing.Pipe()
            outcome, said = multiprocessing.Pipe(duplex=False)
            self.pipes.append(mine)
            self.outcomes.append(outcome)
            with warnings.catch_warnings():                # of threads, of which the child uses nothing
                warnings.simplefilter("ignore", DeprecationWarning)
                process = os.fork()
            if not process:
                for pipe in (self._held, *self.pipes, *self.outcomes):
                    pipe.close()
                _be(ForkedRanks(rank, size, [others], self.place), work, watched, said)
            self.processes.append(process)
            others.close()
            said.close()
        watched.close()

    def __enter__(self):
        return self

    def __exit__(self, *_) -> None:
        self.end()

    def end(self) -> None:
        """Those that are not done are of no more use."""
        for process in self.processes:
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
        self.processes = []


def _be(ranks: Ranks, work: Callable[[Ranks], Any], watched: Connection, said: Connection) -> None:
    """What a forked process does, to its end; nothing of what its parent was about to do."""
    try:
        outcome = None
        try:
            leave_with(watched)
            work(ranks)
        except BaseException as error:
            outcome = _portable(error)
        said.send(outcome)
    finally:
        os._exit(0)


def _portable(error: BaseException) -> BaseException:
    """The error with its traceback as a note, or what can be sent in its place."""
    error.add_note("".join(traceback.format_exception(error)))
    try:
        return pickle.loads(pickle.dumps(error))
    except Exception:
        return TrainingError(repr(error))
