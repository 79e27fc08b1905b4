"""Kills writers and looks at what they leave. A script, so that it forks from a process without threads.

    checkpoint_worker.py every-call SCENARIO FOLDER    killed before every system call and inside every write
    checkpoint_worker.py random-moments FOLDER KILLS   killed at random moments while it saves and prunes
    checkpoint_worker.py disk-full FOLDER              saves more than FOLDER's file system holds
    checkpoint_worker.py file-limit FOLDER             saves while no file may be longer than some bytes
    checkpoint_worker.py lock FOLDER                   holds the run until killed

Exit status 0 and a line of JSON when all is well, 77 and a reason when no process may be traced here.

Linux tells a tracer (`ptrace`) of every system call before it is made. So the writer is stopped at each in
turn, by whatever library it is made, and killed there; a write may be made by half first. What is on the disk
between two calls is what the first of them left, so this is every state that a killed writer can leave.
"""

import ctypes
import json
import os
import platform
import random
import resource
import shutil
import signal
import struct
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from npgpt.errors import CheckpointError
from npgpt.files import atomic_write
from npgpt.training.checkpoint import (
    list_checkpoints,
    load_checkpoint,
    load_latest,
    lock_run,
    prune_checkpoints,
    save_checkpoint,
)

CALLS = {  # the numbers of the calls that change a file system, with those that do the same under one name
    "x86_64": {1: "write", 2: "open", 74: "fsync", 82: "rename", 83: "mkdir", 84: "unlink", 87: "unlink",
               257: "open", 263: "unlink", 264: "rename", 316: "rename"},
    "aarch64": {64: "write", 82: "fsync", 34: "mkdir", 35: "unlink", 38: "rename", 56: "open", 276: "rename"},
}.get(platform.machine(), {})
MEMORY = {  # of these, which change no file, one writer may make more than the one before it
    "x86_64": {9, 11, 12, 25, 28}, "aarch64": {214, 215, 216, 222, 233}}.get(platform.machine(), set())


# What is saved, and what must be found

def content(step: int, size: int = 300) -> tuple[dict[str, dict[str, np.ndarray]], dict[str, Any]]:
    """Tensors and state that differ from step to step and are known from the step alone."""
    values = np.random.default_rng(step).normal(size=(3, size)).astype(np.float32)
    tensors = {"model": {"wte.weight": values, "ln_f.bias": values[0, :5].astype(np.float64)},
               "optimizer": {"first_moment": values * 2, "step": np.array(step)}}
    return tensors, {"best_loss": step / 7, "history": [step, None, "ä"]}


def save(run: Path, step: int) -> None:
    save_checkpoint(run, step, *content(step))


def found(run: Path) -> set[int]:
    """The steps that are visible in a run, each loaded and compared with what was saved."""
    steps = set()
    for folder in list_checkpoints(run):
        checkpoint = load_checkpoint(folder)
        tensors, state = content(checkpoint.step)
        assert checkpoint.state == state and checkpoint.tensors.keys() == tensors.keys(), folder
        for stem, arrays in tensors.items():
            assert checkpoint.tensors[stem].keys() == arrays.keys(), folder
            for name, array in arrays.items():
                loaded = checkpoint.tensors[stem][name]
                assert loaded.dtype == array.dtype and np.array_equal(loaded, array), (folder, name)
        steps.add(checkpoint.step)
    return steps


def names(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())


def no_warning(sentence: str) -> None:
    raise AssertionError(sentence)


# The scenarios: a folder before, what the killed process does, what must hold after the kill and a new try

class Save:
    """A second checkpoint is saved."""

    def prepare(self, run: Path) -> None:
        save(run, 1)

    def act(self, run: Path) -> None:
        save(run, 2)

    def check(self, run: Path, finished: bool) -> None:
        steps = found(run)
        assert steps == {1, 2} if finished else steps in ({1}, {1, 2}), steps
        assert load_latest(run, no_warning).step == max(steps)
        save(run, 2)
        assert found(run) == {1, 2}
        prune_checkpoints(run, {2})
        assert names(run) == ["step-000002"], names(run)


class FirstSave(Save):
    """The first checkpoint is saved; not even the run's folder is there."""

    def prepare(self, run: Path) -> None:
        pass

    def act(self, run: Path) -> None:
        save(run, 1)

    def check(self, run: Path, finished: bool) -> None:
        steps = found(run)
        assert steps == {1} if finished else steps in (set(), {1}), steps
        save(run, 1)
        assert found(run) == {1}


class SaveOverDamaged(Save):
    """A checkpoint is saved where a damaged one of the same step stands."""

    def prepare(self, run: Path) -> None:
        save(run, 1)
        save(run, 2)
        os.truncate(run / "checkpoints/step-000002/model.safetensors", 100)

    def check(self, run: Path, finished: bool) -> None:
        warnings: list[str] = []
        checkpoint = load_latest(run, warnings.append)
        assert checkpoint.step == 2 if finished else checkpoint.step in (1, 2)
        damaged = run / "checkpoints" / ("step-000002" if warnings else "step-000002.damaged")
        assert (damaged / "model.safetensors").stat().st_size == 100, names(run)
        save(run, 2)
        assert found(run) == {1, 2}
        prune_checkpoints(run, {1, 2})
        assert names(run) == ["step-000001", "step-000002", "step-000002.damaged"], names(run)


class SaveOverOutdated(Save):
    """A checkpoint is saved where one of the same step and another state stands."""

    def prepare(self, run: Path) -> None:
        save(run, 1)
        save_checkpoint(run, 2, content(2)[0], {"history": "another"})

    def check(self, run: Path, finished: bool) -> None:
        checkpoint = load_latest(run, no_warning)
        assert checkpoint.step in (1, 2) and load_checkpoint(list_checkpoints(run)[-1]).step == 1
        assert checkpoint.state["history"] == [2, None, "ä"] if finished else checkpoint.state["history"]
        save(run, 2)
        assert found(run) == {1, 2}
        prune_checkpoints(run, {2})
        assert names(run) == ["step-000002"], names(run)


class Prune(Save):
    """Two of three checkpoints are removed."""

    def prepare(self, run: Path) -> None:
        for step in (1, 2, 3):
            save(run, step)

    def act(self, run: Path) -> None:
        prune_checkpoints(run, {3})

    def check(self, run: Path, finished: bool) -> None:
        steps = found(run)
        assert steps == {3} if finished else 3 in steps, steps
        assert load_latest(run, no_warning).step == 3
        prune_checkpoints(run, {3})
        assert names(run) == ["step-000003"], names(run)


class AtomicWrite(Save):
    """A file is replaced by atomic_write."""

    OLD, NEW = b"old" * 9, b"new" * 700_000

    def prepare(self, run: Path) -> None:
        run.mkdir()
        (run / "file").write_bytes(self.OLD)

    def act(self, run: Path) -> None:
        with atomic_write(run / "file") as file:
            for start in range(0, len(self.NEW), 140_000):      # more than Python's buffer holds
                file.write(memoryview(self.NEW)[start:start + 140_000])

    def check(self, run: Path, finished: bool) -> None:
        held = (run / "file").read_bytes()
        assert held == self.NEW if finished else held in (self.OLD, self.NEW), len(held)


SCENARIOS = {kind.__name__: kind for kind in (Save, FirstSave, SaveOverDamaged, SaveOverOutdated, Prune,
                                                  AtomicWrite)}


# Killed before every call

TRACEME, SYSCALL, SETOPTIONS, GET_SYSCALL_INFO = 0, 24, 0x4200, 0x420E
TRACE_SYSTEM_CALLS, EXIT_KILL = 1, 0x100000
SYSCALL_INFO = struct.Struct("<B3xIQQQ6Q")  # kind (1: before the call), machine, ip, sp, number, arguments


def ptrace(request: int, pid: int, address: int = 0, data: Any = 0) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
    libc.ptrace.restype = ctypes.c_long
    if libc.ptrace(request, pid, address, data) == -1:
        raise OSError(ctypes.get_errno(), "ptrace")


def start(act: Callable[[], None]) -> int:
    """A forked process that is stopped just before it acts."""
    pid = os.fork()
    if pid == 0:
        try:
            ptrace(TRACEME, 0)
            os.kill(os.getpid(), signal.SIGSTOP)
            act()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    _, status = os.waitpid(pid, 0)
    assert os.WIFSTOPPED(status), status
    ptrace(SETOPTIONS, pid, 0, TRACE_SYSTEM_CALLS | EXIT_KILL)
    return pid


def kill_before_call(act: Callable[[], None], number: int, torn: bool) -> str | None:
    """Kills a process that acts before its call of that number, those for memory not counted; its name, or
    None if there are fewer calls.

    torn: if the call is a write, the first half of its bytes is written all the same.
    """
    pid = start(act)
    info, calls = ctypes.create_string_buffer(SYSCALL_INFO.size), 0
    while True:
        ptrace(SYSCALL, pid)
        _, status = os.waitpid(pid, 0)
        if os.WIFEXITED(status):
            assert os.WEXITSTATUS(status) == 0, "the act itself failed"
            return None
        assert os.WIFSTOPPED(status) and os.WSTOPSIG(status) == signal.SIGTRAP | 0x80, status
        ptrace(GET_SYSCALL_INFO, pid, SYSCALL_INFO.size, ctypes.addressof(info))
        kind, _, _, _, call, *arguments = SYSCALL_INFO.unpack(info.raw)
        if kind == 1 and call not in MEMORY:
            calls += 1
            if calls == number:
                name = CALLS.get(call, "other")
                if torn and name == "write":
                    write_half(pid, *arguments[:3])
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                return name


def write_half(pid: int, descriptor: int, address: int, count: int) -> None:
    with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
        memory.seek(address)
        half = memory.read(count // 2)
    position = int(Path(f"/proc/{pid}/fdinfo/{descriptor}").read_text().split()[1])
    with Path(f"/proc/{pid}/fd/{descriptor}").open("r+b", buffering=0) as file:
        file.seek(position)
        file.write(half)


def every_call(scenario: Save, folder: Path) -> dict[str, int]:
    """How often the process was killed before each kind of call."""
    template, run = folder / "template", folder / "run"
    scenario.prepare(template)
    kills: Counter[str] = Counter()
    number, torn = 1, False
    while True:
        shutil.rmtree(run, ignore_errors=True)
        if template.exists():
            shutil.copytree(template, run)
        name = kill_before_call(lambda: scenario.act(run), number, torn)
        try:
            scenario.check(run, finished=name is None)
        except BaseException:
            print(f"killed before call {number} ({name}, {torn=})", file=sys.stderr)
            raise
        if name is None:
            return dict(kills)
        kills["torn write" if torn else name] += 1
        torn = name == "write" and not torn
        number += not torn


# Killed at random moments

def random_moments(run: Path, kills: int) -> dict[str, int]:
    """A process saves and prunes in a loop and says so; it is killed, the next goes on from what it left."""
    moments = random.Random(0)
    required: set[int] = set()  # acknowledged and not given up to pruning
    acknowledged, seconds = 0, 0.01
    for _ in range(kills):
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(reader)
            try:
                step = max(found(run), default=0)
                while True:
                    step += 1
                    save(run, step)
                    os.write(writer, f"{step} saved\n".encode())
                    best = step // 4 * 4 or 1
                    os.write(writer, f"{best} {step} kept\n".encode())
                    prune_checkpoints(run, {best, step})
            except BaseException:
                traceback.print_exc()
                os._exit(1)
        os.close(writer)
        with os.fdopen(reader, encoding="utf-8") as lines:
            said = [lines.readline()]
            begin, rounds = time.perf_counter(), moments.randint(0, 3)
            said += [lines.readline() for _ in range(2 * rounds)]
            if rounds:
                seconds = (time.perf_counter() - begin) / rounds  # of a save and a pruning
            time.sleep(moments.uniform(0, 1.2 * seconds))
            os.kill(pid, signal.SIGKILL)
            said += lines.readlines()
        _, status = os.waitpid(pid, 0)
        assert os.WIFSIGNALED(status), "the writer failed by itself"
        for line in said:
            *steps, verb = line.split()
            if verb == "saved":
                required |= set(map(int, steps))
                acknowledged += 1
            else:
                required &= set(map(int, steps))
        visible = found(run)
        assert required <= visible, f"acknowledged {sorted(required)}, there are {sorted(visible)}"
        assert load_latest(run, no_warning).step == max(visible)
    return {"acknowledged": acknowledged, "kills": kills}


# Full disks

def refused(run: Path, step: int, size: int) -> str:
    try:
        save_checkpoint(run, step, *content(step, size))
    except CheckpointError as error:
        assert "\n" not in str(error), error
        assert found(run) == {1} and names(run) == ["step-000001"], names(run)
        return str(error)
    raise AssertionError("it was saved")


def disk_full(run: Path) -> dict[str, str]:
    save(run, 1)
    sentence = refused(run, 2, size=1_000_000)
    save(run, 3)  # nothing of the failed save fills the disk
    assert found(run) == {1, 3}
    return {"sentence": sentence}


def file_limit(run: Path) -> dict[str, str]:
    save(run, 1)
    largest = max(path.stat().st_size for path in (run / "checkpoints/step-000001").iterdir())
    sentences = set()
    for limit in [0, 1, 50, 100, 300, 1000, largest // 2, largest - 1]:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        sentences.add(refused(run, 2, size=300))
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    save(run, 2)
    assert found(run) == {1, 2} and len(sentences) == 1, sentences
    return {"sentence": sentences.pop()}


def lock(run: Path) -> None:
    with lock_run(run):
        print("locked", flush=True)
        signal.pause()


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["every-call", name, folder]:
            try:
                os.kill(probe := start(lambda: None), signal.SIGKILL)
                os.waitpid(probe, 0)
            except (OSError, AssertionError) as error:
                print(f"this machine does not let a process be traced: {error}")
                sys.exit(77)
            print(json.dumps(every_call(SCENARIOS[name](), Path(folder))))
        case ["random-moments", folder, kills]:
            print(json.dumps(random_moments(Path(folder), int(kills))))
        case ["disk-full", folder]:
            print(json.dumps(disk_full(Path(folder) / "run")))
        case ["file-limit", folder]:
            print(json.dumps(file_limit(Path(folder) / "run")))
        case ["lock", folder]:
            lock(Path(folder))
