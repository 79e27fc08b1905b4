"""Ranks that are forked: what they give each other, that they compute what threads do, and how they end."""

import contextlib
import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import tiny
from threadpoolctl import threadpool_info
from training.test_communication import assert_same, steps

from npgpt.cli.bench import memory_held
from npgpt.errors import TrainingError
from npgpt.models import GPT
from npgpt.tensor.memory import shared
from npgpt.training import communication, forks
from npgpt.training.communication import ThreadRanks, run_on_threads
from npgpt.training.config import TrainConfig
from npgpt.training.forks import ForkedRanks, OthersLeftError, run_on_processes

pytestmark = pytest.mark.skipif(not forks.FORKS, reason="ranks are threads here")


@pytest.fixture(autouse=True)
def children():
    """None is left behind. (Other tests may have begun some, which stay.)"""
    def alive():
        pids = set()
        for file in Path("/proc/self/task").glob("*/children"):
            with contextlib.suppress(OSError):               # that thread has ended since
                pids.update(file.read_text().split())
        return pids

    before = alive()
    yield
    assert alive() <= before


def test_only_the_first_rank_is_this_process():
    process = os.getpid()
    ranks = run_on_processes(3, lambda ranks: ranks.gather((os.getpid(), type(ranks))))
    assert [pid == process for pid, _ in ranks] == [True, False, False]
    assert {kind for _, kind in ranks} == {ForkedRanks} and len({pid for pid, _ in ranks}) == 3


def test_threads_do_it_where_nothing_is_forked(monkeypatch):
    monkeypatch.setattr(forks, "FORKS", False)
    assert run_on_processes(2, lambda ranks: type(ranks)) is ThreadRanks


@pytest.mark.parametrize("size", [2, 3, 5])
@pytest.mark.parametrize("soon", [forks.SOON, 0.0])
def test_nobody_goes_on_before_all_have_met_and_heard_what_each_brings(size, soon, monkeypatch):
    monkeypatch.setattr(forks, "SOON", soon)               # 0: who waits, sleeps
    arrived = shared(size, "int64")

    def work(ranks):
        rng = np.random.default_rng(ranks.rank)
        for number in range(1, 200):
            if rng.random() < 0.05:
                time.sleep(0.002)
            arrived[ranks.rank] = number
            whole, part = ranks.all_reduce(number * 10 ** ranks.rank, np.float32(number / 3))
            assert (arrived >= number).all()
            assert whole == number * int("1" * size)
            assert part.dtype == np.float32 and part == sum([np.float32(number / 3)] * size)
            if number % 7 == 0:
                ranks.all_gather(arrived)

    run_on_processes(size, work)


def test_what_is_shared():
    array = shared(6, "float32")
    assert array.tolist() == [0] * 6 and array.flags.writeable
    assert shared(0, "float64").size == 0
    for size in (1 << 50, 1 << 70):
        with pytest.raises(MemoryError):
            shared(size, "float64")
    model = GPT(TrainConfig(**tiny.SETTINGS).model(11))
    flats = array, model.flat.data, model.flat.grad
    copy  = array.copy()

    def work(ranks):
        for flat in (*flats, copy):
            flat[ranks.part(flat.size)] = ranks.rank + 1
        ranks.all_gather(array)

    run_on_processes(2, work)
    for flat in flats:
        assert (flat == 1 + (np.arange(flat.size) >= flat.size // 2)).all()
    assert copy.tolist() == [1, 1, 1, 0, 0, 0]


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("replicas_at_first", [True, False])
def test_processes_compute_what_threads_do(dtype, replicas_at_first):
    """20 updates with dropout: to the bit, for sums are in the same order, whenever a replica is made."""
    config  = TrainConfig(**tiny.SETTINGS | {"n_embd": 12})
    results = []
    for run in (run_on_threads, run_on_processes):
        model  = GPT(config.model(11), config.seed, dtype=dtype)
        models = model.replicas(3)
        for own in models[1:] if replicas_at_first else []:
            own.replica = lambda own=own: own
        _, losses, evaluated, moments = run(3, lambda ranks, models=models: steps(
            ranks, models[ranks.rank] if replicas_at_first else models[0], dtype))
        results.append({"data": model.flat.data.copy(), "losses": np.array([*losses, evaluated]), **moments})
    assert all(np.array_equal(results[0][name], results[1][name]) for name in results[0])
    assert_same(results, dtype)


class OddError(Exception):
    """Cannot be sent."""

    def __init__(self, one, two):
        super().__init__("odd")


@pytest.mark.parametrize(("failing", "error", "kind", "said"), [
    (1, TrainingError("this rank has failed"), TrainingError, "^this rank has failed"),
    (2, ZeroDivisionError("division"), ZeroDivisionError, "division"),
    (0, TrainingError("the first has failed"), TrainingError, "the first has failed"),
    (1, OddError(1, 2), TrainingError, r"OddError\('odd'\)"),
])
def test_a_rank_that_fails_ends_all_and_its_error_is_told(failing, error, kind, said):
    def work(ranks):
        if ranks.rank == failing:
            raise error
        ranks.broadcast()
        time.sleep(60 if ranks.rank else 0)
        ranks.all_reduce(1.0)                              # where rank 0 waits for who is asleep

    begun = time.monotonic()
    with pytest.raises(kind, match=said) as caught:
        run_on_processes(3, work)
    assert time.monotonic() - begun < 4
    if failing and not isinstance(error, OddError):
        assert "in work\n    raise error" in "".join(caught.value.__notes__)


class SlowError(Exception):
    """Takes its time to arrive."""

    def __setstate__(self, state):
        time.sleep(0.3)
        super().__setstate__(state)


def test_an_error_is_told_even_if_it_is_noticed_first_that_its_rank_has_gone():
    def work(ranks):
        if ranks.rank:
            raise SlowError("at last")
        ranks.all_reduce(1.0)

    with pytest.raises(SlowError, match="at last"):
        run_on_processes(2, work)


def test_processes_share_the_cores_out(monkeypatch):
    def number(ranks=None):
        return {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}

    before = number()
    monkeypatch.setattr(communication, "physical_cores", lambda: 6)
    assert run_on_processes(2, lambda ranks: ranks.gather(number())) == [{3}, {3}]
    assert number() == before


def test_a_rank_that_is_killed_ends_all():
    def work(ranks):
        if ranks.rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        ranks.all_reduce(1.0)

    with pytest.raises(TrainingError, match="a process of the training, one of 2, was killed"):
        run_on_processes(2, work)


def test_ranks_that_meet_a_different_number_of_times_do_not_wait_for_ever():
    with pytest.raises(OthersLeftError):
        run_on_processes(2, lambda ranks: ranks.rank or ranks.all_reduce(1.0))


class Late:
    """A semaphore that is released just after it was looked at."""

    def __init__(self):
        self.looks = 0

    def acquire(self, block=True, timeout=None):
        self.looks += 1
        return self.looks > 1 and timeout is not None


def test_a_rank_that_came_and_then_left_has_come(monkeypatch):
    """It may come between a look and the question whether it has gone."""
    monkeypatch.setattr(forks, "SOON", 0.0)
    place = forks._MeetingPlace(2)
    place.left.add(1)
    assert ForkedRanks(0, 2, [], place)._take(Late(), of=1)
    with pytest.raises(OthersLeftError):
        ForkedRanks(0, 2, [], place)._take(place.came[1], of=1)


def test_nothing_goes_on_in_this_process_when_another_has_failed():
    def work(ranks):
        if ranks.rank:
            raise TrainingError("this rank has failed")
        for _ in range(2):
            ranks.all_reduce(1.0)

    before = threading.enumerate()
    with pytest.raises(TrainingError, match="this rank has failed"):
        run_on_processes(2, work)
    assert "rank 0" not in {thread.name for thread in threading.enumerate() if thread not in before}


def test_the_others_leave_when_the_first_is_killed(tmp_path):
    script = tmp_path / "script.py"
    script.write_text("import os, time\nfrom npgpt.training.forks import run_on_processes\n"
                      "def work(ranks):\n    os.write(1, f'{os.getpid()}\\n'.encode())\n    time.sleep(100)\n"
                      "run_on_processes(3, work)\n")
    with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True) as process:
        pids = [int(process.stdout.readline()) for _ in range(3)]
        process.kill()
        process.wait()
        deadline = time.monotonic() + 5
        while any(map(running, pids)):
            assert time.monotonic() < deadline
            time.sleep(0.05)


def running(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    with open(f"/proc/{pid}/stat") as file:                                   # noqa: PTH123
        return file.read().rpartition(")")[2].split()[0] != "Z"


def test_a_fork_beside_a_thread_does_not_warn():
    done   = threading.Event()
    thread = threading.Thread(target=done.wait)
    thread.start()
    try:
        assert run_on_processes(2, lambda ranks: ranks.all_reduce(1.0)) == (2.0,)
    finally:
        done.set()
        thread.join()


def test_a_signal_to_all_stops_the_training_once_and_it_is_saved(tmp_path):
    """As Ctrl-C in a terminal, or a service that is stopped."""
    command = [sys.executable, "-m", "npgpt", "train", *tiny.FLAGS, "--max-iters", "100000", "--workers", "2",
               "--eval-interval", "100000", "--out-dir", str(tmp_path / "run")]
    for number in (signal.SIGINT, signal.SIGTERM):
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                              start_new_session=True, cwd=tmp_path) as process:
            wait_for(lambda: "train_loss" in read(tmp_path / "run" / "metrics.jsonl"))
            os.killpg(process.pid, number)
            said = process.communicate(timeout=20)[0]
        assert "stopped and saved" in said and "Traceback" not in said
        command = [sys.executable, "-m", "npgpt", "train", "--resume", str(tmp_path / "run")]
        (tmp_path / "run" / "metrics.jsonl").write_text("")


def wait_for(condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def read(path):
    return path.read_text() if path.exists() else ""


def test_memory_that_all_hold_is_counted_once():
    both = shared(32 << 20, "uint8")

    def work(ranks):
        before = memory_held()
        ranks.all_reduce(0.0)                              # a meeting of all: none goes on before
        mine = shared(16 << 20, "uint8")                   # made here, it is nobody else's
        both[:] = mine[:] = 1
        ranks.all_reduce(0.0)
        held = memory_held()
        ranks.all_reduce(0.0)
        return ranks.all_reduce(held - before)[0]

    total = run_on_processes(2, work)
    assert 60 << 20 < total < 80 << 20                                        # 32 + 2 × 16 MiB


def test_without_semaphores_it_is_one_sentence(monkeypatch):
    """As where /dev/shm cannot be written or is not there."""
    def refuse(*arguments, **options):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("multiprocessing.synchronize.SemLock.__init__", refuse)
    with pytest.raises(TrainingError, match=r"/dev/shm that can be written \(Read-only file system\): see to "
                                            "that, or train with --workers 1"):
        run_on_processes(2, lambda ranks: None)


def test_where_a_fork_fails_none_is_left_behind(monkeypatch):
    fork, asked = os.fork, iter(range(2))

    def refuse():
        if next(asked):
            raise BlockingIOError(11, "Resource temporarily unavailable")
        return fork()

    monkeypatch.setattr(os, "fork", refuse)
    with pytest.raises(TrainingError, match=r"cannot start 3 processes that share the work \(Resource tempor"
                                            r"arily unavailable\): train with fewer --workers"):
        run_on_processes(3, lambda ranks: ranks.gather(1))


def test_an_error_of_sending_leaves_no_buffer_that_cannot_be_closed(monkeypatch):
    """multiprocessing's own send does: from Python 3.14 on, it is told beside the error when it is freed."""
    told: list = []
    monkeypatch.setattr(sys, "unraisablehook", told.append)
    mine, others = multiprocessing.Pipe()
    others.close()

    def fail():
        errors = []
        try:
            ForkedRanks(0, 2, [mine], forks._MeetingPlace(2)).broadcast("of no use")
        except OthersLeftError as error:
            errors.append(error)                           # whose traceback has this frame: a circle

    fail()
    gc.collect()
    assert not told
