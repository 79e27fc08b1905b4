"""Frozen parameters: what is not learned stays as it is, costs no gradient, and the rest learns as before."""

from unittest import mock

import numpy as np
import pytest
from small_gpt import KEY, LLAMA, gpt, gradients, same_arrays, tokens

from npgpt import GPT, AdamW, check_gradients, clip_grad_norm, layers, ops
from npgpt.errors import ConfigError
from npgpt.training.communication import run_on_threads
from npgpt.training.config import TrainConfig
from npgpt.training.trainer import Trainer

CHOICES = {
    "the last block": lambda name: name.startswith("h.2."),
    "a block in the middle, and the last norm": lambda name: name.startswith(("h.1.", "ln_f")),
    "the first block": lambda name: name.startswith("h.0."),
    "one matrix": lambda name: name == "h.1.attn.c_proj.weight",
    "biases": lambda name: name.endswith(".bias"),
    "all but the biases": lambda name: not name.endswith(".bias"),
    "the token embedding, the head's too": lambda name: name == "wte.weight",
    "the places": lambda name: name == "wpe.weight",
    "the last norm": lambda name: name.startswith("ln_f"),
    "all but the token embedding": lambda name: name != "wte.weight",
    "everything": lambda name: True,
}
MODELS = {"GPT-2": {}, "checkpointed": {"gradient_checkpointing": True}, "post-norm": {"block": "post"},
          "parallel, capped": {"block": "parallel", "logit_softcap": 2.0}}


@pytest.mark.parametrize(("choice", "options"), [
    (choice, options) for choice in CHOICES for options in MODELS
    if (choice, options) != ("the last norm", "post-norm")])                 # it has none
def test_what_is_learned_gets_the_gradient_that_it_gets_when_all_is(choice, options):
    model = gpt(**MODELS[options])
    expected, trained = gradients(model), CHOICES[choice]
    model.freeze(trained)
    actual = gradients(model)
    assert set(actual) == set(filter(trained, expected))
    for name, gradient in actual.items():
        assert np.array_equal(gradient, expected[name]) and gradient.any(), name


@pytest.mark.parametrize("choice", [lambda name: name == "lm_head.weight", lambda name: "lm_head" not in name,
                                    lambda name: name.startswith(("h.2", "lm_head"))])
def test_a_head_of_its_own_is_learned_or_frozen(choice):
    model = gpt(**LLAMA, n_kv_head=1)
    expected = gradients(model)
    model.freeze(choice)
    actual = gradients(model)
    assert set(actual) == set(filter(choice, expected))
    assert all(np.array_equal(gradient, expected[name]) for name, gradient in actual.items())


@pytest.mark.parametrize("choice", ["the last block", "one matrix", "biases", "the places"])
def test_gradients_are_right(choice):
    model = gpt()
    model.freeze(CHOICES[choice])
    check_gradients(lambda: model.loss(tokens(), tokens(1), KEY),
                    lambda dy, saved: model.backward(saved, dy), parameters=model.flat.parameters)


def test_flat_holds_what_is_learned_and_the_rest_stays_where_it_is():
    model = gpt()
    before = {name: (parameter.data, parameter.data.copy()) for name, parameter in model.parameters.items()}
    gradients(model)
    model.freeze(CHOICES["the last block"])
    assert model.parameters.keys() == before.keys()
    assert model.flat.parameters.keys() == {name for name in before if name.startswith("h.2.")}
    assert model.flat.size == sum(p.data.size for p in model.flat.parameters.values()) == 872
    assert model.flat.decayed == 8 * 24 + 8 * 8 + 2 * 8 * 32
    assert not model.flat.grad.any()
    for name, parameter in model.parameters.items():
        array, values = before[name]
        assert np.array_equal(parameter.data, values), name
        assert parameter.frozen is (not name.startswith("h.2.")), name
        assert (parameter.data is array) is parameter.frozen, name
        assert np.shares_memory(parameter.data, model.flat.data) is not parameter.frozen, name


def test_a_frozen_parameter_has_no_gradient_memory_and_reads_as_zeros():
    model = gpt()
    model.freeze(CHOICES["the last block"])
    gradients(model)
    frozen = model.parameters["h.0.attn.c_attn.weight"]
    assert frozen._grad is None and frozen.unwritten_grad is None
    frozen.add_grad(np.ones(frozen.shape))
    assert frozen.grad.shape == frozen.shape and frozen.grad.dtype == frozen.data.dtype
    assert not frozen.grad.any() and frozen.grad.strides == (0, 0)
    with pytest.raises(ValueError, match="read-only"):
        frozen.grad[...] = 1
    model.zero_grad()
    assert not frozen.grad.any() and frozen._grad is None


def test_optimiser_and_clipping_move_what_is_learned_alone():
    model = gpt()
    model.freeze(CHOICES["a block in the middle, and the last norm"])
    before = {name: parameter.data.copy() for name, parameter in model.parameters.items()}
    optimizer, own = AdamW(model, 1e-2), gradients(model)
    norm = clip_grad_norm(model, 1e-3)
    assert np.isclose(norm, np.sqrt(sum((gradient**2).sum() for gradient in own.values())), rtol=1e-12)
    optimizer.step()
    for name, parameter in model.parameters.items():
        assert np.array_equal(parameter.data, before[name]) is parameter.frozen, name
    assert set(optimizer.state()) == {f"{kind}.{name}" for kind in ("exp_avg", "exp_avg_sq") for name in own}


def test_freezing_again_decides_anew():
    model = gpt()
    expected = gradients(model)
    model.freeze(CHOICES["the last block"])
    model.freeze(CHOICES["one matrix"])
    assert list(gradients(model)) == ["h.1.attn.c_proj.weight"]
    model.freeze(lambda name: True)
    assert model.flat.size == gpt().flat.size and list(model.flat.parameters) == list(gpt().flat.parameters)
    assert not any(parameter.frozen for parameter in model.parameters.values())
    again = gradients(model)
    assert all(np.array_equal(again[name], expected[name]) for name in expected)


def test_nothing_to_learn_is_refused_and_changes_nothing():
    model = gpt()
    flat = model.flat
    with pytest.raises(ConfigError, match="nothing would be learned: all 40 parameters"):
        model.freeze(lambda name: name.startswith("h.3."))
    with pytest.raises(ConfigError, match=r"freeze takes a function, true of .* and not 'h\.2\.\*'"):
        model.freeze("h.2.*")                                # what is to be frozen, or to learn?
    assert model.flat is flat and not model.parameters["wte.weight"].frozen


# ---- what is saved ----

def test_backward_goes_no_further_down_than_something_learns():
    model = gpt()
    model.freeze(lambda name: name.startswith(("h.1.mlp.", "ln_f")))
    _, (_, body, _) = model.loss(tokens(), tokens(1), KEY)
    embedded, blocks, *_ = body
    assert embedded is blocks[0] is None and blocks[1] and blocks[2]
    called = mock.Mock(side_effect=AssertionError)
    model.h[0].backward = model.drop.backward = model.wte.backward = model.wpe.backward = called
    assert gradients(model)["h.1.mlp.c_fc.weight"].any()
    model.freeze(CHOICES["the last norm"])
    _, (_, body, _) = model.loss(tokens(), tokens(1), KEY)
    assert body[0] is None and body[1] == [None] * 3


@pytest.mark.parametrize("learned", [(True, True), (True, False), (False, True), (False, False)])
def test_a_linear_map_makes_no_gradient_that_nobody_wants(learned):
    linear = layers.Linear(3, 4).initialise(dtype="float64")
    random = np.random.default_rng(0)
    x, dy = random.standard_normal((2, 5, 3)), random.standard_normal((2, 5, 4))
    _, saved = linear.forward(x)
    expected = ops.linear_backward(dy, saved)
    if any(learned):
        linear.freeze(lambda name: learned[name == "bias"])
    else:
        linear.weight._frozen = linear.bias._frozen = True
    returned = []
    with mock.patch("npgpt.layers.linear.linear_backward",
                    lambda *arguments: returned.append(ops.linear_backward(*arguments)) or returned[0]):
        dx = linear.backward(dy, saved)
    assert np.array_equal(dx, expected[0])
    for gradient, wanted, full, parameter in zip(returned[0][1:], learned, expected[1:],
                                                 (linear.weight, linear.bias), strict=True):
        assert (gradient is not None) is wanted
        assert np.array_equal(parameter.grad, full if wanted else 0 * full)


@pytest.mark.parametrize("rows", [None, 4])
def test_a_frozen_head_makes_dx_alone(rows):
    random = np.random.default_rng(0)
    x, weight = random.standard_normal((2, 5, 3)), random.standard_normal((7, 3))
    targets   = np.where(random.random((2, 5)) < 0.2, -100, tokens(0, 2, 5) % 7)
    _, saved = ops.linear_cross_entropy_forward(x, weight, targets, rows=rows)
    expected, _ = ops.linear_cross_entropy_backward(0.7, saved)
    dx, dweight = ops.linear_cross_entropy_backward(0.7, saved, learned=False)
    assert dweight is None and np.array_equal(dx, expected)


def test_the_frozen_head_of_a_model_makes_dx_alone():
    model = gpt()
    model.freeze(CHOICES["the last block"])
    with mock.patch("npgpt.layers.head.linear_cross_entropy_backward") as op:
        op.return_value = np.zeros((3, 6, 8)), None
        gradients(model)
    assert op.call_args.args[2:] == (None, False)


# ---- replicas ----

@pytest.mark.parametrize("choice", ["everything", "the last block"])
@pytest.mark.parametrize("options", MODELS)
def test_a_replica_shares_all_parameters_and_has_gradients_of_its_own(choice, options):
    model = gpt(**MODELS[options])
    model.freeze(CHOICES[choice])
    expected = gradients(model)
    replica = model.replica()
    assert type(replica) is GPT and replica.config == model.config and same_arrays(model, replica)
    assert replica.flat.data is model.flat.data
    assert list(replica.flat.parameters) == list(model.flat.parameters)
    assert all(parameter.frozen is model.parameters[name].frozen
               for name, parameter in replica.parameters.items())
    assert not {map(id, replica.parameters.values())} & {map(id, model.parameters.values())}
    other = gradients(replica, targets=tokens(2))
    for name, gradient in expected.items():
        assert np.array_equal(model.parameters[name].grad, gradient), name
        assert not np.array_equal(other[name], gradient), name
    model.parameters["h.2.ln_1.weight"].data[...] = 3
    assert (replica.parameters["h.2.ln_1.weight"].data == 3).all()


@pytest.mark.parametrize("choice", ["everything", "the last block"])
def test_a_replicas_gradients_join_the_models_when_they_are_settled(choice):
    model = gpt()
    model.freeze(CHOICES[choice])
    replica = model.replica()
    expected, other = gradients(model), gradients(replica, targets=tokens(2))
    block = {name for name in expected if name.startswith("h.2.")}

    def check(names):
        for name, place in model.flat.views(model.flat.grad).items():
            assert np.array_equal(place, expected[name] + other[name] * (name in names)), name
            assert (replica.parameters[name]._grad is None) is (name in names), name

    assert replica.flat.grad is model.flat.grad            # and asking for it settles nothing
    check(set())
    for stretch in (found := replica.flat.settle(replica.h[2])):
        assert stretch[0] is model.flat._grad
    assert sum(stretch.stop - stretch.start for _, stretch in found) == sum(expected[n].size for n in block)
    check(block)
    replica.flat.settle()
    replica.flat.settle()                                  # what has been added is not there any more
    check(set(expected))
    assert not any(replica.parameters[name].grad.any() for name in expected)
    again = gradients(replica, targets=tokens(2))
    assert all(np.array_equal(again[name], other[name]) for name in other)


def test_a_replica_adds_up_what_several_backwards_gave():
    model   = gpt()
    replica = model.replica()
    once    = gradients(replica)
    _, saved = replica.loss(tokens(), tokens(1), KEY)
    replica.backward(saved)
    model.zero_grad()
    assert not model.flat.grad.any()
    replica.flat.settle()
    for name, place in model.flat.views(model.flat.grad).items():
        assert np.allclose(place, 2 * once[name], rtol=1e-14, atol=1e-16), name


def test_a_replica_of_a_tied_model_is_tied():
    replica = gpt().replica()
    assert replica.lm_head.weight is replica.wte.weight and "lm_head.weight" not in replica.parameters


@pytest.mark.parametrize("choice", ["everything", "a block in the middle, and the last norm"])
def test_ranks_on_threads_train_what_is_learned(choice):
    config = TrainConfig(block_size=6, batch_size=4, n_layer=3, n_head=2, n_embd=8, max_iters=9,
                         learning_rate=1e-2, dropout=0.2)
    text = np.random.default_rng(5).integers(0, 13, 300)

    def trained(size):
        model = gpt()
        model.freeze(CHOICES[choice])

        def work(ranks):
            trainer = Trainer(config, model.replica() if ranks.rank else model, text, text, ranks)
            return [trainer.update(step).loss for step in range(4)]
        return run_on_threads(size, work), {name: p.data.copy() for name, p in model.parameters.items()}

    (losses, alone), (other_losses, together) = trained(1), trained(2)
    assert np.allclose(losses, other_losses, rtol=1e-12) and losses[3] != losses[0]
    start = gpt().parameters
    for name in alone:
        assert np.allclose(alone[name], together[name], rtol=0, atol=1e-9), name
        assert np.array_equal(alone[name], start[name].data) is not CHOICES[choice](name), name


def test_what_is_learned_is_not_said_of_a_parameter_by_itself():
    """As in PyTorch, which was passed over; and frozen by hand one went on by the gradient it had before."""
    model = gpt()
    model.freeze(CHOICES["the last norm"])
    learned, frozen = model.parameters["ln_f.weight"], model.parameters["wte.weight"]
    assert learned.requires_grad and not frozen.requires_grad
    for wrong in (lambda: setattr(learned, "requires_grad", False), lambda: setattr(learned, "frozen", True),
                  lambda: setattr(frozen, "requires_grad", True)):
        with pytest.raises(ConfigError, match=r"model.freeze\(lambda name: …\), true of the names of those"):
            wrong()
    learned.requires_grad, frozen.frozen = True, True                        # as they are
    assert not learned.frozen and frozen.frozen
