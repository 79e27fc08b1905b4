"""AdamW and clipping over flat parameters, and the schedule of the learning rate."""

import math

import numpy as np
import pytest

from npgpt.errors import ConfigError
from npgpt.layers import Linear, Module, add_lora
from npgpt.models import GPT, GPTConfig
from npgpt.training.optimizer import AdamW, clip_grad_norm
from npgpt.training.schedule import learning_rate

CONFIG = GPTConfig(vocab_size=11, block_size=6, n_layer=2, n_head=2, n_embd=8)


def model_with_gradients(seed=0, scale=1.0):
    model = GPT(CONFIG, seed=3, dtype="float64")
    model.flat.grad[...] = np.random.default_rng(seed).standard_normal(model.flat.size) * scale
    return model


def test_six_clipped_updates_equal_pytorchs():
    """Decay on matrices only; the norm is sometimes above and sometimes below the limit."""
    torch = pytest.importorskip("torch")
    model = model_with_gradients()
    theirs = {name: torch.nn.Parameter(torch.tensor(p.data)) for name, p in model.parameters.items()}
    ours = AdamW(model, lr=1e-2, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    matrices = [p for p in theirs.values() if p.ndim >= 2]
    vectors = [p for p in theirs.values() if p.ndim < 2]
    oracle = torch.optim.AdamW([{"params": matrices, "weight_decay": 0.1},
                                {"params": vectors, "weight_decay": 0.0}],
                               lr=1e-2, betas=(0.9, 0.95), eps=1e-8)
    for step, scale in enumerate([1.0, 1e-3, 5.0, 1e-8, 1e3, 0.03]):
        model.flat.grad[...] = np.random.default_rng(step).standard_normal(model.flat.size) * scale
        for name, parameter in theirs.items():
            parameter.grad = torch.tensor(model.parameters[name].grad)
        lr = 1e-2 / (step + 1)
        for group in oracle.param_groups:
            group["lr"] = lr
        norm = torch.nn.utils.clip_grad_norm_(list(theirs.values()), 1.0)
        assert abs(clip_grad_norm(model, 1.0) - norm) <= 1e-12 * norm
        oracle.step()
        ours.step(lr=lr)
        for name, parameter in theirs.items():
            assert abs(model.parameters[name].data - parameter.detach().numpy()).max() <= 1e-12, (step, name)


def test_vectors_are_not_decayed_and_matrices_are():
    model = model_with_gradients(scale=0.0)
    before = {name: parameter.data.copy() for name, parameter in model.parameters.items()}
    AdamW(model, weight_decay=0.5).step(lr=0.1)
    for name, parameter in model.parameters.items():
        factor = 0.95 if parameter.data.ndim >= 2 else 1.0
        np.testing.assert_allclose(parameter.data, before[name] * factor, rtol=1e-14, atol=0)


def test_at_a_rate_of_0_nothing_is_updated_and_by_default_it_is_the_optimisers():
    model  = model_with_gradients()
    before = model.flat.data.copy()
    AdamW(model, lr=0.1).step(lr=0.0)
    assert np.array_equal(model.flat.data, before)
    AdamW(model, lr=0.1).step()
    assert abs(model.flat.data - before).max() == pytest.approx(0.1, rel=0.1)


def test_the_numbers_where_nobody_says():
    optimizer = AdamW(model_with_gradients())
    assert (optimizer.lr, optimizer.betas, optimizer.eps, optimizer.weight_decay) == (
        1e-3, (0.9, 0.95), 1e-8, 0.1)


def test_clipping_scales_long_gradients_and_leaves_short_ones():
    model = model_with_gradients()
    before = model.flat.grad.copy()
    assert clip_grad_norm(model, 1e6) == pytest.approx(np.linalg.norm(before), rel=1e-12)
    np.testing.assert_array_equal(model.flat.grad, before)
    norm = clip_grad_norm(model, 0.5)
    np.testing.assert_allclose(model.flat.grad, before * (0.5 / (norm + 1e-6)), rtol=1e-14)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_norm_that_is_not_finite_is_told_and_touches_nothing(value):
    model = model_with_gradients()
    model.parameters["h.1.mlp.c_fc.weight"].grad[2, 3] = value
    before = model.flat.grad.copy()
    assert not math.isfinite(clip_grad_norm(model, 1.0))
    np.testing.assert_array_equal(model.flat.grad, before)


@pytest.mark.parametrize("settings", [
    {"lr": -1e-2}, {"lr": math.nan}, {"lr": math.inf}, {"betas": (0.9, 1.0)}, {"betas": (1.0, 0.9)},
    {"betas": (-0.1, 0.9)}, {"eps": -1e-8}, {"weight_decay": -0.1}])
def test_numbers_that_cannot_be_are_refused_as_pytorch_refuses_them(settings):
    name, = settings
    with pytest.raises(ConfigError, match=rf"^{name}(\[\d\])? must be at least 0 and (finite|below 1), not"):
        AdamW(model_with_gradients(), **settings)
    AdamW(model_with_gradients(), lr=0, betas=(0, 0), eps=0, weight_decay=0)


@pytest.mark.parametrize("wrong", ["1e-3", None, np.array([1.0, 2.0])])
def test_what_is_no_number_is_refused_by_name(wrong):
    with pytest.raises(ConfigError, match="^lr must be a number, not "):
        AdamW(model_with_gradients(), lr=wrong)
    with pytest.raises(ConfigError, match="^max_norm must be a number, not "):
        clip_grad_norm(model_with_gradients(), wrong)


@pytest.mark.parametrize("wrong", [0.9, None, (0.9,), (0.9, 0.99, 0.999), "ab"])
def test_betas_are_two_numbers(wrong):
    with pytest.raises(ConfigError, match="^betas must be two numbers"):
        AdamW(model_with_gradients(), betas=wrong)


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -1e-3, "1e-3"])
def test_a_rate_of_a_step_that_cannot_be_changes_nothing(wrong):
    model  = model_with_gradients()
    before = model.flat.data.copy()
    with pytest.raises(ConfigError, match="^lr must be "):
        (optimizer := AdamW(model)).step(lr=wrong)
    assert np.array_equal(model.flat.data, before) and optimizer.updates == 0


def test_a_number_of_numpys_is_one_and_gradients_are_not_clipped_the_wrong_way_round():
    AdamW(model_with_gradients(), lr=np.float32(1e-3))     # compared as it is, not the bounds as float32
    clip_grad_norm(model_with_gradients(), math.inf)       # measures alone
    with pytest.raises(ConfigError, match="max_norm must be at least 0, not -1"):
        clip_grad_norm(model_with_gradients(), -1)


def test_what_is_no_model_is_refused():
    model = model_with_gradients()
    for function in (AdamW, lambda wrong: clip_grad_norm(wrong, 1.0)):
        with pytest.raises(ConfigError, match="takes a model, initialised, and not a dict$"):
            function(model.parameters)
        with pytest.raises(ConfigError, match="and not a Linear that is not$"):
            function(Linear(2, 3))
    with pytest.raises(ConfigError, match="has no parameter that is learned"):
        AdamW(Module().initialise())


@pytest.mark.parametrize("change", [lambda model: model.freeze(lambda name: name.startswith("h.1.")),
                                    lambda model: add_lora(model, 2, 4.0, ("c_attn",))])
def test_an_optimiser_that_does_not_know_what_is_learned_refuses_to_step(change):
    model = model_with_gradients()
    optimizer = AdamW(model)
    change(model)
    with pytest.raises(ConfigError, match="the optimiser is older than what was frozen"):
        optimizer.step()
    before = model.flat.data.copy()
    model.flat.grad[...] = 1
    AdamW(model, lr=0.1).step()
    assert (model.flat.data != before).all()


def test_an_optimiser_of_a_model_that_has_become_a_part_of_a_larger_one_refuses_to_step():
    model = model_with_gradients()
    optimizer, larger = AdamW(model), Module()
    larger.model = model
    larger.initialise()
    with pytest.raises(ConfigError, match="the optimiser is older than what was .* initialised"):
        optimizer.step()
    AdamW(larger).step()


def test_gradients_never_written_count_as_zero():
    model = model_with_gradients()
    model.zero_grad()
    assert clip_grad_norm(model, 1.0) == 0 and not model.flat.grad.any()


def test_the_state_is_named_and_comes_back():
    ours, other = (AdamW(model_with_gradients()) for _ in range(2))
    ours.step()
    ours.step()
    state = {name: array.copy() for name, array in ours.state().items()}
    assert state.keys() == {f"{kind}.{name}" for kind in ("exp_avg", "exp_avg_sq")    # and no second weights
                            for name in ours.model.parameters}
    other.load_state(state, ours.updates)
    assert other.updates == 2
    np.testing.assert_array_equal(other.exp_avg, ours.exp_avg)
    np.testing.assert_array_equal(other.exp_avg_sq, ours.exp_avg_sq)


def test_the_learning_rate_is_nanogpts():
    """Its get_lr, written as cases."""
    def rate(step):
        return learning_rate(step, 1e-3, warmup_iters=100, decay_iters=2000, min_lr=1e-4)

    assert rate(0) == pytest.approx(1e-3 / 101)
    assert rate(99) == pytest.approx(1e-3 * 100 / 101)
    assert rate(100) == pytest.approx(1e-3)
    assert rate(1050) == pytest.approx((1e-3 + 1e-4) / 2)
    assert rate(575) == pytest.approx(1e-4 + 0.5 * (1 + math.cos(math.pi / 4)) * 9e-4)
    assert rate(1999) == pytest.approx(1e-4, rel=1e-4) and rate(1999) > 1e-4
    assert rate(2000) == rate(5000) == 1e-4
    assert learning_rate(0, 1.0, 0, 0, 0.5) == 0.5
