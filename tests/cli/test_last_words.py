"""What a training says at its end, and when it goes on."""

import math
import re
from pathlib import Path

import pytest
import tiny

from npgpt.cli.main import main
from npgpt.training.runs import read_config

TRAIN = ["train", "--data", "text.txt", *tiny.FLAGS, "--out-dir", "run"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny.write_text(tmp_path)
    return tmp_path


def test_a_run_that_goes_on_for_longer_says_what_becomes_of_its_learning_rate(folder, capsys):
    assert main([*TRAIN, "--max-iters", "20"]) == 0
    capsys.readouterr()
    assert main(["train", "--resume", "run", "--max-iters", "60"]) == 0
    said = re.search(r"goes on at (\S+) instead of (\S+): --lr-decay-iters 20 keeps", capsys.readouterr().out)
    config = read_config(Path("run"))
    assert math.isclose(float(said[1]), config.rate(20), rel_tol=0.01)
    assert math.isclose(float(said[2]), config.learning_rate / 10, rel_tol=0.01)
    assert main(["train", "--resume", "run", "--max-iters", "61"]) == 0           # by less than 1 %
    assert "instead of" not in capsys.readouterr().out


@pytest.mark.parametrize("tokens", [0, 4])
def test_without_samples_there_is_none_at_the_end_either(folder, tokens, capsys):
    assert main([*TRAIN, "--sample-tokens", str(tokens)]) == 0
    said = capsys.readouterr().out
    assert ("it writes:" in said) is (tokens > 0) and "next:  npgpt sample run" in said


def test_what_is_no_run_and_what_is_no_op_are_told(folder, capsys):
    Path("adapter").mkdir()
    Path("adapter/adapter_config.json").write_text("{}")
    assert main(["sample", "adapter"]) == 1
    assert "adapter is a LoRA adapter alone" in capsys.readouterr().err
    assert main(["gradcheck", "nonsense"]) == 1
    said = capsys.readouterr().err
    assert "attention, rotary" in said and said.endswith("GPT, SequenceClassifier\n") and len(said) < 600
