"""A step: what it computes, and that nothing is updated where a number is not finite."""

import dataclasses
import math
from types import SimpleNamespace

import numpy as np
import pytest
import strict_cupy
import tiny

from npgpt.data.batches import Batch, Batches
from npgpt.data.examples import Examples
from npgpt.data.packing import ExampleBatches
from npgpt.errors import CheckpointError, ConfigError, DataError
from npgpt.models import GPT, GPTConfig
from npgpt.ops import penalty_forward
from npgpt.tensor import Key, to_numpy
from npgpt.training.checkpoint import list_checkpoints, load_checkpoint
from npgpt.training.communication import Ranks
from npgpt.training.config import TrainConfig
from npgpt.training.loss_scale import LossScale
from npgpt.training.optimizer import AdamW
from npgpt.training.schedule import learning_rate
from npgpt.training.trainer import Trainer


def trainer_on_random_tokens(ranks=None, **settings):
    config = TrainConfig(**tiny.SETTINGS | {"dtype": "float64"} | settings)
    tokens = np.random.default_rng(0).integers(0, 11, 500)
    return Trainer(config, GPT(config.model(11), config.seed, dtype="float64"), tokens, tokens, ranks)


def examples():
    counted = np.arange(40) % 4 > 0
    return Examples(np.arange(40, dtype=np.int32) % 11, counted, np.arange(0, 41, 4), np.empty(0, int))


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


class Noting(Ranks):
    """One of so many ranks, alone; notes what may be added up early, as it is then."""

    def __init__(self, rank, size):
        self.rank, self.size, self.early = rank, size, []

    def reduce_early(self, flat, stretch):
        self.early.append((stretch, flat[stretch].copy()))


def test_a_rank_puts_its_share_of_batch_size_through_the_model_and_adds_blocks_up_once_they_are_complete():
    """Of six sequences three are its own: two, and one that is left."""
    trainer = trainer_on_random_tokens(ranks := Noting(0, 2))
    model, sizes = trainer.model, []
    loss = model.loss
    model.loss = lambda tokens, *others: sizes.append(len(tokens)) or loss(tokens, *others)
    trainer.loss_and_gradients(0, trainer.batches.at(0))
    assert sizes == [2, 1]
    places = [n for stretch, _ in ranks.early for n in range(stretch.start, stretch.stop)]
    blocks = [n for name, place in model.flat.places.items() if name.startswith("h.")
              for n in range(place.start, place.stop)]
    assert sorted(places) == sorted(blocks)
    assert all(np.array_equal(model.flat.grad[stretch], then) and then.any() for stretch, then in ranks.early)


def test_nothing_is_added_up_early_where_another_rank_has_no_sequence():
    trainer = trainer_on_random_tokens(ranks := Noting(6, 7))
    trainer.loss_and_gradients(0, trainer.batches.at(0))
    assert not ranks.early


class Counting:
    """Batches of one's own: the step's number, again and again, with a mask."""

    def at(self, step):
        tokens = np.full((6, 8), step)
        return Batch(tokens, np.where(tokens % 2, tokens, -100), np.ones_like(tokens))

    def evaluation(self, batch_size, max_batches):
        return (self.at(n) for n in (1, 3))


class SignDescent:
    def __init__(self, model):
        self.model, self.given = model, []

    def step(self, lr, grad_scale=1.0):
        self.given.append((lr, grad_scale))
        self.model.flat.data -= lr * np.sign(self.model.flat.grad)


def test_batches_and_an_optimiser_of_ones_own_take_the_place_of_npgpts():
    config  = TrainConfig(**tiny.SETTINGS | {"dtype": "float64", "dropout": 0.0})
    model   = GPT(config.model(11), 0, dtype="float64")
    trainer = Trainer(config, model, Counting(), Counting())
    trainer.optimizer = SignDescent(model)
    losses = [trainer.update(1).loss for _ in range(3)]
    assert losses[2] < losses[1] < losses[0] and len(trainer.optimizer.given) == 3
    own = [float(model.loss(*Counting().at(n)[:2])[0]) for n in (1, 3)]
    assert trainer.evaluate() == pytest.approx(sum(own) / 2, rel=1e-12)


@pytest.mark.parametrize(("kind", "data"), [(Batches, np.arange(700) % 11), (ExampleBatches, examples())],
                         ids=["tokens", "examples"])
def test_the_seed_draws_the_batches(kind, data):
    config  = TrainConfig(**tiny.SETTINGS | {"seed": 5})
    trainer = Trainer(config, GPT(config.model(11)), data, data)
    assert np.array_equal(trainer.batches.at(1).tokens, kind(data, 8, 6, seed=5).at(1).tokens)


class Steps(TrainConfig):
    """A schedule of one's own."""

    def rate(self, step):
        return 0.25 / (1 + step)


def test_a_schedule_of_ones_own_takes_the_place_of_npgpts():
    config  = Steps(**tiny.SETTINGS | {"dtype": "float64"})
    model   = GPT(config.model(11), 0, dtype="float64")
    trainer = Trainer(config, model, Counting(), Counting())
    trainer.optimizer = SignDescent(model)
    assert [trainer.update(step).lr for step in (1, 4)] == [0.125, 0.05]
    assert [lr for lr, _ in trainer.optimizer.given] == [0.125, 0.05]


@pytest.mark.parametrize(("data", "told"), [
    (iter([]), "a list_iterator"), ([0, 1, 2] * 9, "a list"), (None, "a NoneType"),
    (np.zeros((9, 9), int), r"int64 of shape \(9, 9\)"), (np.zeros(99), r"float64 of shape \(99,\)"),
    (SimpleNamespace(at=None), "a SimpleNamespace")])
def test_what_are_no_tokens_and_makes_no_batches_is_told(data, told):
    config = TrainConfig(**tiny.SETTINGS)
    with pytest.raises(DataError, match=rf"by at\(step\) and evaluation\(.*\), and not be {told}$"):
        Trainer(config, GPT(config.model(11)), data, data)


def test_what_is_no_configuration_no_model_and_no_step_is_told():
    config, tokens = TrainConfig(**tiny.SETTINGS), np.arange(99) % 11
    model = GPT(config.model(11))
    for wrong in (model.config, None):
        with pytest.raises(ConfigError, match=f"takes a TrainConfig, and not a {type(wrong).__name__}"):
            Trainer(wrong, model, tokens, tokens)
    with pytest.raises(ConfigError, match="takes a model, initialised, and not a GPTConfig"):
        Trainer(config, model.config, tokens, tokens)
    before = model.flat.data.copy()
    for step in (-1, 1.5, None):
        with pytest.raises(ConfigError, match=f"step must be a whole number, at least 0, not {step}"):
            Trainer(config, model, tokens, tokens).update(step)
    assert np.array_equal(model.flat.data, before)


@pytest.mark.parametrize("batches", [[], [Batch(np.zeros((2, 8), int), np.full((2, 8), -100))]])
def test_an_evaluation_without_a_target_that_counts_is_told(batches):
    class Nothing(Counting):
        def evaluation(self, batch_size, max_batches):
            return iter(batches)
    config = TrainConfig(**tiny.SETTINGS)
    with pytest.raises(DataError, match="no target that counts"):
        Trainer(config, GPT(config.model(11)), Nothing(), Nothing()).evaluate()


@pytest.mark.parametrize(("dtype", "scale"), [("float16", 2.0**16), ("bfloat16", 1.0), ("float32", 1.0)])
def test_the_loss_is_scaled_as_the_model_needs_it_whatever_the_settings_say(monkeypatch, dtype, scale):
    strict_cupy.install(monkeypatch)
    config = TrainConfig(**tiny.SETTINGS)
    trainer = Trainer(config, GPT(config.model(11), 0, "cuda", dtype), Counting(), Counting())
    assert trainer.scale.value == scale


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


def test_an_evaluation_has_so_many_batches_at_most():
    trainer, sizes = trainer_on_random_tokens(eval_iters=2), []
    loss = trainer.model.loss
    trainer.model.loss = lambda tokens, *others: sizes.append(len(tokens)) or loss(tokens, *others)
    trainer.evaluate()
    assert sizes == [3, 3]


@pytest.mark.parametrize("packing, read", [(True, 36), (False, 18)])
def test_examples_share_rows_where_they_may_and_padding_is_no_token_that_is_read(packing, read):
    """Six rows of block_size 8, and examples of which the model reads three tokens."""
    config  = TrainConfig(**tiny.SETTINGS | {"packing": packing})
    trainer = Trainer(config, GPT(config.model(11)), examples(), examples())
    assert trainer.update(0).tokens == read


@pytest.mark.parametrize(("l1", "l2"), [(0.3, 0.7), (0.3, 0.0), (0.0, 0.7)])
def test_penalties_add_their_gradient_on_matrices_only(l1, l2):
    plain, penalised = trainer_on_random_tokens(), trainer_on_random_tokens(l1=l1, l2=l2)
    before = {name: parameter.data.copy() for name, parameter in plain.model.parameters.items()}
    for trainer in (plain, penalised):
        norm = trainer.update(0).norm
        assert norm == pytest.approx(np.linalg.norm(trainer.model.flat.grad), rel=1e-12)
    for name, parameter in penalised.model.parameters.items():
        added = parameter.grad - plain.model.parameters[name].grad
        w, h = before[name], 1e-6
        if w.ndim < 2:
            assert not added.any()
        else:
            place = np.unravel_index(abs(w).argmax(), w.shape)
            above, below = (penalty_forward(w[place] + sign * h, l1, l2)[0] for sign in (1, -1))
            assert abs(added[place] - (above - below) / (2 * h)) < 1e-8


def test_updates_are_clip_then_adamw_at_the_scheduled_rate():
    settings = {"grad_clip": 0.01, "beta1": 0.8, "beta2": 0.95, "weight_decay": 0.3}
    trainer, other = trainer_on_random_tokens(**settings), trainer_on_random_tokens(**settings)
    optimizer = AdamW(other.model, betas=(0.8, 0.95), weight_decay=0.3)
    assert trainer.optimizer.seed == trainer.config.seed
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
    assert trainer_on_random_tokens(min_lr=0.0).update(20).lr == 0


def test_a_norm_limit_of_zero_leaves_gradients_unclipped():
    for limit, longest in (1e-9, 1e-9), (0.0, math.inf):
        trainer = trainer_on_random_tokens(grad_clip=limit, l2=20.0)
        norm    = trainer.update(0).norm
        assert norm > 1
        assert np.linalg.norm(trainer.optimizer.exp_avg) == pytest.approx(0.1 * min(norm, longest), rel=1e-5)


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


@pytest.mark.parametrize("what", ["the loss is inf", "NaN or Inf in the gradient of h.0.mlp.c_fc.bias"])
def test_a_loss_or_gradient_that_is_not_finite_is_named_and_nothing_is_updated(monkeypatch, what):
    trainer = trainer_on_random_tokens()
    loss_and_gradients = trainer.loss_and_gradients

    def poisoned(*arguments):
        loss = loss_and_gradients(*arguments)
        if "loss" in what:
            return loss * math.inf
        trainer.model.parameters["h.0.mlp.c_fc.bias"].grad[2] = math.nan
        return loss

    monkeypatch.setattr(trainer, "loss_and_gradients", poisoned)
    if "loss" in what:
        trainer.scale = LossScale("float16")               # a smaller one would not help
    before = trainer.model.flat.data.copy()
    found = trainer.update(0)
    assert math.isfinite(found.norm if "loss" in what else found.loss) and not found.again
    assert trainer.name_non_finite(found) == what
    np.testing.assert_array_equal(trainer.model.flat.data, before)


def test_a_gradient_in_another_ranks_part_is_named_as_well(monkeypatch):
    trainer = trainer_on_random_tokens()
    found   = trainer.update(0)._replace(norm=math.inf)
    assert trainer.name_non_finite(found) == "the norm of the gradients is inf"
    grad    = trainer.model.parameters["h.1.mlp.c_fc.weight"].grad
    monkeypatch.setattr(trainer.ranks, "all_gather", lambda flat: grad.__setitem__((1, 2), math.inf))
    assert trainer.name_non_finite(found) == "NaN or Inf in the gradient of h.1.mlp.c_fc.weight"
    trainer.model.freeze(lambda name: name.startswith("h.0."))                # the others have none
    assert trainer.name_non_finite(found) == "the norm of the gradients is inf"


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
