"""The loop: what it computes, that a run cut anywhere goes on bit for bit, and what it does with NaN."""

import dataclasses
import json
import math
import shutil

import numpy as np
import pytest
import strict_cupy
import tiny

from npgpt.data.shards import write_shard
from npgpt.errors import CheckpointError, DataError, TrainingError
from npgpt.models import GPT, GPTConfig
from npgpt.ops import penalty_forward
from npgpt.tensor import Key, to_numpy
from npgpt.training.checkpoint import list_checkpoints, load_checkpoint, load_latest, lock_run, step_of
from npgpt.training.config import TrainConfig
from npgpt.training.loading import load_run
from npgpt.training.optimizer import AdamW
from npgpt.training.runs import create_run, new_run_path, open_run
from npgpt.training.schedule import learning_rate
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


@pytest.mark.parametrize("grad_clip", [1.0, 0.0])
def test_once_a_gpu_was_waited_for_only_the_optimiser_is_launched(monkeypatch, grad_clip):
    strict_cupy.install(monkeypatch)
    strict_cupy.machine.order = "C"
    config  = TrainConfig(**tiny.SETTINGS | {"device": "cuda", "grad_clip": grad_clip})
    tokens  = np.random.default_rng(0).integers(0, 11, 700)
    trainer = Trainer(config, GPT(config.model(11), 0, "cuda"), tokens, tokens)
    counts: list[int] = []
    note    = lambda *_: counts.append(len(strict_cupy.machine.launches))                    # noqa: E731
    monkeypatch.setattr("npgpt.training.trainer.to_numpy", lambda array: (note(), to_numpy(array))[1])
    monkeypatch.setattr(trainer.optimizer, "step", note)
    trainer.update(0)
    waited, stepped = counts
    assert 0 < waited == stepped


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

    monkeypatch.setattr("npgpt.training.trainer.prune_checkpoints", refuse)
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


def test_the_newest_checkpoint_damaged_the_one_before_is_used_loudly(tmp_path, undisturbed, capsys):
    run = tiny.new_run(tmp_path)
    tiny.train_quietly(run)
    model = list_checkpoints(run.path)[0] / "model.safetensors"
    model.write_bytes(model.read_bytes()[:-1] + b"x")
    tiny.train_quietly(open_run(run.path), resume=True)
    assert "warning" in (said := capsys.readouterr().out) and "step-000020" in said
    assert final_bytes(run)["model"] == undisturbed["model"]


def test_the_latest_two_and_the_best_checkpoints_are_kept(tmp_path, monkeypatch):
    losses = iter([3.0, 1.0, 2.0, 2.5, 1.5, 1.2])                             # of steps 0, 10, …, 50
    monkeypatch.setattr(Trainer, "evaluate", lambda self: next(losses))
    run = tiny.new_run(tmp_path, max_iters=50, workers=1)
    tiny.train_quietly(run)
    kept = list(map(step_of, list_checkpoints(run.path)))
    assert kept == [50, 40, 10]
    assert load_run(run.path, "best", "cpu", print)[2].step == 10
    assert load_run(run.path, "latest", "cpu", print)[2].step == 50
    assert load_run(run.path, "40", "cpu", print)[2].step == 40
    with pytest.raises(CheckpointError, match="no checkpoint '7': use best, latest, 50, 40, 10"):
        load_run(run.path, "7", "cpu", print)


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


def test_a_second_trainer_on_the_same_run_is_refused(tmp_path):
    run = tiny.new_run(tmp_path)
    with lock_run(run.path), pytest.raises(TrainingError, match="run"):
        tiny.train_quietly(run)


def trainer_on_random_tokens(**settings):
    config = TrainConfig(**tiny.SETTINGS | {"dtype": "float64"} | settings)
    tokens = np.random.default_rng(0).integers(0, 11, 500)
    return Trainer(config, GPT(config.model(11), config.seed, dtype="float64"), tokens, tokens)


@pytest.mark.parametrize("batch_size, steps", [(1, 6), (2, 3), (3, 2)])
def test_accumulated_gradients_are_those_of_one_large_batch(batch_size, steps):
    """Weighted by counted tokens, dropout included: the parts count different numbers of targets."""
    def gradients(**settings):
        trainer = trainer_on_random_tokens(**settings)
        batch = trainer.batches.at(3)
        assert len(batch.tokens) == 6
        batch.targets[:2, :7] = -100
        batch.targets[4] = -100
        return trainer.loss_and_gradients(3, batch), trainer.model.flat.grad

    loss, grad = gradients(batch_size=6, gradient_accumulation_steps=1)
    part_loss, part_grad = gradients(batch_size=batch_size, gradient_accumulation_steps=steps)
    assert abs(part_loss - loss) <= 1e-14 * loss
    np.testing.assert_allclose(part_grad, grad, rtol=0, atol=1e-13 * abs(grad).max())


def test_dropout_is_on_in_training_and_differs_by_step_and_off_in_evaluation():
    trainer = trainer_on_random_tokens()
    batch = trainer.batches.at(0)
    tokens, targets, _ = batch
    plain, _ = trainer.model.loss(tokens, targets)
    first, again, other = (trainer.loss_and_gradients(step, batch) for step in (0, 0, 1))
    assert first == again != other and first != plain
    assert trainer.evaluate() == trainer.evaluate()
    key = Key(trainer.config.seed, step=0)
    keyed = trainer.model.loss(tokens[:3], targets[:3], key, targets.size)[0]
    keyed += trainer.model.loss(tokens[3:], targets[3:], key._replace(example=3), targets.size)[0]
    assert first == keyed


def test_evaluation_is_the_mean_over_the_validation_windows():
    trainer = trainer_on_random_tokens(eval_iters=100)     # (500 − 1) // 8 = 62 windows: a last batch of 2
    windows = [trainer.val[start:start + 9] for start in range(0, 62 * 8, 8)]
    losses = [trainer.model.loss(window[None, :-1], window[None, 1:])[0] for window in windows]
    assert abs(trainer.evaluate() - np.mean(losses)) < 1e-13


def test_penalties_add_their_gradient_on_matrices_only():
    plain, penalised = trainer_on_random_tokens(), trainer_on_random_tokens(l1=0.3, l2=0.7)
    before = {name: parameter.data.copy() for name, parameter in plain.model.parameters.items()}
    for trainer in (plain, penalised):
        trainer.update(0)
    for name, parameter in penalised.model.parameters.items():
        added = parameter.grad - plain.model.parameters[name].grad
        w, h = before[name], 1e-6
        if w.ndim < 2:
            assert not added.any()
        else:
            place = np.unravel_index(abs(w).argmax(), w.shape)
            above, below = (penalty_forward(w[place] + sign * h, 0.3, 0.7)[0] for sign in (1, -1))
            assert abs(added[place] - (above - below) / (2 * h)) < 1e-8


def test_updates_are_clip_then_adamw_at_the_scheduled_rate():
    trainer, other = trainer_on_random_tokens(grad_clip=0.01), trainer_on_random_tokens(grad_clip=0.01)
    optimizer = AdamW(other.model, betas=(0.9, 0.99), weight_decay=0.1)
    for step in (2, 3):                                                       # one cannot tell the betas
        found = trainer.update(step)
        loss = other.loss_and_gradients(step, other.batches.at(step))
        norm = float(np.linalg.norm(other.model.flat.grad))
        other.model.flat.grad[...] *= 0.01 / (norm + 1e-6)
        optimizer.step(lr=1e-2 * (step + 1) / 6)                              # 5 updates of warm-up
        assert (found.loss, found.lr) == (pytest.approx(loss, rel=1e-12), 1e-2 * (step + 1) / 6)
        assert found.norm == pytest.approx(norm, rel=1e-12) and norm > 0.01
    np.testing.assert_allclose(trainer.model.flat.data, other.model.flat.data, rtol=0, atol=1e-13)


def test_by_default_the_rate_falls_to_a_tenth_over_the_run():
    trainer = trainer_on_random_tokens()
    assert trainer.update(12).lr == learning_rate(12, 1e-2, 5, 20, 1e-3)
    assert trainer.update(20).lr == 1e-3
    trainer = trainer_on_random_tokens(lr_decay_iters=10, min_lr=0.004)
    assert trainer.update(7).lr == learning_rate(7, 1e-2, 5, 10, 0.004)
    assert trainer.update(10).lr == 0.004


def test_a_norm_limit_of_zero_leaves_gradients_unclipped():
    clipped, free = trainer_on_random_tokens(grad_clip=1e-9), trainer_on_random_tokens(grad_clip=0.0)
    for trainer in (clipped, free):
        trainer.update(0)
    assert np.linalg.norm(clipped.optimizer.exp_avg) < 1e-9 < 1e-2 < np.linalg.norm(free.optimizer.exp_avg)


def test_one_batch_overfits():
    config = GPTConfig(vocab_size=13, block_size=8, n_layer=2, n_head=2, n_embd=32)
    model = GPT(config, seed=0)
    optimizer = AdamW(model, lr=3e-3, weight_decay=0.0)
    rng = np.random.default_rng(0)
    tokens, targets = rng.integers(0, 13, (4, 8)), rng.integers(0, 13, (4, 8))
    loss, _ = model.loss(tokens, targets)
    assert abs(loss - math.log(13)) < 0.1
    for _ in range(300):
        model.zero_grad()
        loss, saved = model.loss(tokens, targets)
        model.backward(saved)
        optimizer.step()
    assert loss < 0.01


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_parameter_that_is_not_finite_is_named_and_nothing_is_updated(value):
    trainer = trainer_on_random_tokens()
    trainer.model.parameters["h.1.ln_2.weight"].data[3] = value
    before = trainer.model.flat.data.copy()
    with np.errstate(all="ignore"):
        found = trainer.update(0)
    assert not (math.isfinite(found.loss) and math.isfinite(found.norm))
    assert trainer.name_non_finite(found) == "NaN or Inf in the parameter h.1.ln_2.weight"
    np.testing.assert_array_equal(trainer.model.flat.data, before)
    assert trainer.optimizer.updates == 0 and not trainer.optimizer.exp_avg.any()


def test_a_gradient_that_is_not_finite_is_named_and_nothing_is_updated(monkeypatch):
    trainer = trainer_on_random_tokens()
    loss_and_gradients = trainer.loss_and_gradients

    def poisoned(*arguments):
        loss = loss_and_gradients(*arguments)
        trainer.model.parameters["h.0.mlp.c_fc.bias"].grad[2] = math.nan
        return loss

    monkeypatch.setattr(trainer, "loss_and_gradients", poisoned)
    before = trainer.model.flat.data.copy()
    found = trainer.update(0)
    assert math.isfinite(found.loss)
    assert trainer.name_non_finite(found) == "NaN or Inf in the gradient of h.0.mlp.c_fc.bias"
    np.testing.assert_array_equal(trainer.model.flat.data, before)


def test_nan_in_a_few_steps_in_a_row_ends_the_run_and_its_checkpoint_is_good(tmp_path, monkeypatch, capsys):
    run = tiny.new_run(tmp_path, workers=1)
    update, steps = Trainer.update, []

    def failing(self, step):
        steps.append(step)
        found = update(self, step)
        return found._replace(loss=math.nan) if step in (3, 4, 12, 13, 14) else found

    monkeypatch.setattr(Trainer, "update", failing)
    with pytest.raises(TrainingError, match="the loss is nan, 3 steps in a row up to step 15"):
        tiny.train_quietly(run)
    assert steps == list(range(15)), "two in a row are passed over, three are too many"
    said = capsys.readouterr().out
    assert said.count("no update was made") == 5 and "step 4: the loss is nan" in said
    assert load_latest(run.path, print).step == 10


def test_a_checkpoint_of_another_shape_is_refused_by_name(tmp_path):
    run = tiny.new_run(tmp_path)
    tiny.train_quietly(run)
    tensors = load_checkpoint(list_checkpoints(run.path)[0]).tensors["model"]
    other = GPT(dataclasses.replace(run.config, block_size=9).model(run.tokenizer.vocab_size))
    with pytest.raises(CheckpointError, match=r"wpe.weight has shape \(8, 8\) in the checkpoint, but \(9,"):
        other.flat.load(tensors)
    deeper = GPT(dataclasses.replace(run.config, n_layer=3).model(run.tokenizer.vocab_size))
    with pytest.raises(CheckpointError, match="h.2.attn.c_attn.bias is in the model but not in the check"):
        deeper.flat.load(tensors)
    optimizer = AdamW(deeper)
    with pytest.raises(CheckpointError, match="does not fit this model"):
        optimizer.load_state(load_checkpoint(list_checkpoints(run.path)[0]).tensors["optimizer"], 1)


def test_a_run_that_cannot_be_created_leaves_nothing(tmp_path):
    config = TrainConfig(**tiny.SETTINGS | {"data": str(tiny.write_text(tmp_path, 60))})
    with pytest.raises(Exception, match="tokens"):
        create_run(tmp_path / "run", config, print)
    assert not (tmp_path / "run").exists()


def test_tokens_of_another_tokenizer_are_refused(tmp_path):
    run = tiny.new_run(tmp_path)
    write_shard(run.path / "data" / "val.bin", [np.arange(9)], vocab_size=99)
    with pytest.raises(DataError, match="val.bin was made with a vocabulary of 99, but the tokenizer"):
        open_run(run.path)


def test_a_new_run_takes_a_free_name_and_never_an_occupied_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert str(new_run_path(TrainConfig(), "quick")) == "runs/quick"          # and takes it, so that the next
    assert str(new_run_path(TrainConfig(), "quick")) == "runs/quick-2"
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/runs").touch()
    monkeypatch.chdir(tmp_path / "sub")
    with pytest.raises(TrainingError, match="cannot use the run folder runs/quick: File exists"):
        new_run_path(TrainConfig(), "quick")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    assert str(new_run_path(TrainConfig(out_dir="mine"), "quick")) == "mine"
    for unfinished in ("tokenizer", "data", ".base.7.partial"):   # left by a run killed while it was made
        (tmp_path / "mine" / unfinished).mkdir()
    with pytest.raises(TrainingError, match="not an empty folder"):         # or somebody's own: no lock
        new_run_path(TrainConfig(out_dir="mine"), "quick")
    (tmp_path / "mine/lock").touch()
    assert str(new_run_path(TrainConfig(out_dir="mine"), "quick")) == "mine"
    (tmp_path / "mine/letter").write_text("dear")
    with pytest.raises(TrainingError, match="not an empty folder"):
        new_run_path(TrainConfig(out_dir="mine"), "quick")
    (tmp_path / "mine/config.toml").write_text("")
    with pytest.raises(TrainingError, match="--resume mine"):
        new_run_path(TrainConfig(out_dir="mine"), "quick")
