"""Models that are copied, and models that others are built on, are models as others: they learn."""

import copy
import dataclasses
import pickle

import numpy as np
import pytest

import npgpt
from npgpt.errors import ConfigError, DataError
from npgpt.layers import Linear, add_lora
from npgpt.layers.module import Module, Parameter
from npgpt.models import GPT, GPTConfig

CONFIG = GPTConfig(vocab_size=17, block_size=8, n_layer=2, n_head=2, n_embd=8)
TOKENS, TARGETS = np.random.default_rng(0).integers(0, 17, (2, 3, 8))


def trained(model):
    """The losses of three steps."""
    optimizer, losses = npgpt.AdamW(model, lr=1e-2), []
    for _ in range(3):
        model.zero_grad()
        loss, saved = model.loss(TOKENS, TARGETS)
        model.backward(saved)
        assert npgpt.clip_grad_norm(model, 1.0) > 0
        optimizer.step()
        losses.append(float(loss))
    return losses


class Probe(Module):
    """A head of its own on a GPT; one on a list, one in a dict, and one used twice."""

    def __init__(self, body):
        self.body, self.head = body, Linear(8, 3)
        self.more = {"a": Linear(8, 8), "b": [[Linear(8, 8)]]}

    def forward(self, tokens):
        x, s = self.body.body_forward(tokens)
        h, s1 = self.more["a"].forward(x)
        h, s2 = self.more["b"][0][0].forward(h)
        y, s3 = self.head.forward(h)
        return y, (s, s1, s2, s3)

    def backward(self, dy, saved):
        s, s1, s2, s3 = saved
        dh = self.more["b"][0][0].backward(self.head.backward(dy, s3), s2)
        self.body.body_backward(self.more["a"].backward(dh, s1), s)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
@pytest.mark.parametrize("change", [None, "frozen", "lora"])
def test_a_copy_learns_as_the_first_does_and_leaves_that_alone(copied, change):
    model = GPT(CONFIG)
    if change == "frozen":
        model.freeze(lambda name: name.startswith("h.1."))
    elif change == "lora":
        add_lora(model, 2, 4.0, ("c_attn",))
    loss, saved = model.loss(TOKENS, TARGETS)
    model.backward(saved)
    other = copied(model)
    assert np.array_equal(other.flat.grad, model.flat.grad) and model.flat.grad.any()
    before = {name: parameter.data.copy() for name, parameter in model.parameters.items()}
    losses = trained(other)
    assert losses[2] < losses[0] == loss
    assert all(np.array_equal(before[name], parameter.data) for name, parameter in model.parameters.items())
    assert trained(model) == losses
    other.zero_grad()
    assert not other.flat.grad.any()
    for parameter in other.flat.parameters.values():
        assert np.shares_memory(parameter.data, other.flat.data)


def test_what_is_assigned_to_a_parameter_is_written_into_its_place():
    model = GPT(CONFIG)
    place = model.parameters["wte.weight"].data
    model.parameters["wte.weight"].data = np.ones((17, 8))
    assert model.parameters["wte.weight"].data is place and (place == 1).all()
    assert (model.flat.data[:17 * 8] == 1).all()
    with pytest.raises(ValueError):
        model.parameters["wte.weight"].data = np.ones((17, 9))


def test_a_gradient_is_changed_in_its_place_and_no_other_is_put_there():
    layer = Linear(3, 2).initialise()
    layer.weight.add_grad(np.ones((3, 2), "float32"))
    layer.weight.grad *= 3
    layer.weight.grad += 1
    assert (layer.flat.grad[:6] == 4).all()
    with pytest.raises(ConfigError, match=r"in a layer's backward add to it by add_grad"):
        layer.weight.grad = np.ones((3, 2), "float32")
    assert (layer.flat.grad[:6] == 4).all()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_what_is_built_on_a_model_keeps_its_values_and_learns_with_it(dtype):
    body   = GPT(CONFIG, seed=5)
    before = {name: parameter.data.copy() for name, parameter in body.parameters.items()}
    probe  = Probe(body).initialise(seed=1, dtype=dtype)
    assert {"head.weight", "more.a.bias", "more.b.0.0.weight", "body.wte.weight"} <= probe.parameters.keys()
    for name, values in before.items():
        assert np.array_equal(probe.parameters[f"body.{name}"].data, values), name
    fresh = Linear(8, 3).initialise(seed=1)
    assert probe.head.weight.data.std() == pytest.approx(fresh.weight.data.std(), rel=0.5)
    again = {name: parameter.data.copy() for name, parameter in probe.parameters.items()}
    probe.initialise(seed=2, dtype=dtype)
    assert all(np.array_equal(again[name], parameter.data) for name, parameter in probe.parameters.items())
    optimizer = npgpt.AdamW(probe, lr=0.1)
    y, saved  = probe.forward(TOKENS)
    probe.backward(np.ones_like(y), saved)
    optimizer.step()
    for name, parameter in probe.parameters.items():
        changed = not np.array_equal(parameter.data, again[name])
        assert changed or not parameter.grad.any(), name
    assert not np.array_equal(probe.body.h[0].attn.c_attn.weight.data, before["h.0.attn.c_attn.weight"])
    if dtype == "float64":
        npgpt.check_gradients(lambda: probe.forward(TOKENS), lambda dy, saved: probe.backward(dy, saved),
                              parameters={name: p for name, p in probe.parameters.items() if "head" in name
                                          or "more" in name or "ln_f" in name})


@pytest.mark.parametrize("checkpointed", [False, True])
def test_every_module_comes_once_with_its_first_name_before_its_parts(checkpointed):
    probe = Probe(GPT(dataclasses.replace(CONFIG, gradient_checkpointing=checkpointed)))
    probe.again, probe.pair = probe.body.h[1].mlp, (probe.more["a"], Linear(1, 1))
    in_block = ["", ".ln_1", ".attn", ".attn.c_attn", ".attn.c_proj", ".attn.dropout", ".ln_2", ".mlp",
                ".mlp.c_fc", ".mlp.c_proj", ".mlp.dropout"]
    assert [name for name, _ in probe.named_modules()] == [
        "", "body", "body.wte", "body.wpe", "body.drop",
        *(f"body.h.{n}{name}" for n in range(2) for name in in_block), "body.ln_f", "body.lm_head", "head",
        "more.a", "more.b.0.0", "pair.1"]
    modules = dict(probe.named_modules())
    assert modules[""] is probe and modules["more.b.0.0"] is probe.more["b"][0][0]
    assert modules["body.h.1"] is probe.body.h[1] and modules["body.h.1.mlp"] is probe.again
    assert list(probe.parameters) == [f"{name}.{attribute}" for name, module in modules.items()
                                      for attribute, own in vars(module).items() if isinstance(own, Parameter)
                                      if name != "body.lm_head"]
    assert [name for name, parameter in probe.named_parameters() if parameter is probe.more["a"].bias] == \
        ["more.a.bias", "pair.0.bias"]


@pytest.mark.parametrize("call", [Module.zero_grad, lambda m: m.freeze(bool),
                                  lambda m: m.load_state_dict({})])
def test_a_module_without_arrays_of_its_own_says_so(call):
    for module in (Linear(2, 3), GPT(CONFIG).h[0]):
        with pytest.raises(ConfigError, match="has no arrays of its own: initialise"):
            call(module)


def test_an_optimiser_of_what_is_not_the_models_own_is_refused():
    body = GPT(CONFIG)
    Probe(body).initialise()
    with pytest.raises(ConfigError, match="lies in the arrays of a larger module"):
        npgpt.AdamW(body)
    with pytest.raises(ConfigError, match="wte.weight lies in the arrays of a larger module: clip the grad"):
        npgpt.clip_grad_norm(body, 1.0)
    probe = Probe(GPT(CONFIG)).initialise()
    probe.head = Linear(8, 4)
    probe.other = Linear(2, 2)
    with pytest.raises(ConfigError, match=r"other\.(weight|bias) came or went after .* say by freeze\(\)"):
        npgpt.AdamW(probe)

    class Empty(Module):
        pass
    with pytest.raises(ConfigError, match="no parameter that is learned"):
        npgpt.AdamW(Empty().initialise())


def test_a_gradient_of_another_shape_is_refused_at_once():
    layer = Linear(3, 4).initialise()
    with pytest.raises(DataError, match=r"of shape \(4,\) cannot have a gradient of shape \(1, 4\)"):
        layer.bias.add_grad(np.ones((1, 4), np.float32))


def test_what_is_not_saved_is_not_taken_for_it():
    model = GPT(CONFIG)
    loss, _ = model.loss(TOKENS, TARGETS)
    with pytest.raises(DataError, match="backward takes `saved`, the second thing"):
        model.backward(loss)
    assert Parameter(np.int64(3), 4).shape == (3, 4)


class Twice(Module):
    """x + a + b, whose gradients are one array, and that is dy."""

    def __init__(self):
        self.a, self.b = Parameter(3, 4, std=1), Parameter(3, 4, std=1)

    def forward(self, x):
        return x + self.a.data + self.b.data, ()

    def backward(self, dy, saved):
        self.a.add_grad(dy)
        self.b.add_grad(dy)
        return dy


@pytest.mark.parametrize("of", [lambda module: module, Module.replica], ids=["model", "replica"])
def test_one_array_may_be_the_gradient_of_two_parameters_and_stays_as_it_is(of):
    layer = of(Twice().initialise(dtype="float32"))
    dy    = np.random.default_rng(0).standard_normal((3, 4)).astype("float32")
    given = dy.copy()
    for _ in range(3):
        layer.backward(dy, ())
    layer.b.add_grad(given.astype("float64"))
    assert np.array_equal(dy, given)
    np.testing.assert_allclose(layer.a.grad, 3 * given, rtol=1e-6)
    np.testing.assert_allclose(layer.b.grad, 4 * given, rtol=1e-6)
    assert layer.b.grad.dtype == "float32"
