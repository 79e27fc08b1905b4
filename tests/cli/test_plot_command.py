"""`npgpt plot` as a user types it, on a run that was really trained."""

import json
import os
import re
import sys
import time
from pathlib import Path

import commands
import numpy as np
import pytest
import tiny

from npgpt.cli.main import main


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refused(capsys, status, sentence, *arguments):
    commands.refused(capsys, status, re.escape(sentence), "plot", *arguments)


def test_a_trained_run_is_drawn_and_named_once(folder, capsys):
    pytest.importorskip("matplotlib")
    tiny.train_quietly(tiny.new_run(folder))
    assert main(["plot", "run", "./run", "--out", "picture.svg", "--x", "tokens"]) == 0
    said = capsys.readouterr()
    assert said.out.endswith("picture: picture.svg\n") and said.err == ""
    svg = Path("picture.svg").read_text()
    assert svg.count("<!-- run: best validation loss") == 1 and "<!-- tokens -->" in svg
    refused(capsys, 1, "cannot write absent/picture.png", "run", "--out", "absent/picture.png")
    assert not Path("absent").exists()


def test_runs_become_event_files_once(folder, capsys):
    pytest.importorskip("tensorboardX")
    for name in ("a/run", "b/run"):
        tiny.train_quietly(tiny.new_run(folder, name))
    before = time.time()
    tokens = Path("a/run/data/train.bin")
    os.utime(tokens, (5000, 5000))
    capsys.readouterr()
    for _ in range(2):
        assert main(["plot", "a/run", "b/run", "--tensorboard", "logs"]) == 0
        said = capsys.readouterr()
        assert said.out.endswith("tensorboard --logdir logs\n") and said.err == ""
        files = sorted(path for path in Path("logs").rglob("*") if path.is_file())
        assert [str(file.parent) for file in files] == ["logs/a/run", "logs/b/run"]
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator").EventAccumulator
    for file, begun in zip(files, (5000, before), strict=True):
        read = reader(str(file.parent)).Reload()
        records = [json.loads(line) for line in (file.parent.relative_to("logs")
                                                 / "metrics.jsonl").read_text().splitlines()]
        losses = [record for record in records if "val_loss" in record]
        seen   = read.Scalars("loss/validation")
        assert [event.step for event in seen] == [0, 10, 20]
        assert [event.value for event in seen] == [np.float32(record["val_loss"]) for record in losses]
        assert [event.wall_time - begun for event in seen] == pytest.approx(
            [record["seconds"] for record in losses], abs=1e-6 if begun == 5000 else 30)
    assert not list(Path().glob("*.png"))


def test_without_tensorboardx_there_is_one_sentence(folder, capsys, monkeypatch):
    tiny.train_quietly(tiny.new_run(folder))
    monkeypatch.setitem(sys.modules, "tensorboardX.record_writer", None)
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    refused(capsys, 1, "pip install 'npgpt[tensorboard]'", "run", "--tensorboard", "logs")
    assert not Path("logs").exists()


def test_what_cannot_be_drawn_is_refused(folder, capsys):
    Path("empty").mkdir()
    Path("empty/metrics.jsonl").touch()
    Path("picture.png").write_text("as it was")
    refused(capsys, 1, "folder is not a run's folder", "folder", "--out", "picture.png")
    refused(capsys, 1, "has no step recorded", "empty", "--out", "picture.png")
    refused(capsys, 1, "must end with .png or .svg", "empty", "--out", "picture.gif")
    refused(capsys, 2, "no run is named", "--out", "picture.png")
    refused(capsys, 2, "say where the curves go: --out FILE.png or FILE.svg, or --tensorboard", "empty")
    refused(capsys, 2, "epochs", "empty", "--out", "picture.png", "--x", "epochs")
    assert Path("picture.png").read_text() == "as it was"
