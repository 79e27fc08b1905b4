"""The worked examples go their whole way, in small."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).parents[1] / "tools" / "worked_examples.py"


@pytest.fixture
def tool(monkeypatch):
    spec = importlib.util.spec_from_file_location("worked_examples", TOOL)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "worked_examples", module)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Of all examples, so that they share a base."""
    return tmp_path_factory.mktemp("examples")


@pytest.mark.slow
@pytest.mark.parametrize("example, needs, numbers", [
    ("arithmetic", "npgpt", {"exact_match"}), ("digits", "sklearn", {"exact_match"}),
    ("topics", "chatterbot_corpus", {"accuracy"}), ("dialogue", "chatterbot_corpus", {"squad_f1"}),
    ("translation", "polib", {"squad_f1"})])
def test_an_example_goes_its_whole_way(tool, folder, capsys, example, needs, numbers):
    pytest.importorskip(needs)
    if example == "translation":
        pytest.importorskip("django")
    tool.main([example, "--small", "--out-dir", str(folder)])
    said   = capsys.readouterr().out
    result = json.loads((folder / example / "result.json").read_text())
    assert numbers <= result["numbers"].keys()
    assert "$ npgpt evaluate" in said
    test, train = (set((folder / example / f"{name}.jsonl").read_text().splitlines())
                   for name in ("test", "train"))
    assert test and train and not test & train


def test_the_sums_are_right_and_their_digits_run_backwards(tool, tmp_path, monkeypatch):
    monkeypatch.setattr(tool, "npgpt", lambda command: 0)
    tool.arithmetic(tmp_path, True, None)
    for line in (tmp_path / "train.jsonl").read_text().splitlines():
        row = json.loads(line)
        a, b = row["prompt"].removesuffix("=").split("+")
        assert int(row["completion"][::-1]) == int(a) + int(b) and len(a) == len(b) == 3


def test_what_is_missing_or_there_already_is_told(tool, tmp_path, capsys, monkeypatch):
    (tmp_path / "digits").mkdir()
    with pytest.raises(SystemExit):
        tool.main(["digits", "--out-dir", str(tmp_path)])
    assert "is there already" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "polib", None)
    with pytest.raises(SystemExit):
        tool.main(["translation", "--out-dir", str(tmp_path)])
    assert "needs the package polib" in capsys.readouterr().err
