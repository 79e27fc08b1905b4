"""Results of all tasks, and what happens when one fails or a worker dies."""

import contextlib
import os
import signal
import time
from functools import partial

import pytest

from npgpt import workers
from npgpt.errors import DataError
from npgpt.workers import each, physical_cores


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_every_task_is_done_once(workers):
    assert sorted(each(abs, range(-300, 0), workers)) == list(range(1, 301))   # several are done meanwhile
    assert list(each(abs, [], workers)) == []


def meet(files):
    """Whether another task was at work meanwhile: each makes a file and looks for the other's."""
    own, other = files
    own.touch()
    until = time.monotonic() + 30
    while not other.exists() and time.monotonic() < until:
        time.sleep(0.01)
    return other.exists()


def test_tasks_are_done_at_once_and_asked_for_a_few_ahead(tmp_path):
    files = tmp_path / "one", tmp_path / "other"
    asked = iter([files, files[::-1], *[files] * 98])
    with contextlib.closing(each(meet, asked, 2)) as results:
        assert next(results)
        assert len(list(asked)) > 90


def test_one_worker_is_this_process_and_so_is_that_of_a_single_task():
    assert list(each(lambda task: os.getpid(), [1, 2], 1)) == 2 * [os.getpid()]
    assert list(each(lambda task: os.getpid(), [1], 2)) == [os.getpid()]


def test_what_a_task_raises_is_raised():
    with pytest.raises(ValueError, match="invalid literal"):
        list(each(int, ["1", "x", "2"], 2))


def test_a_worker_that_dies_is_one_sentence():
    with pytest.raises(DataError, match="a worker process died, perhaps for want of memory: go on"):
        list(each(os._exit, [1, 1], 2))


def test_without_semaphores_it_is_one_sentence(monkeypatch):
    def refuse(*arguments):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("npgpt.workers.ProcessPoolExecutor", refuse)
    with pytest.raises(DataError, match=r"a /dev/shm that can be written \(Read-only file system\): see to"):
        list(each(abs, [1, 1], 2))


def test_workers_leave_at_once_when_nobody_wants_their_results():
    results, begun = each(time.sleep, [0, *[60] * 4], 2), time.monotonic()
    assert next(results) is None
    results.close()
    assert time.monotonic() - begun < 20


def test_an_interrupt_of_all_processes_is_for_the_first_alone():
    assert list(each(signal.getsignal, 2 * [signal.SIGINT], 2)) == 2 * [signal.SIG_IGN]


def test_an_interrupt_does_not_reach_a_worker_that_is_still_starting():
    mask = partial(signal.pthread_sigmask, signal.SIG_BLOCK)
    assert all(signal.SIGINT in held for held in each(mask, 2 * [()], 2)) and signal.SIGINT not in mask(())


def test_where_no_affinity_is_told_every_core_is_counted(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity")                              # as on macOS
    for count, cores in ((6, 6), (None, 1)):
        monkeypatch.setattr(os, "cpu_count", lambda count=count: count)
        assert physical_cores() == cores


def test_two_threads_of_a_core_are_one(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", {0: {0, 1, 2, 3, 4}}.get)    # nothing says whose core 4 is
    for name in ("CONTROL_GROUPS", "OWN_GROUPS"):
        monkeypatch.setattr(workers, name, tmp_path)
    monkeypatch.setattr(workers, "Path", lambda path: tmp_path / path[1:])
    for cpu in range(4):
        file = tmp_path / f"sys/devices/system/cpu/cpu{cpu}/topology/core_cpus_list"
        file.parent.mkdir(parents=True)
        file.write_text(f"{cpu % 2},{cpu % 2 + 2}\n")
    assert physical_cores() == 3


@pytest.mark.parametrize("group, files, cores", [
    ("0::/", {"cpu.max": "300000 100000"}, 3),                                # what a container sees
    ("0::/", {"cpu.max": "max 100000"}, 8),
    ("0::/", {"cpu.max": "50000 100000"}, 1),
    ("0::/a.slice/job", {"a.slice/cpu.max": "200000 100000", "a.slice/job/cpu.max": "400000 100000"}, 2),
    ("0::/../../elsewhere", {"cpu.max": "450000 100000"}, 4),
    ("4:memory:/m\n1:cpuacct,cpu:/job\n0::/", {"cpu/job/cpu.cfs_quota_us": "250000",
                                               "cpu/job/cpu.cfs_period_us": "100000"}, 2),
    ("1:cpu:/", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 8),
    ("1:cpu:/not/mounted/here", {"cpu/cpu.cfs_quota_us": "600000", "cpu/cpu.cfs_period_us": "100000"}, 6),
    ("nonsense", {"cpu.max": "nonsense"}, 8),
    (None, {}, 8),
])
def test_control_groups_of_both_versions_limit_the_cores(group, files, cores, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", {0: set(range(1000, 1008))}.get)
    monkeypatch.setattr(workers, "CONTROL_GROUPS", tmp_path / "groups")
    monkeypatch.setattr(workers, "OWN_GROUPS", tmp_path / "own")
    if group is not None:
        (tmp_path / "own").write_text(group + "\n")
    for name, content in files.items():
        (tmp_path / "groups" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "groups" / name).write_text(content + "\n")
    assert physical_cores() == cores
