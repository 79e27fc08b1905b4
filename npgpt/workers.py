"""The cores of this machine, and one function for many tasks on all of them, in processes that never outlive
the one that started them.
"""

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, as_completed, wait
from concurrent.futures.process import BrokenProcessPool
from itertools import chain, islice
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TypeVar

from npgpt.errors import DataError

CONTROL_GROUPS, OWN_GROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")

Task = TypeVar("Task")
Result = TypeVar("Result")


def physical_cores() -> int:
    """The cores that this process may use: those of its affinity, two threads of a core counted once, and no
    more than its control group's share of processor time."""
    if not hasattr(os, "sched_getaffinity"):
        return os.cpu_count() or 1
    cores = set()
    for cpu in os.sched_getaffinity(0):
        topology = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/core_cpus_list")
        cores.add(topology.read_text() if topology.exists() else cpu)
    return max(1, min([len(cores), *_shares()]))


def _shares() -> Iterator[int]:
    """Whole processors that the control groups this process is in, and those around them, each allow; in
    version 1 two files of a group say it, in version 2 one.
    """
    groups = [CONTROL_GROUPS, CONTROL_GROUPS / "cpu"]     # a container sees its own as the root
    with contextlib.suppress(OSError, ValueError):
        for line in OWN_GROUPS.read_text(encoding="utf-8").splitlines():
            _, controllers, path = line.split(":", 2)
            if not controllers or "cpu" in controllers.split(","):
                root  = CONTROL_GROUPS / ("cpu" if controllers else "")
                names = path.strip("/").split("/")
                groups += [root.joinpath(*names[:length]) for length in range(1, len(names) + 1)]
    for group in groups:
        for files in (["cpu.max"], ["cpu.cfs_quota_us", "cpu.cfs_period_us"]):
            with contextlib.suppress(OSError, ValueError):                # there is none, or it says max
                quota, period = map(int, " ".join((group / file).read_text() for file in files).split())
                if quota > 0:
                    yield quota // period


def each(function: Callable[[Task], Result], tasks: Iterable[Task],
         workers: int) -> Generator[Result, None, None]:
    """function(task) of every task, as they are done. One worker is this process itself, which also does a
    task that is alone.

    function and tasks are what pickle can carry; tasks are asked for as the work goes on, a few ahead. What
    a task raises is raised here, and the others are dropped. Raises DataError if a worker dies or cannot be
    had.
    """
    tasks = iter(tasks)
    first = list(islice(tasks, 2))
    if workers == 1 or len(first) < 2:
        yield from map(function, chain(first, tasks))
        return
    context = multiprocessing.get_context("spawn")            # a fork copies locks that other threads hold
    watched, held = context.Pipe(duplex=False)
    try:
        pool = ProcessPoolExecutor(workers, context, leave_with, (watched,))
    except OSError as error:
        raise DataError("several workers need a /dev/shm that can be written "
                        f"({error.strerror}): see to that, or go on with --workers 1") from error
    with pool:
        running: set[Future[Result]] = set()
        try:
            for task in chain(first, tasks):
                with _interrupts_later():                       # a new worker inherits that, for good
                    running.add(pool.submit(function, task))
                if len(running) == 2 * workers:
                    done, running = wait(running, return_when=FIRST_COMPLETED)
                    for future in done:
                        yield future.result()
            for future in as_completed(running):
                yield future.result()
        except BrokenProcessPool as error:
            raise DataError("a worker process died, perhaps for want of memory: "
                            "go on with fewer --workers") from error
        except BaseException:
            held.close()                                        # the workers leave at once
            raise


@contextlib.contextmanager
def _interrupts_later() -> Iterator[None]:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def leave_with(watched: Connection) -> None:
    """In a new worker: leave when the other end of the pipe is closed, which the death of its holder does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)                # Ctrl-C is the parent's to deal with

    def watch() -> None:
        watched.poll(None)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
