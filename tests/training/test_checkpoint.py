"""What a checkpoint gives back, which are kept, and who may write."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from npgpt.errors import CheckpointError, TrainingError
from npgpt.training import checkpoint as checkpoint_module
from npgpt.training.checkpoint import (
    list_checkpoints,
    load_checkpoint,
    load_latest,
    lock_run,
    prune_checkpoints,
    save_checkpoint,
    step_of,
)

WORKER = Path(__file__).with_name("checkpoint_worker.py")
FILES = ["manifest.json", "model.safetensors", "optimizer.safetensors", "state.json"]


def save(run, step, value=None):
    tensors = {"model": {"w": np.full((2, 3), step if value is None else value, np.float32)},
               "optimizer": {"m": np.arange(3.0)}}
    return save_checkpoint(run, step, tensors, {"step_again": step})


def damage(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x55")


def steps(run):
    return list(map(step_of, list_checkpoints(run)))


def names(run):
    return sorted(path.name for path in (run / "checkpoints").iterdir())


def no_warning(sentence):
    pytest.fail(sentence)


# What is given back

def test_arrays_of_every_layout_and_type_come_back(tmp_path):
    base = np.random.default_rng(0).normal(size=(4, 6, 5))
    arrays = {
        "transposed": base.T, "every second": base[:, ::2], "backwards": base[::-1],
        "big-endian": base.astype(">f8"), "fortran": np.asfortranarray(base),
        "read-only": np.broadcast_to(base[0, 0], (3, 5)), "0-d": np.array(1.5), "empty": np.zeros((0, 3)),
        "a name with ü and \"": base, "last": base[0],
    }
    for dtype in ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8"):
        arrays[dtype] = abs(base * 50).astype(dtype)
    with np.errstate(divide="ignore", invalid="ignore"):
        arrays["not finite"] = np.array([-1.0, 0.0, 1.0]) / 0
    folder = save_checkpoint(tmp_path, 7, {"model": arrays, "optimizer": {}}, {})
    loaded = load_checkpoint(folder)
    assert loaded.tensors["optimizer"] == {} and loaded.tensors["model"].keys() == arrays.keys()
    for name, array in arrays.items():
        got = loaded.tensors["model"][name]
        assert got.dtype == array.dtype.newbyteorder("=") and got.shape == array.shape, name
        np.testing.assert_array_equal(got, array, err_msg=name)
    assert load_file(folder / "model.safetensors").keys() == arrays.keys()  # anybody can read it


def test_a_run_is_named_by_a_text_too(tmp_path):
    run = str(tmp_path / "run")
    with lock_run(run):
        folders = [save(run, step) for step in (1, 2)]
        prune_checkpoints(run, [2])
    assert list_checkpoints(run) == folders[1:]
    assert load_latest(run, no_warning).step == load_checkpoint(str(folders[1])).step == 2


def test_the_state_comes_back(tmp_path):
    state = {"loss": 0.1 + 0.2, "best": float("inf"), "text": "ä\n", "list": [1, None, {}], "big": 2**63}
    loaded = load_checkpoint(save_checkpoint(tmp_path, 1_234_567, {}, state))
    assert loaded.step == 1_234_567 and loaded.state == state and loaded.tensors == {}
    assert steps(tmp_path) == [1_234_567]


def test_the_folder_is_as_documented(tmp_path):
    folder = save(tmp_path / "new" / "run", 250)
    assert folder == tmp_path / "new/run/checkpoints/step-000250"
    assert sorted(path.name for path in folder.iterdir()) == FILES
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["npgpt_checkpoint"] == 1 and sorted(manifest["files"]) == FILES[1:]
    for name, entry in manifest["files"].items():
        assert entry["size"] == (folder / name).stat().st_size and len(entry["sha256"]) == 64


def test_saving_needs_no_second_copy_of_the_tensors(tmp_path):
    import tracemalloc

    tensors = {"model": {name: np.ones(500_000, np.float32) for name in "abcd"}}  # 2 MB each
    tracemalloc.start()
    try:
        save_checkpoint(tmp_path, 1, tensors, {})
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


# Order on the disk

def test_everything_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    """A kill loses nothing that the kernel was given; a power cut what was not fsynced in this order."""
    done, sizes = [], {}

    def fsync(descriptor, fsync=os.fsync):
        fsync(descriptor)
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        done.append(path.name)
        sizes[path.name] = os.fstat(descriptor).st_size

    def rename(old, new, rename=os.rename):
        rename(old, new)
        done.append(f"{Path(old).name} → {Path(new).name}")

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "rename", rename)
    folder = save(tmp_path / "run", 1)
    assert done == [tmp_path.name, "run", *FILES[1:], "manifest.json", ".step-000001.partial",
                    ".step-000001.partial → step-000001", "checkpoints"]
    assert {name: sizes[name] for name in FILES} == {name: (folder / name).stat().st_size for name in FILES}
    save(tmp_path / "run", 2)
    done.clear()
    prune_checkpoints(tmp_path / "run", {2})
    assert done == ["step-000001 → .step-000001.pruned", "checkpoints"]


# Saving a step again

def test_a_sound_checkpoint_of_the_step_is_left(tmp_path):
    folder = save(tmp_path, 5, value=1.0)
    before = {path: path.stat().st_mtime_ns for path in [folder, *folder.iterdir()]}
    assert save(tmp_path, 5, value=2.0) == folder
    assert before == {path: path.stat().st_mtime_ns for path in [folder, *folder.iterdir()]}


def test_a_checkpoint_of_another_state_takes_its_place(tmp_path):
    save(tmp_path, 5)
    shutil.copytree(save(tmp_path, 4), tmp_path / "checkpoints/.step-000005.outdated")  # a killed writer's
    folder = save_checkpoint(tmp_path, 5, {"model": {"w": np.ones(3)}}, {"step_again": 5, "evaluated": True})
    loaded = load_checkpoint(folder)
    assert loaded.state["evaluated"] and loaded.tensors["model"]["w"].shape == (3,)
    assert names(tmp_path) == ["step-000004", "step-000005"]


def test_a_damaged_checkpoint_of_the_step_is_put_aside_each_time(tmp_path):
    for count in range(3):
        damage(save(tmp_path, 5, value=count))
    save(tmp_path, 5, value=9)
    assert names(tmp_path) == ["step-000005"] + [f"step-000005.damaged{end}" for end in ("", "-2", "-3")]
    assert load_latest(tmp_path, no_warning).tensors["model"]["w"][0, 0] == 9
    assert steps(tmp_path) == [5]


def test_a_renamed_checkpoint_is_not_taken_for_that_of_its_name(tmp_path):
    save(tmp_path, 5).rename(tmp_path / "checkpoints/step-000006")
    with pytest.raises(CheckpointError, match="is of step 5"):
        load_checkpoint(tmp_path / "checkpoints/step-000006")
    save(tmp_path, 6)
    assert load_latest(tmp_path, no_warning).step == 6


def test_a_copy_of_any_other_name_loads(tmp_path):
    shutil.copytree(save(tmp_path, 5), tmp_path / "the best so far")
    assert load_checkpoint(tmp_path / "the best so far").step == 5


# Which is loaded

def test_newest_first_by_number_and_nothing_else_is_listed(tmp_path):
    for step in (2, 1_000_000, 999_999, 0, 30):
        save(tmp_path, step)
    for other in ("000030.damaged", "50", "0000060", "x", "00007²", "-00080"):
        (tmp_path / "checkpoints" / f"step-{other}").mkdir()
    for other in (".step-000040.partial", "000050"):
        (tmp_path / "checkpoints" / other).mkdir()
    (tmp_path / "checkpoints/step-000070").write_text("a file")
    assert steps(tmp_path) == [1_000_000, 999_999, 30, 2, 0]
    assert list_checkpoints(tmp_path / "nowhere") == []


def test_damaged_ones_are_passed_over_loudly(tmp_path):
    for step in (1, 2, 3, 4):
        save(tmp_path, step)
    damage(tmp_path / "checkpoints/step-000004")
    (tmp_path / "checkpoints/step-000003/manifest.json").unlink()
    warnings = []
    assert load_latest(tmp_path, warnings.append).step == 2
    assert len(warnings) == 2 and "step-000004 is damaged: model.safetensors" in warnings[0], warnings
    assert "step-000003" in warnings[1] and "manifest.json" in warnings[1], warnings


def test_none_there_and_none_sound(tmp_path):
    with pytest.raises(CheckpointError, match="there is no checkpoint in"):
        load_latest(tmp_path, no_warning)
    damage(save(tmp_path, 1))
    warnings = []
    with pytest.raises(CheckpointError, match="none of the 1 checkpoints"):
        load_latest(tmp_path, warnings.append)
    assert len(warnings) == 1


# Removing old ones

def test_pruning_keeps_what_it_is_told_and_sweeps_leftovers(tmp_path):
    for step in range(5):
        save(tmp_path, step)
    for leftover in (".step-000009.partial", ".step-000001.pruned"):  # the second is where step 1 is to go
        shutil.copytree(tmp_path / "checkpoints/step-000000", tmp_path / "checkpoints" / leftover)
    (tmp_path / "checkpoints/step-000007.damaged").mkdir()
    prune_checkpoints(tmp_path, {2, 4, 77})
    assert names(tmp_path) == ["step-000002", "step-000004", "step-000007.damaged"]
    assert load_latest(tmp_path, no_warning).step == 4
    prune_checkpoints(tmp_path, {2})                                          # and none that is newer
    assert names(tmp_path) == ["step-000002", "step-000007.damaged"]


def test_links_and_files_in_the_place_of_folders_are_removed_and_not_followed(tmp_path):
    elsewhere = tmp_path / "elsewhere"
    save(tmp_path, 1).rename(elsewhere)
    (tmp_path / "checkpoints/step-000001").symlink_to(elsewhere)
    (tmp_path / "checkpoints/.step-000003.partial").symlink_to(elsewhere)     # where step 3 is to be written
    for name in ".step-notes", "step-000002.txt":
        (tmp_path / "checkpoints" / name).write_text("mine")
    save(tmp_path, 3)
    prune_checkpoints(tmp_path, {3})
    assert names(tmp_path) == ["step-000002.txt", "step-000003"] and load_checkpoint(elsewhere).step == 1


def test_pruning_never_removes_all(tmp_path):
    prune_checkpoints(tmp_path, set())  # nothing there: nothing to say
    save(tmp_path, 1)
    save(tmp_path, 2)
    with pytest.raises(CheckpointError, match="none is removed"):
        prune_checkpoints(tmp_path, {3})
    assert steps(tmp_path) == [2, 1]


def test_pruning_that_fails_says_so(tmp_path, monkeypatch):
    save(tmp_path, 1)
    save(tmp_path, 2)

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(checkpoint_module.shutil, "rmtree", refuse)
    with pytest.raises(CheckpointError, match="Permission denied"):
        prune_checkpoints(tmp_path, {2})
    assert load_latest(tmp_path, no_warning).step == 2


# What cannot be saved

@pytest.mark.parametrize(("tensors", "state", "reason"), [
    ({"model": {"w": np.zeros(2, complex)}}, {}, "w has type complex128"),
    ({"model": {"w": np.array([None])}}, {}, "w has type object"),
    ({"model": {"w": np.zeros(2, np.clongdouble)}}, {}, "w has type"),
    ({"model": {"w": np.zeros(2, np.longdouble)}}, {}, "w has type"),
    ({}, {"loss": np.float32(1)}, "float32 is not JSON serializable"),
    ({}, {1, 2}, "set is not JSON serializable"),
])
def test_what_no_file_can_hold(tmp_path, tensors, state, reason):
    save(tmp_path, 1)
    with pytest.raises(CheckpointError, match=reason):
        save_checkpoint(tmp_path, 2, tensors, state)
    assert names(tmp_path) == ["step-000001"]


def test_a_folder_that_cannot_be_written(tmp_path):
    """As root no permission helps, so a file stands where a folder should, and /proc takes no folder."""
    (tmp_path / "file").write_text("")
    (tmp_path / "run").mkdir()
    (tmp_path / "run/checkpoints").write_text("")
    for run in (tmp_path / "file", tmp_path / "file/run", tmp_path / "run", Path("/proc/nowhere")):
        with pytest.raises(CheckpointError, match=r"before it are untouched$") as error:
            save(run, 1)
        assert "\n" not in str(error.value)
    for run in (tmp_path / "file", tmp_path / "file/run", Path("/proc/nowhere")):
        with pytest.raises(TrainingError, match="cannot use the run folder"), lock_run(run):
            pytest.fail("locked")


# One trainer at a time

def test_a_second_trainer_is_refused(tmp_path):
    run = tmp_path / "run"
    with lock_run(run):
        for _ in range(2):  # the refused one leaves the lock and the number in it as they are
            with pytest.raises(TrainingError, match=f"{os.getpid()}. is training in {run}"), lock_run(run):
                pytest.fail("two at once")
    (run / "lock").write_bytes(b"123456789")  # of a process that died
    with lock_run(run), pytest.raises(TrainingError, match=rf"\(pid {os.getpid()}\)"), lock_run(run):
        pytest.fail("two at once")
    with pytest.raises(ZeroDivisionError), lock_run(run):
        raise ZeroDivisionError
    with lock_run(run):
        pass


def test_the_lock_ends_with_its_process(tmp_path):
    command = [sys.executable, WORKER, "lock", tmp_path]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout.readline() == "locked\n"
            with pytest.raises(TrainingError, match=f"pid {holder.pid}"), lock_run(tmp_path):
                pytest.fail("two at once")
        finally:
            holder.send_signal(signal.SIGKILL)
    with lock_run(tmp_path):
        pass


def test_a_lock_that_the_file_system_cannot_give(tmp_path, monkeypatch):
    def flock(*_):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(checkpoint_module.fcntl, "flock", flock)
    with pytest.raises(TrainingError, match="No locks available"), lock_run(tmp_path):
        pytest.fail("locked")
