"""One function for many tasks on all cores, in processes that never outlive the one that started them."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import Connection
from typing import TypeVar

from npgpt.errors import DataError

Task = TypeVar("Task")
Result = TypeVar("Result")


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0))


def each(function: Callable[[Task], Result], tasks: Sequence[Task],
         workers: int) -> Generator[Result, None, None]:
    """function(task) of every task, as they are done. One worker is this process itself.

    function and tasks are what pickle can carry. What a task raises is raised here, and the others are
    dropped. Raises DataError if a worker dies.
    """
    if min(workers, len(tasks)) <= 1:
        yield from map(function, tasks)
        return
    context = multiprocessing.get_context("spawn")            # a fork copies locks that other threads hold
    watched, held = context.Pipe(duplex=False)
    with ProcessPoolExecutor(min(workers, len(tasks)), context, _begin, (watched,)) as pool:
        try:
            for future in as_completed([pool.submit(function, task) for task in tasks]):
                yield future.result()
        except BrokenProcessPool as error:
            raise DataError("a worker process died, perhaps for want of memory: "
                            "go on with fewer --workers") from error
        except BaseException:
            held.close()                                        # the workers leave at once
            raise


def _begin(watched: Connection) -> None:
    """In a new worker: leave when the other end of the pipe is closed, which the death of its holder does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)                # Ctrl-C is the parent's to deal with

    def watch() -> None:
        watched.poll(None)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
