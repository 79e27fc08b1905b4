"""Every command that takes a model takes the checkpoint and the device that are asked for."""

import io
import json
import sys
from pathlib import Path

import pytest
import tiny
from commands import refused, said_by

from npgpt.cli.main import main

COMMANDS = ["sample", "chat", "inspect --text to --out page.html", "export --out-dir exported",
            "finetune --data pairs.jsonl --max-iters 1 --sample-tokens 0", "evaluate",
            "evaluate --task multiple-choice --data questions.jsonl",
            "evaluate --task generation --data pairs.jsonl",
            "evaluate --task classification --data labels.jsonl"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """run: its latest checkpoint is damaged.  worse: its best, which is another."""
    folder = tmp_path_factory.mktemp("models")
    for name, rate, damaged in (("run", 0.01, "step-000002"), ("worse", 30.0, "step-000000")):
        run = tiny.new_run(folder, name, tokenizer="bpe", vocab_size=260, max_iters=2, eval_interval=1,
                           warmup_iters=0, learning_rate=rate)
        tiny.train_quietly(run)
        weights = run.path / "checkpoints" / damaged / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    for name, row in {"pairs": {"prompt": "to", "completion": "be"}, "labels": {"text": "to", "label": "a"},
                      "questions": {"query": "to", "choices": ["be", "or"], "gold": 0}}.items():
        (folder / f"{name}.jsonl").write_text((json.dumps(row) + "\n") * 20)
    return folder


@pytest.mark.parametrize("command", COMMANDS)
def test_it_is_taken_or_refused(folder, command, capsys, monkeypatch):
    monkeypatch.chdir(folder)
    name, *more = command.split()
    refused(capsys, 1, "run has no checkpoint '7'", name, "run", *more, "--checkpoint", "7")
    if name != "export":
        refused(capsys, 1, "unknown device 'gpu'", name, "run", *more, "--checkpoint", "1", "--device", "gpu")


@pytest.mark.parametrize("command", [command for command in COMMANDS if "finetune" not in command])
def test_no_name_does_not_name_the_current_folder(folder, command, capsys, monkeypatch):
    monkeypatch.chdir(folder / "run")
    name, *more = command.split()
    why = "no model is named: give a run's folder, a model's, its name on the hub, or a GGUF file"
    refused(capsys, 1, why, name, "", *more)


@pytest.mark.parametrize("command", [*COMMANDS, "evaluate --data pairs.jsonl"])
def test_a_model_by_itself_has_no_steps_to_choose_from(folder, command, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    main(["export", str(folder / "run"), "--checkpoint", "1", "--out-dir", "model"])
    name, *more = command.split()
    why = "is not a run's folder" if command == "evaluate" else "has no checkpoint '1': it is a model by"
    refused(capsys, 1, f"model {why}", name, "model", *more, "--checkpoint", "1")


@pytest.mark.parametrize("command", COMMANDS)
def test_that_another_checkpoint_is_taken_is_told(folder, command, capsys, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO()))
    name, *more = command.split()
    main([name, "run", *more, "--checkpoint", "latest"])
    assert "it is passed over for the one before" in " ".join(capsys.readouterr().err.split())
    main([name, "worse", *more])
    assert "best checkpoint of worse is lost, and its latest is" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(("typed", "meant"), [
    ("quick", "runs/quick"), ("runs/quik", "runs/quick"), ("run/quick", "runs/quick"),
    ("elsewhere/firts", "elsewhere/first"), ("one", "runs/one"), ("first", None), ("no-runs", None)])
@pytest.mark.parametrize("command", ["sample", "train --resume", "plot --out loss.png"])
def test_a_run_that_is_called_nearly_so_is_named(typed, meant, command, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    for run in ("runs/quick", "runs/one", "elsewhere/first"):
        Path(run).mkdir(parents=True)
        Path(run, "config.toml").touch()
    Path("runs/no-run").mkdir()
    said = said_by(capsys, 1, *command.split(), typed)
    assert said.endswith(f"; did you mean {meant}?\n") if meant else "did you mean" not in said
