"""The loop: a run cut anywhere goes on bit for bit, what it keeps, and what it does with NaN."""

import dataclasses
import json
import math
import shutil
from types import SimpleNamespace

import pytest
import strict_cupy
import tiny

from npgpt.errors import CheckpointError, TrainingError
from npgpt.tensor import device_of
from npgpt.training.checkpoint import list_checkpoints, load_latest, lock_run, step_of
from npgpt.training.loading import load_run
from npgpt.training.runs import open_run, write_config
from npgpt.training.trainer import Trainer


def final_bytes(run):
    """Everything a run ends with that must not depend on how it got there."""
    latest = list_checkpoints(run.path)[0]
    records = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    for record in records:
        for name in ("seconds", "tokens_per_second"):
            record.pop(name, None)
    state = json.loads((latest / "state.json").read_text())["state"]
    state.pop("seconds")
    return {"model": (latest / "model.safetensors").read_bytes(),
            "optimizer": (latest / "optimizer.safetensors").read_bytes(),
            "state": state, "metrics": records}


def stop_after(updates):
    """A stop that is asked before every update, and says yes after so many."""
    asked = iter(range(updates))
    return lambda: next(asked, None) is None


def test_two_runs_with_one_seed_are_byte_identical_and_another_seed_is_not(tmp_path):
    runs = [tiny.new_run(tmp_path, "one"), tiny.new_run(tmp_path, "two"),
            tiny.new_run(tmp_path, "three", seed=1)]
    for run in runs:
        assert tiny.train_quietly(run)
    assert final_bytes(runs[0]) == final_bytes(runs[1])
    assert final_bytes(runs[0])["model"] != final_bytes(runs[2])["model"]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    run = tiny.new_run(tmp_path_factory.mktemp("undisturbed"))
    assert tiny.train_quietly(run)
    return final_bytes(run)


# warm-up is 5 updates, an evaluation comes after 10; an epoch is 77 windows, 6 a step: the second begins
# within step 13
@pytest.mark.parametrize("cut", [1, 3, 5, 9, 10, 11, 13, 19, 20])
def test_a_run_cut_anywhere_goes_on_bit_for_bit(tmp_path, undisturbed, cut):
    run = tiny.new_run(tmp_path)
    assert tiny.train_quietly(run, stop=stop_after(cut)) == (cut == 20)
    assert list_checkpoints(run.path)[0].name == f"step-{cut:06}"
    assert tiny.train_quietly(open_run(run.path), resume=True)
    resumed = final_bytes(run)
    assert resumed["model"] == undisturbed["model"]
    assert resumed["optimizer"] == undisturbed["optimizer"]
    assert resumed["state"] == undisturbed["state"]
    assert resumed["metrics"] == undisturbed["metrics"]


def test_a_run_killed_before_its_first_checkpoint_can_be_resumed(tmp_path, undisturbed):
    run = tiny.new_run(tmp_path)
    tiny.train_quietly(open_run(run.path), resume=True)
    assert final_bytes(run) == undisturbed


def test_old_checkpoints_that_cannot_be_removed_are_a_warning(tmp_path, undisturbed, monkeypatch, capsys):
    def refuse(run, keep):
        raise CheckpointError(f"cannot remove old checkpoints in {run}")

    monkeypatch.setattr("npgpt.training.loop.prune_checkpoints", refuse)
    run = tiny.new_run(tmp_path)
    tiny.train_quietly(run)
    assert final_bytes(run) == undisturbed
    assert capsys.readouterr().out.count("warning: cannot remove old checkpoints") == 2


def test_what_killed_writers_left_in_a_run_is_removed(tmp_path):
    run = tiny.new_run(tmp_path, max_iters=1)
    (run.path / ".metrics.jsonl.7.partial").touch()
    (run.path / ".base.7.partial/sub").mkdir(parents=True)
    (run.path / "mine.partial").touch()
    tiny.train_quietly(run)
    assert [path.name for path in run.path.iterdir() if "partial" in path.name] == ["mine.partial"]


def test_a_validation_loss_that_is_not_finite_ends_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr(Trainer, "evaluate", lambda self: math.nan)
    with pytest.raises(TrainingError, match="the validation loss is nan at step 0"):
        tiny.train_quietly(tiny.new_run(tmp_path))


def test_what_was_recorded_after_the_last_checkpoint_is_recorded_once(tmp_path, undisturbed):
    run = tiny.new_run(tmp_path)
    tiny.train_quietly(run, stop=stop_after(12))
    with (run.path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 16, "train_loss": 1.0}\n{"step": 20, "val_')   # as a killed trainer may leave it
    tiny.train_quietly(open_run(run.path), resume=True)
    assert final_bytes(run)["metrics"] == undisturbed["metrics"]


def test_the_metrics_count_tokens_and_seconds_on_and_the_speed_is_of_updates_alone(tmp_path, monkeypatch):
    """Also where a run goes on; an update takes 2 seconds here, an evaluation 100."""
    clock = [0.0]

    def taking(seconds, work):
        def slow(*arguments):
            clock[0] += seconds
            return work(*arguments)
        return slow

    monkeypatch.setattr("npgpt.training.loop.time", SimpleNamespace(perf_counter=lambda: clock[0]))
    monkeypatch.setattr(Trainer, "update", taking(2, Trainer.update))
    monkeypatch.setattr(Trainer, "evaluate", taking(100, Trainer.evaluate))
    run = tiny.new_run(tmp_path, workers=1)
    tiny.train_quietly(run, stop=stop_after(12))
    clock[0] += 1000
    tiny.train_quietly(run, resume=True)
    lines = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line["seconds"]) for line in lines] == [
        (0, 0), (4, 108), (8, 116), (10, 120), (12, 224), (16, 232), (20, 240), (20, 240)]
    assert all(line["tokens"] == 6 * 8 * line["step"] for line in lines)
    assert {line.get("tokens_per_second") for line in lines} == {None, 24}


def test_the_training_loss_at_the_best_evaluation_is_the_mean_since_the_one_before(tmp_path):
    run = tiny.new_run(tmp_path, log_interval=1)
    tiny.train_quietly(run)
    end    = final_bytes(run)
    best   = end["state"]["best_step"]
    losses = [record["train_loss"] for record in end["metrics"]
              if "train_loss" in record and best - 10 < record["step"] <= best]
    assert len(losses) == 10
    assert end["state"]["train_loss_at_best"] == pytest.approx(sum(losses) / 10, rel=1e-12)


def test_the_newest_checkpoint_damaged_the_one_before_is_used_loudly(tmp_path, undisturbed, capsys):
    run = tiny.new_run(tmp_path)
    tiny.train_quietly(run)
    model = list_checkpoints(run.path)[0] / "model.safetensors"
    model.write_bytes(model.read_bytes()[:-1] + b"x")
    tiny.train_quietly(open_run(run.path), resume=True)
    assert "warning" in (said := capsys.readouterr().out) and "step-000020" in said
    assert final_bytes(run)["model"] == undisturbed["model"]


def test_the_latest_two_and_the_best_checkpoints_are_kept(tmp_path, monkeypatch):
    losses = iter([3.0, 1.0, 2.0, 2.5, 1.5, 1.0])       # of steps 0, 10, …, 50: as good is no better
    monkeypatch.setattr(Trainer, "evaluate", lambda self: next(losses))
    run = tiny.new_run(tmp_path, max_iters=50, workers=1)
    tiny.train_quietly(run)
    kept = list(map(step_of, list_checkpoints(run.path)))
    assert kept == [50, 40, 10]
    assert load_run(run.path, "best", "cpu", print)[2].step == 10
    assert load_run(str(run.path), "latest", "cpu", print)[2].step == 50
    assert load_run(run.path, "40", "cpu", print)[2].step == 40
    with pytest.raises(CheckpointError, match="no checkpoint '7': use best, latest, 50, 40, 10"):
        load_run(run.path, "7", "cpu", print)


def test_a_run_stops_early_after_evaluations_in_a_row_that_are_no_better(tmp_path, monkeypatch):
    losses = iter([3.0, 4.0, 2.0, 5.0, 1.0, 1.5, 1.2])                        # of steps 0, 10, …, 60
    monkeypatch.setattr(Trainer, "evaluate", lambda self: next(losses))
    run = tiny.new_run(tmp_path, max_iters=80, early_stopping_patience=2, workers=1)
    assert tiny.train_quietly(run)
    assert load_latest(run.path, pytest.fail).step == 60


def test_a_run_evaluated_where_it_was_stopped_keeps_its_best_checkpoint(tmp_path, monkeypatch):
    losses = iter([3.0, 2.0, 1.0, 4.0])                                       # of steps 0, 10, 12, 20
    monkeypatch.setattr(Trainer, "evaluate", lambda self: next(losses))
    run = tiny.new_run(tmp_path, workers=1)
    tiny.train_quietly(run, stop=stop_after(12))
    shorter = run._replace(config=dataclasses.replace(run.config, max_iters=12))
    tiny.train_quietly(shorter, resume=True)
    checkpoint = load_run(run.path, "best", "cpu", pytest.fail)[2]
    assert checkpoint.step == checkpoint.state["best_step"] == 12 and checkpoint.state["evaluated"]
    assert [folder.name for folder in list_checkpoints(run.path)] == ["step-000012", "step-000010"]
    tiny.train_quietly(run, resume=True)
    assert [folder.name for folder in list_checkpoints(run.path)] == ["step-000020", "step-000012"]
    assert load_run(run.path, "best", "cpu", pytest.fail)[2].step == 12


def test_an_evaluation_that_was_not_saved_is_recorded_once(tmp_path):
    run = tiny.new_run(tmp_path, max_iters=10)
    tiny.train_quietly(run, stop=stop_after(7))
    with (run.path / "metrics.jsonl").open("a") as file:                      # killed before it was saved
        file.write('{"step": 7, "val_loss": 1.0}\n')
    tiny.train_quietly(run, resume=True)
    assert [record["step"] for record in final_bytes(run)["metrics"]] == [0, 4, 8, 10, 10]


def test_a_run_whose_first_evaluation_was_not_saved_records_it_once(tmp_path, undisturbed):
    run = tiny.new_run(tmp_path)
    (run.path / "metrics.jsonl").write_text('{"step": 0, "val_loss": 1.0}\n{"step": 4, "train_loss": 1.0}\n')
    tiny.train_quietly(run, resume=True)
    assert final_bytes(run) == undisturbed


def test_where_the_best_checkpoint_is_lost_the_latest_is_loaded_loudly(tmp_path, monkeypatch):
    losses = iter([1.0, 3.0, 2.0])
    monkeypatch.setattr(Trainer, "evaluate", lambda self: next(losses))
    run = tiny.new_run(tmp_path, workers=1)
    tiny.train_quietly(run)
    best, warnings = run.path / "checkpoints/step-000000", []
    (best / "model.safetensors").write_bytes(b"damaged")
    for reason in "step-000000 is damaged", "has no checkpoint 0":
        assert load_run(run.path, "best", "cpu", warnings.append)[2].step == 20
        assert reason in warnings.pop() and not warnings
        if best.exists():
            shutil.rmtree(best)


@pytest.mark.parametrize(("device", "settings"), [
    ("cuda", {"workers": 2}), ("cpu", {"device": "cuda", "dtype": "bfloat16"})])
def test_a_run_is_used_on_any_device_whatever_it_was_trained_on(tmp_path, monkeypatch, device, settings):
    strict_cupy.install(monkeypatch)
    run = tiny.new_run(tmp_path, max_iters=1, workers=1)
    tiny.train_quietly(run)
    write_config(run.path, dataclasses.replace(run.config, **settings))
    model = load_run(run.path, "best", device, pytest.fail)[0]
    assert device_of(model.flat.data).startswith(device) and model.flat.data.dtype == "float32"


def test_a_second_trainer_on_the_same_run_is_refused(tmp_path):
    run = tiny.new_run(tmp_path)
    with lock_run(run.path), pytest.raises(TrainingError, match="run"):
        tiny.train_quietly(run)


def test_nan_in_a_few_steps_in_a_row_ends_the_run_and_its_checkpoint_is_good(tmp_path, monkeypatch, capsys):
    run = tiny.new_run(tmp_path, workers=1)
    update, steps = Trainer.update, []

    def failing(self, step):
        steps.append(step)
        found = update(self, step)
        return found._replace(loss=math.nan) if step in (0, 3, 4, 12, 13, 14) else found

    monkeypatch.setattr(Trainer, "update", failing)
    with pytest.raises(TrainingError, match="the loss is nan, 3 steps in a row up to step 15"):
        tiny.train_quietly(run)
    assert steps == list(range(15)), "two in a row are passed over, three are too many"
    said = capsys.readouterr().out
    assert said.count("no update was made") == 6 and "step 4: the loss is nan" in said
    assert load_latest(run.path, print).step == 10
