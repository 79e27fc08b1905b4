"""`npgpt finetune`: from a run to one that knows more, and every way to say it wrongly."""

import json
from pathlib import Path

import numpy as np
import pytest
import tiny
from commands import said_by

from npgpt import GPT
from npgpt.cli.main import main
from npgpt.models import SequenceClassifier
from npgpt.training.loading import load_classifier, load_model
from npgpt.training.runs import read_config

FLAGS = ["--max-iters", "4", "--eval-interval", "2", "--batch-size", "2", "--learning-rate", "0.01",
         "--sample-tokens", "3"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("finetune")
    tiny.train_quietly(tiny.new_run(path, "base", tokenizer="bpe", vocab_size=257, block_size=24, max_iters=1,
                                    eval_interval=1, sample_tokens=0))
    for name, rows in {"pairs": [{"prompt": f"{n}", "completion": "x"} for n in range(20)],
                       "labels": [{"text": f"{n}", "label": "ab"[n % 2]} for n in range(20)],
                       "wrong": [{"question": "a"}]}.items():
        (path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(autouse=True)
def inside(folder, monkeypatch):
    monkeypatch.chdir(folder)


def finetune(*words):
    return main(["finetune", *map(str, words)])


def refused(capsys, status, *words):
    return said_by(capsys, status, "finetune", *words)


def test_a_run_learns_answers_goes_on_writes_and_is_exported(capsys):
    assert finetune("base", "--data", "pairs.jsonl", *FLAGS, "--out-dir", "told") == 0
    said = capsys.readouterr().out
    assert "18 examples to train on" in said and "run: told" in said and "best validation loss" in said
    assert "next:  npgpt sample told --no-do-sample --prompt" in said
    assert finetune("--resume", "told", "--max-iters", "6") == 0
    assert "going on at step 4" in capsys.readouterr().out
    assert finetune("--resume", "told", "--max-iters", "8", "--eval-interval", "0") == 0
    assert read_config(Path("told")).eval_interval == 1                        # ten in all, or at each step
    assert main(["sample", "told", "--prompt", "1", "--max-new-tokens", "2"]) == 0
    assert main(["export", "told", "--out-dir", "exported"]) == 0
    ours, theirs = load_model(Path("told"), "best", "cpu", print).model, GPT.from_pretrained("exported")
    assert all(np.array_equal(ours.parameters[name].data, parameter.data)
               for name, parameter in theirs.parameters.items())


def test_a_classifier_and_adapters_are_exported(capsys):
    assert finetune("base", "--data", "labels.jsonl", *FLAGS, "--lora-rank", "2", "--out-dir", "classes") == 0
    said = capsys.readouterr().out
    assert "next:  npgpt evaluate classes --task classification" in said and " nats a text at step " in said
    assert main(["export", "classes", "--out-dir", "classifier"]) == 0
    ours, _ = load_classifier(Path("classes"), "best", "cpu", print)
    theirs  = SequenceClassifier.from_pretrained("classifier")
    assert theirs.labels == ("a", "b")
    assert all(np.array_equal(ours.parameters[name].data, parameter.data)
               for name, parameter in theirs.parameters.items())
    assert main(["export", "classes", "--adapter", "--out-dir", "adapter", "--checkpoint", "7"]) == 1
    assert "classes has no checkpoint '7'" in capsys.readouterr().err
    assert main(["export", "classes", "--adapter", "--out-dir", "adapter"]) == 0
    config = json.loads(Path("adapter/adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["task_type"]) == (2, 16.0, "SEQ_CLS")
    assert config["base_model_name_or_path"] == "classes/base" and Path("classes/base/config.json").exists()


def test_the_model_gives_its_run_a_name_and_a_file_its_settings(capsys):
    Path("small.toml").write_text('data = "pairs.jsonl"\nmax_iters = 2\nsample_tokens = 0\nlora_rank = 1\n')
    for name in ("base-finetuned", "base-finetuned-2"):
        assert finetune("base", "--config", "small.toml", "--batch-size", "3") == 0
        settings = Path(f"runs/{name}/config.toml").read_text()
        assert "batch_size = 3" in settings and "lora_rank = 1" in settings and 'model = "base"' in settings


def test_a_number_in_a_models_name_is_no_ending_and_here_has_a_name_too(folder, monkeypatch):
    monkeypatch.setattr("npgpt.cli.training.train", lambda run, monitor, **how: False)
    for name in ("base-2.5", "base-3.gguf"):
        Path(name).symlink_to("base")
        assert finetune(name, "--data", "pairs.jsonl") == 130
        assert Path(f"runs/{name.removesuffix('.gguf')}-finetuned/config.toml").exists()
    monkeypatch.chdir("base")
    assert finetune(".", "--data", "../pairs.jsonl") == 130
    assert Path("runs/base-finetuned/config.toml").exists()


def test_a_fine_tuning_that_is_stopped_says_how_it_goes_on(capsys, monkeypatch):
    """And what rich would take for a colour is told as it is."""
    monkeypatch.setattr("npgpt.cli.training.train", lambda run, monitor, **how: False)
    Path("[red] pairs.jsonl").write_bytes(Path("pairs.jsonl").read_bytes())
    assert finetune("base", "--data", "[red] pairs.jsonl", "--out-dir", "stopped") == 130
    said = capsys.readouterr().out
    assert said.startswith("[red] pairs.jsonl: 20 records")
    assert said.endswith("go on with:  npgpt finetune --resume stopped\n")


def test_wrong_ways_are_told_in_one_sentence(capsys):
    assert "no model is named" in refused(capsys, 2)
    assert "say by --data what is to be learned" in refused(capsys, 2, "base")
    assert "did you mean --lora-rank" in refused(capsys, 2, "base", "--lora-rnk", "2")
    assert "give no --config with it" in refused(capsys, 2, "--resume", "a", "--config", "b")
    assert "absent" in refused(capsys, 1, "absent", "--data", "pairs.jsonl")
    assert "line 1 has the fields question" in refused(capsys, 1, "base", "--data", "wrong.jsonl")
    assert "cannot read absent.jsonl" in refused(capsys, 1, "base", "--data", "absent.jsonl")
    assert "nearest known one is 'epochs'" in refused(capsys, 1, "base", "--config", written("epoch = 2"))
    assert "is no fine-tuning: go on with it by npgpt train" in refused(capsys, 1, "--resume", "base")
    assert "--resume needs the folder of a fine-tuning" in refused(capsys, 2, "--resume", "")
    assert "--config needs a file" in refused(capsys, 2, "--config=")
    missing  = refused(capsys, 1, "base", "--data", "pairs.jsonl", "--checkpoint", 7)
    assert "base has no checkpoint '7'" in missing
    too_long = refused(capsys, 1, "base", "--data", "pairs.jsonl", "--block-size", 99)
    assert "block_size must be at most the model's 24, not 99" in too_long


def written(text):
    Path("wrong.toml").write_text(text)
    return "wrong.toml"


def test_other_commands_say_what_a_fine_tuning_is_for(capsys):
    assert finetune("base", "--data", "labels.jsonl", *FLAGS, "--out-dir", "kinds") == 0
    assert finetune("base", "--data", "pairs.jsonl", *FLAGS, "--out-dir", "pairs") == 0
    capsys.readouterr()
    for status, words, sentence in (
            (1, ["sample", "kinds"], "kinds is a classifier, which writes no"),
            (1, ["chat", "kinds"], "kinds is a classifier, which writes no"),
            (1, ["finetune", "kinds", "--data", "pairs.jsonl"], "kinds is a classifier, and learns no"),
            (1, ["evaluate", "pairs"], "pairs was trained on examples: say by --data"),
            (1, ["train", "--resume", "pairs"], "pairs is a fine-tuning: go on with it by npgpt finetune"),
            (1, ["train", "--data", "labels.jsonl"], "labels.jsonl has labels: classes are"),
            (1, ["export", "pairs", "--adapter", "--out-dir", "o"], "pairs has no adapters")):
        assert main(words) == status
        assert sentence in capsys.readouterr().err
    for flags in ("--max-iters", 0), ("--epochs", 2):
        assert "give max_iters, of which pairs has 4" in refused(capsys, 1, "--resume", "pairs", *flags)
    for flags in (["--lora-rank", 3], ["--lora-alpha", 8], ["--trainable", "h.1.*"], ["--no-packing"]):
        name = flags[0].removeprefix("--").removeprefix("no-").replace("-", "_")
        assert f"{name} cannot change when a run goes on" in refused(capsys, 1, "--resume", "pairs", *flags)


def test_examples_are_learned_from_scratch_too(capsys):
    flags = [word for name, value in (tiny.SETTINGS | {"tokenizer": "bpe", "block_size": 16}).items()
             for word in (f"--{name}", str(value))]
    flags += ["--vocab-size", "257", "--out-dir", "scratch"]
    assert main(["train", "--data", "pairs.jsonl", *flags]) == 0
    said = capsys.readouterr().out
    assert "18 examples to train on, of 62 tokens" in said and "next:  npgpt sample scratch" in said
