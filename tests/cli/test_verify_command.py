"""`npgpt verify` as a user types it, on tiny runs beside a reference that tools/make_reference.py collects of
others."""

import importlib.util
import json
import re
from pathlib import Path

import pytest
import tiny

import npgpt
from npgpt.cli.main import main
from npgpt.data import batches
from npgpt.inspection.reference import read_reference, write_reference
from npgpt.layers import norm
from npgpt.training import trainer
from npgpt.training.config import TrainConfig

SETTINGS = {"max_iters": 100, "eval_interval": 50, "log_interval": 10, "sample_tokens": 0, "dropout": 0.1,
            "workers": 1}
SEEDS = [1337, 1, 2, 3, 4, 5]


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """The text of a reference of tiny runs, under the name of the preset quick."""
    file = Path(__file__).parents[2] / "tools" / "make_reference.py"
    spec = importlib.util.spec_from_file_location("make_reference", file)
    make_reference = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make_reference)
    folder = tmp_path_factory.mktemp("reference")
    runs = [tiny.new_run(folder, str(seed), seed=seed, **SETTINGS) for seed in SEEDS]
    for run in runs:
        tiny.train_quietly(run)
    return write_reference(make_reference.collect("quick", SEEDS, [run.path for run in runs]))


@pytest.fixture
def folder(tmp_path, reference, monkeypatch):
    """An empty folder to work in; npgpt's only reference is the tiny one."""
    stored = tmp_path / "presets"
    stored.mkdir()
    (stored / "quick.reference.json").write_text(reference)
    monkeypatch.setattr("npgpt.inspection.reference.resources.files", lambda package: stored)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def trained(folder, name="run", **settings):
    run = tiny.new_run(folder, name, **SETTINGS | {"seed": 77} | settings)
    tiny.train_quietly(run)
    return name


def refused(capsys, sentence, *arguments, status=1):
    capsys.readouterr()
    assert main([*arguments]) == status
    said = capsys.readouterr()
    assert said.err.startswith("npgpt: ") and said.err.count("\n") == 1, said.err
    assert re.search(sentence, said.err), said.err
    return said.out


def test_a_new_seed_is_normal_at_each_evaluation(folder, capsys):
    assert main(["verify", trained(folder)]) == 0
    said = capsys.readouterr()
    assert ("run: preset quick, evaluated up to step 100 of 100; beside it the seeds 1337, 1, 2, 3, 4, 5, "
            f"trained by npgpt {npgpt.__version__}\n" in said.out)
    for line in (r"validation loss +0 +2\.\d{4} +2\.\d{4} ± 0\.\d{4} +[+-]\d\.\d +normal",
                 r"  +100 +\d\.\d{4} +\d\.\d{4} ± 0\.\d{4} +[+-]\d\.\d +normal",
                 r"training loss +50 +\d\.\d{4} ", r"gradient norm +50 +\d\.\d{3} +\d\.\d{3} ×÷ 1\.\d{3} "):
        assert re.search(line, said.out), line
    losses = re.findall(r" (\d\.\d{4}) +(\d\.\d{4}) ± 0\.\d{4} +([+-])\d", said.out)
    assert losses and all((float(yours) > float(mean)) == (sign == "+") for yours, mean, sign in losses)
    assert len(re.findall("normal +\n", said.out)) == 3 + 2 + 2 and "within ±5.2 is" in said.out
    assert "Normal up to step 100: all numbers (7) are in" in said.out and "npgpt gradcheck" in said.out
    assert "first 50 steps" not in said.out and "the reference ends" not in said.out
    assert "holds back another part" not in said.out and said.err == ""


def test_a_run_in_training_is_judged_by_the_steps_it_has_reached(folder, capsys):
    run = tiny.new_run(folder, **SETTINGS | {"seed": 77})
    tiny.train_quietly(run, stop=lambda: (run.path / "checkpoints" / "step-000050").exists())
    assert main(["verify", "run"]) == 0
    assert "Normal up to step 50: all numbers (4) are in" in capsys.readouterr().out


def test_a_seed_of_the_reference_is_told_that_it_retraces_it(folder, capsys, monkeypatch):
    assert main(["verify", trained(folder, seed=2, workers=2)]) == 0
    said = capsys.readouterr().out
    assert "In its first 50 steps it is the reference's run of seed 2, but for rounding" in said
    metrics = Path("run/metrics.jsonl")
    rows    = [json.loads(line) for line in metrics.read_text().splitlines()]
    for row in rows:
        if "grad_norm" in row:                                                # one of the numbers alone
            row["grad_norm"] *= 1.02
    metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["verify", "run"]) == 0
    assert re.search(r"not those of .* seed 2, .* the gradient norm by up to 2 % \(", capsys.readouterr().out)
    honest = norm.layernorm_backward                                          # off by 1 %: no curve tells
    monkeypatch.setattr(norm, "layernorm_backward", lambda dy, saved: (1.01 * honest(dy, saved)[0],
                                                                       *honest(dy, saved)[1:]))
    assert main(["verify", trained(folder, "bent", seed=2)]) == 0
    said = capsys.readouterr().out
    assert "Its first 50 steps are not those of the reference's run of seed 2, but apart: the tra" in said


def bend(monkeypatch, bug):
    """Plants a bug in training."""
    if bug == "gradients twice as long":
        honest = trainer.Trainer.loss_and_gradients

        def wrong(self, *batch):
            loss = honest(self, *batch)
            gradients = self.model.flat.grad
            gradients *= 2
            return loss
        monkeypatch.setattr(trainer.Trainer, "loss_and_gradients", wrong)
    if bug == "a tenth of the learning rate":
        rate = TrainConfig.rate
        monkeypatch.setattr(TrainConfig, "rate", lambda config, step: rate(config, step) / 10)
    if bug == "the answer is shown":
        windows = batches._windows
        monkeypatch.setattr(batches, "_windows",
                            lambda *where: batches.Batch(*(windows(*where).targets,) * 2))


@pytest.mark.parametrize("bug, said", [
    ("gradients twice as long", r"Too high since step 50: the gradient norm .* is \d\.\d+ times .*a factor"),
    ("a tenth of the learning rate", r"Too high since step \d+: the validation loss .*gradcheck"),
    ("the answer is shown", r"Too low since step \d+: the validation loss at step 100 .*leak"),
])
def test_a_planted_bug_is_not_normal(folder, capsys, monkeypatch, bug, said):
    bend(monkeypatch, bug)
    out = refused(capsys, said, "verify", trained(folder))
    assert re.search(" (high|low) ", out)


def test_what_differs_is_named_and_there_is_no_verdict(folder, capsys):
    refused(capsys, "not comparable with preset quick because n_embd is 4, not 8; head_dim is 2, not 4; "
                    "n_inner is 16, not 32$",
            "verify", trained(folder, "a", n_embd=4, max_iters=10, lr_decay_iters=100))
    refused(capsys, "because learning_rate is 0.001, not 0.01; min_lr is 0.0001, not 0.001$",
            "verify", trained(folder, "b", learning_rate=1e-3, max_iters=10, lr_decay_iters=100))
    refused(capsys, "because max_iters is 10, not 100$", "verify", trained(folder, "c", max_iters=10))
    assert main(["verify", trained(folder, "on", max_iters=150, lr_decay_iters=100)]) == 0
    assert "the reference ends at step 100; what comes after it is not judged" in capsys.readouterr().out
    run = tiny.new_run(folder, "unlogged", **SETTINGS | {"max_iters": 30, "lr_decay_iters": 100})
    refused(capsys, "unlogged has no metrics.jsonl yet", "verify", "unlogged")
    tiny.train_quietly(run)
    (folder / "unlogged" / "metrics.jsonl").write_text('{"step": 30, "val_loss": 2.0}\n')
    refused(capsys, r"no verdict yet: .*\(every 50 up to 100\)", "verify", "unlogged")
    refused(capsys, "absent is not a run's folder", "verify", "absent")
    refused(capsys, "RUN", "verify", status=2)


def test_another_text_is_refused_and_pythons_other_wording_noted(folder, capsys, monkeypatch):
    trained(folder)
    text = (folder / "text.txt").read_text()
    (folder / "other.txt").write_text(text[:-9] + "question\n")
    refused(capsys, "the text the run learns from is another, or split otherwise, than that of text.txt",
            "verify", trained(folder, "b", data="other.txt", max_iters=50, lr_decay_iters=100))
    (folder / "long.txt").write_text(text + "to be ")
    refused(capsys, "learns from is longer than that of text.txt",
            "verify", trained(folder, "c", data="long.txt", max_iters=50, lr_decay_iters=100))
    monkeypatch.setattr("npgpt.inspection.verification.WORDINGS",
                        {"text.txt": {"val_loss": 1.0, "train_loss": 1.0, "grad_norm": 1.0}})
    (folder / "text.txt").write_text(text[:-9] + "question\n")
    monkeypatch.chdir(folder)
    run = tiny.create_run(folder / "d", tiny.TrainConfig(**tiny.SETTINGS | SETTINGS | {"data": "text.txt"}),
                          note=lambda text: None)
    tiny.train_quietly(run)
    assert main(["verify", "d"]) == 0
    said = capsys.readouterr().out
    assert "note: this Python's documentation is worded otherwise" in said and "first 50 steps" not in said
    assert re.search(r"validation loss +0 .* ± 1\.", said)


def test_fine_tunings_and_runs_on_examples_have_no_reference(folder, capsys):
    pairs = folder / "pairs.jsonl"
    pairs.write_text('{"prompt": "to", "completion": "be"}\n{"prompt": "or", "completion": "not"}\n' * 9)
    small = {"tokenizer": "bpe", "vocab_size": 257, "max_iters": 2}
    refused(capsys, "no verdict: the run learns from examples",
            "verify", trained(folder, "a", data=str(pairs), **small))
    assert main(["finetune", trained(folder, "b", **small), "--data", str(pairs), "--max-iters", "2",
                 "--out-dir", "c"]) == 0
    refused(capsys, "no verdict: the run is a fine-tuning, .* npgpt evaluate c tells", "verify", "c")


def test_presets_without_a_curve_say_so(folder, capsys):
    (folder / "presets" / "quick.reference.json").unlink()
    (folder / "presets" / "quick.toml").write_text(
        "\n".join(f'{name} = {str(value).lower() if isinstance(value, bool) else repr(value)}'
                  for name, value in (tiny.SETTINGS | SETTINGS).items()))
    refused(capsys, "the run is of preset quick, of which no curve is stored", "verify", trained(folder))
    refused(capsys, r"the run is nearest to preset quick \(weight_decay is 0.0, not 0.1\), of which no curve",
            "verify", trained(folder, "b", weight_decay=0.0, max_iters=10, lr_decay_iters=100))


def test_the_reference_is_drawn_behind_a_run(folder, capsys):
    pytest.importorskip("matplotlib")
    run = trained(folder)
    assert main(["plot", run, "--reference", "--out", "with.svg"]) == 0
    assert main(["plot", run, "--out", "without.svg"]) == 0
    pictures = [Path(name).read_text() for name in ("with.svg", "without.svg")]
    assert ["<!-- normal for preset quick -->" in picture for picture in pictures] == [True, False]
    assert ["#dddddd" in picture for picture in pictures] == [True, False]
    plot = ["plot", "--reference", "--out", "a.png"]
    refused(capsys, "--reference goes over steps", *plot, run, "--x", "tokens", status=2)
    refused(capsys, "not comparable .* n_embd is 4", *plot, trained(folder, "b", n_embd=4))
    assert not Path("a.png").exists()


def test_the_stored_reference_is_the_one_that_is_read(folder):
    assert read_reference("quick").seeds == tuple(SEEDS)
