"""TensorBoard's event files hold what the run recorded; written again, nothing doubles and what is new is
added."""

import os
import sys

import numpy as np
import pytest

from npgpt.errors import ConfigError
from npgpt.inspection.event_files import TAGS, write_event_file
from npgpt.inspection.metrics import Curve

pytest.importorskip("tensorboardX")
BEGUN = 1.7e9
NAN = float("nan")


def run(steps):
    """Curves over every tenth step, with validation at step 0 and every 40th."""
    def curve(first, every):
        at = np.arange(first, steps + 1, every, dtype=float)
        return Curve(at, 64 * at, 0.25 * at, np.random.default_rng(every).normal(size=1000)[:len(at)])

    return {name: curve(0, 40) if name == "val_loss" else curve(10, 10) for name in TAGS}


def read(folder):
    """tag → [(step, wall time, value)], by TensorBoard's own reader."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    return {tag: [(e.step, e.wall_time, e.value) for e in events.Scalars(tag)]
            for tag in events.Tags()["scalars"]}


def test_tensorboard_reads_every_value_step_and_time(tmp_path):
    curves = run(200)
    curves["train_loss"].value[3] = NAN
    file = write_event_file(curves, BEGUN, tmp_path / "new" / "run")
    assert file == tmp_path / "new" / "run" / "events.out.tfevents.npgpt"
    seen = read(file.parent)
    assert sorted(seen) == sorted(TAGS.values())
    for name, tag in TAGS.items():
        curve = curves[name]
        steps, times, values = np.array(seen[tag]).T
        assert steps.tolist() == curve.step.tolist()
        np.testing.assert_array_equal(times, BEGUN + curve.seconds)
        np.testing.assert_array_equal(values.astype(np.float32), curve.value.astype(np.float32))


def test_written_twice_nothing_doubles_and_the_file_is_left_alone(tmp_path):
    file = write_event_file(run(200), BEGUN, tmp_path)
    os.utime(file, (1, 1))
    before = file.read_bytes(), file.stat().st_ino
    assert write_event_file(run(200), BEGUN, tmp_path) == file
    assert (file.read_bytes(), file.stat().st_ino) == before
    assert [path.name for path in tmp_path.iterdir()] == [file.name]


def test_of_a_run_that_goes_on_the_file_grows_in_place(tmp_path):
    """Also where a validation loss comes after the training loss of its step; a reader that has the file open
    goes on reading."""
    early = run(80)
    early["val_loss"] = Curve(*(values[:-1] for values in early["val_loss"]))       # step 80 comes later
    file = write_event_file(early, BEGUN, tmp_path)
    inode, size = file.stat().st_ino, file.stat().st_size
    for cut in (0, 5):                                              # and where the last write was cut short
        with file.open("r+b") as open_file:
            open_file.truncate(file.stat().st_size - cut)
        write_event_file(run(200), BEGUN, tmp_path)
        assert file.stat().st_ino == inode and file.stat().st_size > size
        assert len(read(tmp_path)["loss/validation"]) == 6 and len(read(tmp_path)["loss/training"]) == 20


def test_of_a_run_that_was_set_back_the_file_is_written_anew(tmp_path):
    file = write_event_file(run(200), BEGUN, tmp_path)
    shorter = run(100)
    shorter["train_loss"].value[:] += 1
    assert write_event_file(shorter, BEGUN, tmp_path) == file
    seen = read(tmp_path)["loss/training"]
    assert len(seen) == 10 and seen[0][2] == np.float32(shorter["train_loss"].value[0])


def test_what_cannot_be_written_is_one_sentence(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot write .*file/run/events"):
        write_event_file(run(20), BEGUN, tmp_path / "file" / "run")
    monkeypatch.setitem(sys.modules, "tensorboardX.record_writer", None)
    with pytest.raises(ConfigError, match=r"event files need tensorboardX: install it by .* 'npgpt\[tensorb"):
        write_event_file(run(20), BEGUN, tmp_path / "absent")
    assert not (tmp_path / "absent").exists()
