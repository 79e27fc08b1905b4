"""npgpt train: from the first command to a resumed run, settings from everywhere, and what is refused."""

import json
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
from commands import refused

from npgpt.cli.main import main
from npgpt.inspection.metrics import read_metrics
from npgpt.training.checkpoint import list_checkpoints
from npgpt.training.config import TrainConfig
from npgpt.training.runs import read_config


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny.write_text(tmp_path)
    return tmp_path


def test_train_then_sample_then_resume(folder, capsys):
    assert main(["train", "--data", "text.txt", *tiny.FLAGS]) == 0
    said = capsys.readouterr().out
    assert "run: runs/quick" in said and "best validation loss" in said
    assert "next:  npgpt sample runs/quick --prompt" in said
    records = [json.loads(line) for line in Path("runs/quick/metrics.jsonl").read_text().splitlines()]
    assert [(r["step"], "val_loss" in r) for r in records] == [
        (0, True), (4, False), (8, False), (10, True), (12, False), (16, False), (20, False), (20, True)]
    assert records[1].keys() == {"step", "tokens", "seconds", "train_loss", "learning_rate", "grad_norm",
                                 "tokens_per_second"}
    assert records[1]["tokens"] == 4 * 2 * 3 * 8

    texts = []
    for seed in ("1", "1", "2"):
        assert main(["sample", "runs/quick", "--prompt", "to be", "--max-new-tokens", "30",
                     "--seed", seed]) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1] != texts[2] and texts[0].startswith("to be") and len(texts[0]) == 36

    assert main(["sample", "runs/quick", "--num-samples", "2", "--seed", str(2**64 - 1), "--top-k", "0"]) == 0
    assert capsys.readouterr().out.count("\n---\n") == 1

    assert main(["train", "--resume", "runs/quick", "--max-iters", "30"]) == 0
    assert "going on at step 20" in capsys.readouterr().out
    assert list_checkpoints(Path("runs/quick"))[0].name == "step-000030"
    assert tomllib.loads(Path("runs/quick/config.toml").read_text())["max_iters"] == 30


def test_train_alone_is_the_preset_quick(folder, capsys, monkeypatch):
    runs = []
    monkeypatch.setattr("npgpt.cli.training.train", lambda run, monitor, **how: runs.append(run))
    assert main(["train"]) == 130                                             # as if it had been interrupted
    assert runs[0].config == TrainConfig() and runs[0].path == Path("runs/quick")
    assert runs[0].tokenizer.vocab_size == 1024 and len(runs[0].train) > 100_000


def test_a_file_goes_over_the_preset_and_flags_over_the_file(folder, monkeypatch):
    Path("mine.toml").write_text('data = "text.txt"\nn-layer = 1\nn_head = 1\n'
                                 'max_iters = 2\nsample_tokens = 0\n')
    assert main(["train", "--preset=shakespeare-char-cpu", "--config", "mine.toml", "--n_head", "2",
                 "--block-size", "8", "--out-dir", "here"]) == 0
    written = tomllib.loads(Path("here/config.toml").read_text())
    assert (written["n_layer"], written["n_head"], written["n_embd"]) == (1, 2, 128)
    monkeypatch.setattr("npgpt.cli.training.train", lambda run, monitor, **how: False)
    preset = ["--preset", "shakespeare-char-cpu"]
    for name, flags in (("mine", []), ("mine-2", []), ("shakespeare-char-cpu", preset)):
        assert main(["train", "--config", "mine.toml", *flags, "--vocab-size", "280", "--block-size", "8"]
                    ) == 130
        assert read_config(Path("runs") / name).max_iters == 2


def test_bpe_and_python_docs_train_too(folder, capsys):
    assert main(["train", "--max-iters", "1", "--n-layer", "1", "--n-embd", "8", "--batch-size", "2",
                 "--eval-iters", "1", "--vocab-size", "280", "--block-size", "16",
                 "--sample-tokens", "4"]) == 0
    assert main(["sample", "runs/quick", "--max-new-tokens", "5"]) == 0


def test_a_tokenizer_folder_is_taken(folder, capsys):
    assert main(["train", "--data", "text.txt", *tiny.FLAGS, "--out-dir", "one"]) == 0
    assert main(["train", "--data", "text.txt", *tiny.FLAGS, "--out-dir", "two", "--tokenizer",
                 "one/tokenizer"]) == 0
    one, two = (list_checkpoints(Path(name))[0] / "model.safetensors" for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()


BAD_TRAIN = [
    (1, "absent.txt", ["--data", "absent.txt"]),
    (1, "empty.txt.* empty", ["--data", "empty.txt"]),
    (1, "binary.txt.*UTF-8", ["--data", "binary.txt"]),
    (1, "no-text", ["--data", "no-text"]),
    (1, "the training text has 8 tokens.*block_size", ["--data", "short.txt", "--tokenizer", "character"]),
    (1, "the validation text has 70 tokens.*block_size", ["--data", "text.txt", "--tokenizer", "character"]),
    (1, "vocab_size", ["--data", "text.txt", "--vocab-size", "200"]),
    (1, "is neither bpe nor character, and char is no folder", ["--data", "text.txt", "--tokenizer", "char"]),
    (1, "n_embd must be a multiple of n_head", ["--n-embd", "30", "--n-head", "4"]),
    (2, "--n-layr.*did you mean --n-layer", ["--n-layr", "3"]),
    (2, "n-layer.*'three'", ["--n-layer", "three"]),
    (2, "n-layer", ["--n-layer"]),
    (2, "surplus", ["surplus"]),
    (2, "--resume .*--preset", ["--resume", "x", "--preset", "quick"]),
    (2, "--resume needs the folder of a run", ["--resume", ""]),
    (2, "--preset needs a name", ["--preset=", "--data", "absent"]),          # of a variable that is not set
    (2, "--config needs a file", ["--config", "", "--data", "absent"]),
    (1, "unknown preset 'huge'", ["--preset", "huge"]),
    (1, "broken.toml is not TOML", ["--config", "broken.toml"]),
    (1, "odd.toml: unknown setting 'layers'", ["--config", "odd.toml"]),
    (1, "x is not a run's folder", ["--resume", "x"]),
    (1, "unknown device 'gpu'", ["--device", "gpu"]),
    (1, "needs CuPy|needs an NVIDIA GPU|no device", ["--device", "cuda:99"]),
    (1, "text.txt.*not an empty folder", ["--out-dir", "text.txt"]),
    (1, "cannot make the run runs/quick: File name too long: aaaa", ["--data", "a" * 300]),
    (1, "out_dir must be the name of a folder, not ''", ["--data", "text.txt", "--out-dir", ""]),
    (1, "cannot use the run folder", ["--data", "text.txt", "--out-dir", "text.txt/run"]),
    (1, "absent", ["--data", "text.txt", "--tokenizer", "absent"]),
]


@pytest.mark.parametrize("status, sentence, arguments", BAD_TRAIN,
                         ids=[" ".join(row[2]) for row in BAD_TRAIN])
def test_bad_input_to_train(folder, capsys, status, sentence, arguments):
    Path("empty.txt").touch()
    Path("binary.txt").write_bytes(b"fine so far \xff\xfe")
    Path("short.txt").write_text("too short")
    Path("no-text").mkdir()
    Path("broken.toml").write_text("n_layer = = 3")
    Path("odd.toml").write_text("layers = 3")
    before = sorted(folder.rglob("*"))
    refused(capsys, status, sentence, "train", *arguments)
    assert sorted(folder.rglob("*")) == before, "remains"


def test_a_run_is_not_overwritten_and_not_bent(folder, capsys):
    assert main(["train", "--data", "text.txt", *tiny.FLAGS, "--out-dir", "run"]) == 0
    refused(capsys, 1, "run already holds a run: go on with it by --resume run", "train", "--out-dir", "run")
    refused(capsys, 1, "n_embd cannot change when a run goes on: run has 8, not 16",
            "train", "--resume", "run", "--n-embd", "16")
    refused(capsys, 1, "data cannot change", "train", "--resume", "run", "--data", "python-docs")
    for name, value in {"batch_size": 6, "gradient_accumulation_steps": 1, "seed": 1, "block_size": 4,
                        "val_fraction": 0.2, "vocab_size": 300, "tokenizer": "bpe", "dtype": "float64",
                        "attention_dropout": 0.1, "val_data": "text.txt", "out_dir": "elsewhere"}.items():
        refused(capsys, 1, f"{name} cannot change when a run goes on", "train", "--resume", "run",
                f"--{name}", str(value))


def test_a_run_that_goes_on_may_be_given_anew_how_it_learns(folder):
    before = tiny.new_run(folder).config
    anew   = {"dropout": 0.1, "max_iters": 3, "learning_rate": 0.02, "warmup_iters": 1, "lr_decay_iters": 9,
              "min_lr": 0.001, "weight_decay": 0.2, "beta1": 0.8, "beta2": 0.9, "grad_clip": 2.0, "l1": 0.1,
              "l2": 0.1, "eval_interval": 2, "eval_iters": 2, "early_stopping_patience": 5, "log_interval": 1,
              "sample_tokens": 2, "workers": 1}
    flags  = [word for name, value in anew.items() for word in (f"--{name}", str(value))]
    assert main(["train", "--resume", "run", *flags, "--gradient-checkpointing"]) == 0
    assert read_config(Path("run")) == replace(before, **anew, gradient_checkpointing=True)


def test_a_run_whose_checkpoints_do_not_fit_is_refused(folder, capsys):
    assert main(["train", "--data", "text.txt", *tiny.FLAGS, "--out-dir", "run"]) == 0
    config = Path("run/config.toml")
    config.write_text(config.read_text().replace("n_embd = 8", "n_embd = 10"))
    for command in (["sample", "run"], ["train", "--resume", "run", "--max-iters", "30"]):
        refused(capsys, 1, r"has shape \(\d+, 8\) in the checkpoint, but \(\d+, 10\) in the model", *command)


def test_a_folder_with_a_space_in_its_name_is_quoted_where_it_is_to_be_typed(folder, capsys, monkeypatch):
    """And what rich would take for a colour is told as it is."""
    Path("text.txt").rename("[red].txt")
    assert main(["train", *tiny.FLAGS, "--data", "[red].txt", "--out-dir", "my [red] run"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("[red].txt: 1 document") and "run: my [red] run\n" in said
    assert "next:  npgpt sample 'my [red] run' --prompt" in said
    monkeypatch.setattr("npgpt.cli.training.train", lambda run, monitor, **how: False)
    assert main(["train", "--resume", "my [red] run"]) == 130
    assert "go on with:  npgpt train --resume 'my [red] run'\n" in capsys.readouterr().out


@pytest.mark.parametrize("line", ['{"step": "x", "val_loss": 3}', '{"step": ' + 5000 * "[",
                                  '{"step": ' + 400 * "9" + "}", '{"step": ' + 5000 * "9" + "}"],
                         ids=["text", "nested", "beyond float", "beyond int"])
def test_a_line_of_the_metrics_without_a_number_is_dropped(folder, line):
    assert main(["train", *tiny.FLAGS, "--out-dir", "run"]) == 0
    with Path("run/metrics.jsonl").open("a") as file:
        file.write(line + "\n")
    assert "val_loss" in read_metrics(Path("run"))
    assert main(["train", "--resume", "run", "--max-iters", "25"]) == 0
    assert line not in Path("run/metrics.jsonl").read_text()
