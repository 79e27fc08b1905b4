"""`npgpt plot` as a user types it, on a run that was really trained."""

from pathlib import Path

import pytest
import tiny

from npgpt.cli.main import main


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refused(capsys, status, sentence, *arguments):
    capsys.readouterr()
    assert main(["plot", *arguments]) == status
    said = capsys.readouterr().err
    assert said.startswith("npgpt: ") and said.count("\n") == 1 and sentence in said, said


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


def test_what_cannot_be_drawn_is_refused(folder, capsys):
    Path("empty").mkdir()
    Path("empty/metrics.jsonl").touch()
    Path("picture.png").write_text("as it was")
    refused(capsys, 1, "folder is not a run's folder", "folder", "--out", "picture.png")
    refused(capsys, 1, "has no step recorded", "empty", "--out", "picture.png")
    refused(capsys, 1, "must end with .png or .svg", "empty", "--out", "picture.gif")
    refused(capsys, 2, "no run is named", "--out", "picture.png")
    refused(capsys, 2, "out", "empty")
    refused(capsys, 2, "epochs", "empty", "--out", "picture.png", "--x", "epochs")
    assert Path("picture.png").read_text() == "as it was"
