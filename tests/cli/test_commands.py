"""The commands as a user types them: what they print, their exit status, one clear sentence for bad input."""

import ast
import importlib
import inspect
import json
import os
import re
import subprocess
import sys
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
from commands import refused

from npgpt.cli.main import main
from npgpt.data.plans import PrepareConfig
from npgpt.inspection.metrics import read_metrics
from npgpt.layers import Block
from npgpt.training.checkpoint import list_checkpoints
from npgpt.training.config import TrainConfig
from npgpt.training.finetuning import FinetuneConfig
from npgpt.training.loading import load_model
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


def test_sample_reads_each_position_once_and_every_text_with_a_cache_of_its_own(folder, monkeypatch):
    assert main(["train", "--data", "text.txt", *tiny.FLAGS, "--out-dir", "run", "--n-layer", "1"]) == 0
    read, forward = [], Block.forward
    monkeypatch.setattr(Block, "forward", lambda self, x, *inputs, **options:
                        read.append(x.shape[1]) or forward(self, x, *inputs, **options))
    assert main(["sample", "run", "--prompt", "to be", "--max-new-tokens", "4", "--num-samples", "2"]) == 0
    assert read == 2 * [5, 1, 1, 1]


def test_sample_takes_all_settings_of_generation(folder, capsys):
    """What is written is what the model generates with the settings that the flags name."""
    assert main(["train", "--data", "text.txt", *tiny.FLAGS, "--out-dir", "run"]) == 0
    model, tokenizer, *_ = load_model(Path("run"), "best", "cpu", print)
    letter, word = (tokenizer.encode_ordinary(text) for text in ("e", "e\n"))
    capsys.readouterr()
    plain  = {"do_sample": True, "temperature": 0.8, "top_k": 50, "max_new_tokens": 30}
    beams  = {"do_sample": False, "num_beams": 3, "max_new_tokens": 30}
    texts = []
    for flags, settings in (
            ("", {}), ("--no-use-cache", {}),
            ("--min-p 0.5", {"min_p": 0.5}), ("--top-p 0.2", {"top_p": 0.2}),
            ("--repetition-penalty 5", {"repetition_penalty": 5.0}),
            ("--no-repeat-ngram-size 2", {"no_repeat_ngram_size": 2}),
            ("--bad-words e e\\n", {"bad_words_ids": [letter, word]}),
            ("--stop-strings \\n", {"stop_strings": ["\n"], "tokenizer": tokenizer}),
            ("--num-beams 3", {"num_beams": 3}), ("--no-do-sample --num-beams 3", beams),
            ("--no-do-sample --num-beams 3 --early-stopping never --length-penalty -9 --stop-strings o",
             beams | {"early_stopping": "never", "length_penalty": -9.0, "stop_strings": "o",
                      "tokenizer": tokenizer, "pad_token_id": 0}),
            ("--no-do-sample --no-repeat-ngram-size 3", {"do_sample": False, "no_repeat_ngram_size": 3})):
        assert main(["sample", "run", "--prompt", "to be", "--max-new-tokens", "30", *flags.split()]) == 0
        texts.append(capsys.readouterr().out)
        ids = tokenizer.encode_ordinary("to be")
        assert texts[-1] == tokenizer.decode(model.generate([ids], **plain | settings)[0]) + "\n", flags
    ends = ["--eos-token-id", str(letter[0])]
    assert main(["sample", "run", "--prompt", "to be", "--max-new-tokens", "30", *ends]) == 0
    assert capsys.readouterr().out == texts[0][:texts[0].index("e", 5)] + "\n"        # the end is not shown
    assert texts[0] == texts[1] and len(set(texts)) >= 9 and len(texts[7]) < 36 and len(texts[10]) < 36

    several = ["sample", "run", "--prompt", "to be", "--no-do-sample", "--num-beams", "3", "--num-samples"]
    assert main([*several, "3"]) == 0
    best = model.generate([ids], num_beams=3, num_return_sequences=3, max_new_tokens=200)
    assert capsys.readouterr().out == "\n---\n".join(map(tokenizer.decode, best.tolist())) + "\n"
    refused(capsys, 1, "num_samples must be at most num_beams = 3 without sampling, not 4", *several, "4")
    refused(capsys, 1, "min_new_tokens = 300 asks for 300", "sample", "run", "--min-new-tokens", "300")
    refused(capsys, 1, "repetition_penalty must be above 0", "sample", "run", "--repetition-penalty", "0")
    refused(capsys, 2, "early-stopping|early_stopping", "sample", "run", "--early-stopping", "perhaps")
    assert "to be" not in capsys.readouterr().out


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
    (1, "unknown preset 'huge'", ["--preset", "huge"]),
    (1, "broken.toml is not TOML", ["--config", "broken.toml"]),
    (1, "odd.toml: unknown setting 'layers'", ["--config", "odd.toml"]),
    (1, "x is not a run's folder", ["--resume", "x"]),
    (1, "unknown device 'gpu'", ["--device", "gpu"]),
    (1, "needs CuPy|needs an NVIDIA GPU|no device", ["--device", "cuda:99"]),
    (1, "text.txt.*not an empty folder", ["--out-dir", "text.txt"]),
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


def test_bad_input_to_sample(folder, capsys):
    refused(capsys, 1, "absent is no folder here", "sample", "absent")
    refused(capsys, 2, "RUN|run", "sample")
    assert main(["train", "--data", "text.txt", *tiny.FLAGS, "--out-dir", "run"]) == 0
    refused(capsys, 1, "no checkpoint '7'", "sample", "run", "--checkpoint", "7")
    refused(capsys, 1, "temperature must be above 0", "sample", "run", "--temperature", "0")
    refused(capsys, 1, "top_p must be above 0", "sample", "run", "--top-p", "1.5")
    refused(capsys, 1, "max_new_tokens must be at least 0", "sample", "run", "--max-new-tokens", "-1")
    refused(capsys, 1, "U\\+00A7|§", "sample", "run", "--prompt", "§")


def test_the_commands_are_listed_and_wrong_ones_refused(capsys):
    assert main([]) == 2 and main(["--help"]) == 0
    said = capsys.readouterr().out
    assert all(f"\n  {command} " in said
               for command in ("train", "finetune", "sample", "evaluate", "prepare", "verify", "plot",
                               "inspect", "bench", "gradcheck"))
    assert main(["--version"]) == 0
    refused(capsys, 2, "unknown command 'tarin'; did you mean 'train'", "tarin")


@pytest.mark.parametrize("command", ["train", "finetune", "sample", "evaluate", "prepare", "verify", "plot",
                                     "inspect", "bench", "gradcheck"])
def test_every_option_is_listed_and_documented(command, capfd, monkeypatch):
    def bare(text):
        return re.sub(r"[│\s]", "", text)                  # the end of the screen breaks lines anywhere

    monkeypatch.setenv("COLUMNS", "120")                   # in one column
    with pytest.raises(SystemExit) as leaving:
        main([command, "--help"])
    assert leaving.value.code == 0
    said = bare(capfd.readouterr().out)
    options = importlib.import_module(f"npgpt.cli.{command}").Options
    assert bare(options.__doc__) in said
    settings = {"train": TrainConfig, "bench": TrainConfig, "prepare": PrepareConfig,
                "finetune": FinetuneConfig}
    texts: dict[str, str] = {}                             # of a field that a subclass changes, the last
    for kind in [*reversed(settings.get(command, object).__mro__[:-1]), options]:
        body = ast.parse(inspect.getsource(kind)).body[0].body
        for field, text in zip(body, [*body[1:], None], strict=True):
            if isinstance(field, ast.AnnAssign):
                texts[field.target.id] = text and isinstance(text, ast.Expr) and text.value.value
    for name in texts.keys() - {"settings", "model", "names", "paths", "runs", "run"}:
        assert texts[name], f"{name} has no text"
        assert f"--{name.replace('_', '-')}" in said
        assert bare(texts[name]) in said


def test_gradcheck_shows_a_row_an_example_and_fails_on_a_wrong_gradient(capsys, monkeypatch):
    refused(capsys, 1, "seed must be at least 0, not -1", "gradcheck", "--seed", "-1")
    assert main(["gradcheck", "norm", "Relu"]) == 0
    said = capsys.readouterr().out
    assert "LayerNorm" in said and "softmax" not in said and " 0 wrong" in said
    for line in (" kind +name +checked +worst error +1e-06 allowed", r" op +relu +x +\d\.\de-\d\d +right",
                 r" layer +PostNormBlock +\d\d parameters and"):
        assert re.search(line, said), line
    refused(capsys, 1, "no op, layer or model is called like conv: there are linear", "gradcheck", "conv")
    from npgpt.inspection import examples
    honest = examples.OPS["relu"]

    def dishonest(*arguments):
        case = honest(*arguments)
        return case._replace(backward=lambda dy, saved: case.backward(dy, saved) * 1.0001)

    monkeypatch.setitem(examples.OPS, "relu", dishonest)
    refused(capsys, 1, "relu: the gradient of x is wrong", "gradcheck", "relu")


@pytest.mark.parametrize("error, status, sentence", [
    (KeyboardInterrupt(), 130, "npgpt: interrupted"),
    (MemoryError(), 1, "npgpt: out of memory: use a smaller model or batch"),
    (OSError(28, "No space left on device", "runs/x"), 1, "npgpt: No space left on device: runs/x"),
])
def test_what_befalls_a_command_is_one_sentence(error, status, sentence, capsys, monkeypatch):
    def fail(arguments):
        raise error

    monkeypatch.setattr("npgpt.cli.sample.run", fail)
    assert main(["sample"]) == status
    assert capsys.readouterr().err == sentence + "\n"


def test_a_reader_that_goes_away_ends_the_command_quietly(folder):
    done = subprocess.run(f"{sys.executable} -m npgpt gradcheck | true; echo ${{PIPESTATUS[0]}}", shell=True,
                          executable="/bin/bash", capture_output=True, text=True, timeout=60)
    assert done.stdout == "1\n" and done.stderr == ""


@pytest.mark.parametrize(("closed", "status"), [
    ("gradcheck relu >&-", 0), ("tokenizer encode run/tokenizer <&-", 0), ("sample absent 2>&-", 1)])
def test_a_closed_stream_is_one_without_anything(folder, closed, status):
    assert main(["train", *tiny.FLAGS, "--out-dir", "run"]) == 0
    done = subprocess.run(f"{sys.executable} -m npgpt {closed}", shell=True, capture_output=True, text=True)
    assert done.returncode == status and not done.stderr


def test_what_an_encoding_cannot_show_is_a_question_mark(folder):
    assert main(["train", *tiny.FLAGS, "--tokenizer", "bpe", "--vocab-size", "260", "--out-dir", "run"]) == 0
    done = subprocess.run([sys.executable, "-m", "npgpt", "sample", "run", "--prompt", "ü😀x"], text=True,
                          capture_output=True, encoding="ascii",
                          env=os.environ | {"PYTHONIOENCODING": "ascii:strict"})
    assert done.returncode == 0 and done.stdout.startswith("??x") and not done.stderr


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
