"""Runs on several ranks: how many there are, that a run does not depend on it, and what they are refused."""

import contextlib
import json

import numpy as np
import pytest
import tiny
from training.test_communication import assert_same

from npgpt.cli.main import main
from npgpt.errors import ConfigError
from npgpt.training.checkpoint import list_checkpoints, load_latest
from npgpt.training.communication import Ranks
from npgpt.training.config import TrainConfig
from npgpt.training.loop import number_of_workers, train
from npgpt.training.monitor import Silence
from npgpt.training.runs import open_run


def test_by_default_every_core_is_a_rank_that_has_a_sequence(monkeypatch):
    monkeypatch.setattr("npgpt.training.loop.physical_cores", lambda: 8)
    sizes = {"batch_size": 3, "gradient_accumulation_steps": 2}
    assert number_of_workers(TrainConfig(**sizes)) == 6
    assert number_of_workers(TrainConfig()) == 8
    assert number_of_workers(TrainConfig(workers=3)) == 3
    assert number_of_workers(TrainConfig(device="cuda")) == 1
    with pytest.raises(ConfigError, match="workers must be 1 to 6, a sequence of the step for each, not 7"):
        TrainConfig(**sizes, workers=7)
    with pytest.raises(ConfigError, match="workers must be 1 on a GPU, not 2"):
        TrainConfig(device="cuda", workers=2)


def test_a_process_alone_has_workers_whoever_says_that_it_is_alone(tmp_path, monkeypatch):
    sizes: list[int] = []
    monkeypatch.setattr("npgpt.training.loop.run_on_processes", lambda size, work: sizes.append(size))
    run = tiny.new_run(tmp_path, workers=2)
    for processes in (None, Ranks()):
        train(run, Silence(), processes=processes)
    assert sizes == [2, 2]


def trained(run):
    checkpoint = load_latest(run.path, print)
    return {f"{kind} {name}": array for kind, arrays in checkpoint.tensors.items()
            for name, array in arrays.items()}


def test_a_checkpoint_of_any_number_of_ranks_goes_on_with_any_other(tmp_path):
    whole = tiny.new_run(tmp_path, "whole", dtype="float64", workers=1)
    assert tiny.train_quietly(whole)
    expected = trained(whole)
    for before, after in ((3, 1), (1, 4), (2, 3)):
        run = tiny.new_run(tmp_path, f"{before}-{after}", dtype="float64", workers=before)
        asked = iter(range(13))
        assert not tiny.train_quietly(run, stop=lambda: next(asked, None) is None)    # noqa: B023
        assert list_checkpoints(run.path)[0].name == "step-000013"
        assert tiny.train_quietly(run._replace(config=TrainConfig(**vars(run.config) | {"workers": after})),
                                  resume=True)
        assert_same([expected, trained(run)], "float64")


@pytest.mark.parametrize("workers", [2, 3])
def test_runs_on_several_processes_or_threads_are_byte_identical(tmp_path, monkeypatch, workers):
    """Twice on what this system has, then on threads, as where nothing can be forked."""
    found = []
    for name in ("one", "two", "threads"):
        if name == "threads":
            monkeypatch.setattr("npgpt.training.forks.FORKS", False)
        run = tiny.new_run(tmp_path, name, workers=workers)
        assert tiny.train_quietly(run)
        found.append(trained(run))
    for other in found[1:]:
        assert all(np.array_equal(found[0][name], other[name]) for name in found[0])


def test_mpiexec_trains_and_threads_go_on(tmp_path, mpiexec):
    text, folder = tiny.write_text(tmp_path), tmp_path / "run"
    done = mpiexec(2, "npgpt", "train", "--data", text, *tiny.FLAGS, "--dtype", "float64",
                   "--out-dir", folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("run: ") == done.stdout.count("next:  npgpt sample") == 1
    assert list_checkpoints(folder)[0].name == "step-000020"
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records if "train_loss" in record] == [4, 8, 12, 16, 20]
    alone = tiny.new_run(tmp_path, "alone", workers=1, dtype="float64")
    assert tiny.train_quietly(alone)
    assert_same([trained(alone), trained(open_run(folder))], "float64")

    done = mpiexec(3, "npgpt", "train", "--resume", folder, "--max-iters", "24")
    assert done.returncode == 0 and "going on at step 20" in done.stdout, done.stderr
    assert tiny.train_quietly(open_run(folder), resume=True)


def test_mpiexec_trains_on_gpus(tmp_path, mpiexec):
    def command(device, name):
        return ["cuda", "npgpt", "train", "--data", tiny.write_text(tmp_path), *tiny.FLAGS,
                "--dtype", "float64", "--device", device, "--out-dir", tmp_path / name]

    done = mpiexec(3, *command("cuda", "one too many"))
    assert "npgpt: no device cuda:2: this machine has 2 CUDA devices" in done.stderr and done.returncode
    assert not (tmp_path / "one too many").exists()
    done = mpiexec(2, *command("cuda:1", "one for all"))
    assert done.stderr.count("share the GPUs out: use device cuda, not cuda:1") == 1 and done.returncode
    assert not (tmp_path / "one for all").exists()
    done = mpiexec(2, *command("cuda", "run"))
    assert done.returncode == 0, done.stderr
    assert open_run(tmp_path / "run").config.device == "cuda"
    alone = tiny.new_run(tmp_path, "alone", workers=1, dtype="float64")
    assert tiny.train_quietly(alone)
    assert_same([trained(alone), trained(open_run(tmp_path / "run"))], "float64")


def test_mpiexec_finetunes(tmp_path, mpiexec):
    folder = tmp_path / "run"
    base   = tiny.new_run(tmp_path, "base", max_iters=1, eval_iters=1, sample_tokens=0)
    assert tiny.train_quietly(base)
    command = ["npgpt", "finetune", base.path, "--data", tmp_path / "text.txt", "--max-iters", "2",
               "--eval-iters", "1", "--sample-tokens", "0", "--out-dir", folder]
    done = mpiexec(2, "cuda", *command, "--device", "cuda:1")
    assert "share the GPUs out: use device cuda, not cuda:1" in done.stderr and not folder.exists()
    done = mpiexec(2, *command)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("run: ") == done.stdout.count("next:  npgpt sample") == 1
    assert list_checkpoints(folder)[0].name == "step-000002"


@pytest.mark.parametrize("arguments, sentence", [
    (("--max-iters", "0"), "npgpt: max_iters must be at least 1, not 0"),
    (("--workers", "2"), "npgpt: mpiexec's processes are the ranks: leave workers out"),
    (("--batch-size", "1", "--gradient-accumulation-steps", "1"), "start at most 1, a sequence"),
])
def test_what_every_process_finds_wrong_is_told_once(tmp_path, mpiexec, arguments, sentence):
    done = mpiexec(2, "npgpt", "train", "--data", tiny.write_text(tmp_path), *tiny.FLAGS, *arguments,
                   "--out-dir", tmp_path / "run")
    assert done.returncode != 0 and done.stderr.count(sentence) == 1 and "Traceback" not in done.stderr


@pytest.mark.parametrize("flags", [["--batch-size", "1", "--gradient-accumulation-steps", "1"],
                                   ["--workers", "2"]])
@pytest.mark.parametrize("command", ["train", "finetune"])
def test_ranks_that_do_not_fit_are_refused_before_a_run(tmp_path, monkeypatch, capsys, command, flags):
    ranks = Ranks()
    ranks.size = 2
    monkeypatch.setattr(f"npgpt.cli.{command}.processes", lambda: contextlib.nullcontext(ranks))
    monkeypatch.chdir(tmp_path)
    text  = str(tiny.write_text(tmp_path))
    model = [str(tiny.new_run(tmp_path, "base").path)] if command == "finetune" else []
    before = sorted(tmp_path.rglob("*"))
    assert main([command, *model, "--data", text, "--max-iters", "1", *flags]) == 1
    assert "mpiexec's processes are the ranks: leave workers out" in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before
