"""What a training says at its end, and when it goes on."""

import math
import re
import shlex
from pathlib import Path

import pytest
import tiny

import npgpt
from npgpt.cli.main import main
from npgpt.inspection.metrics import read_metrics
from npgpt.training.loading import load_run
from npgpt.training.loop import sample_text
from npgpt.training.runs import open_run, read_config

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


def test_loss_step_and_sample_are_of_the_best_checkpoint(folder, capsys):
    assert main([*TRAIN, "--learning-rate", "3", "--eval-interval", "5"]) == 0           # it soon gets worse
    said   = capsys.readouterr().out
    curve  = read_metrics(Path("run"))["val_loss"]
    loss   = min(curve.value)
    step   = int(curve.step[list(curve.value).index(loss)])
    best, latest = ("".join(sample_text(open_run(Path("run")), load_run(Path("run"), which, "cpu", print)[0],
                                        256)) for which in ("best", "latest"))
    assert f"loss {loss:.4f} nats a token (perplexity {math.exp(loss):.1f}) at step {step}\n" in said
    assert f"it writes:\n\n{best}\n" in said and best != latest and step < 20


@pytest.mark.parametrize("tokens", [0, 4])
def test_without_samples_there_is_none_at_the_end_either(folder, tokens, capsys):
    assert main([*TRAIN, "--sample-tokens", str(tokens)]) == 0
    said = capsys.readouterr().out
    assert ("it writes:" in said) is (tokens > 0) and "next:  npgpt sample run" in said


def test_what_is_no_run_and_what_is_no_op_are_told(folder, capsys):
    Path("adapter").mkdir()
    Path("adapter/adapter_config.json").write_text("{}")
    assert main(["sample", "adapter"]) == 1
    assert "adapter is an adapter alone, and the model that it is for is else" in capsys.readouterr().err
    assert main(["gradcheck", "nonsense"]) == 1
    said = capsys.readouterr().err
    assert "attention, rotary" in said and said.endswith("GPT, SequenceClassifier\n") and len(said) < 600


def test_the_size_of_model_and_step_is_said(folder, capsys):
    assert main([*TRAIN, "--max-iters", "1"]) == 0
    size = npgpt.load("run")[0].flat.size
    assert f"model: {size:,} parameters; a step: 6 sequences of up to 8 tokens" in capsys.readouterr().out
    assert main(["finetune", "run", "--data", "text.txt", "--max-iters", "1", "--lora-rank", "1"]) == 0
    said = re.search(r"model: (\S+) parameters, of which (\S+) learn", capsys.readouterr().out)
    whole, part = said.groups()
    assert int(whole.replace(",", "")) - int(part.replace(",", "")) == size


def test_a_run_that_is_done_says_how_it_goes_on(folder, capsys):
    assert main([*TRAIN, "--max-iters", "2"]) == 0
    capsys.readouterr()
    assert main(["train", "--resume", "run"]) == 0
    said = capsys.readouterr().out
    assert "this run is at step 2, and max_iters is 2: a larger --max-iters goes on" in said
    assert "going on" not in said


def test_a_run_cannot_go_on_to_where_it_has_been(folder, capsys):
    assert main([*TRAIN, "--max-iters", "4", "--eval-interval", "2"]) == 0
    before = Path("run/config.toml").read_bytes()
    capsys.readouterr()
    assert main(["train", "--resume", "run", "--max-iters", "3"]) == 1
    assert "max_iters must be at least 4, the step at which run is, not 3" in capsys.readouterr().err
    assert Path("run/config.toml").read_bytes() == before


@pytest.mark.parametrize("text, prompt", [("ab" * 400, "[ab]"), ("a\n" * 400, r"'\\n'")])
def test_the_next_command_begins_with_what_the_tokenizer_knows(folder, text, prompt, capsys):
    Path("text.txt").write_text(text)
    assert main([*TRAIN, "--max-iters", "1"]) == 0
    following = capsys.readouterr().out.splitlines()[-1]
    assert re.fullmatch(f"next:  npgpt sample run --prompt {prompt}", following)
    assert main(shlex.split(following.removeprefix("next:  npgpt "))) == 0
