"""LoRA on whole models: it begins as nothing, learns alone, and is merged without a change."""

import math

import numpy as np
import pytest
from small_gpt import CONFIG, KEY, LLAMA, gpt, gradients, same_arrays, tokens

from npgpt import GPT, AdamW, check_gradients, layers
from npgpt.errors import ConfigError
from npgpt.layers import FeedForward, Linear, LoRALinear, Module, add_lora, lora_layers, merge_lora
from npgpt.training.communication import run_on_threads
from npgpt.training.config import TrainConfig
from npgpt.training.trainer import Trainer

ALL = ("c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
MODELS = {"GPT-2": {}, "checkpointed": {"gradient_checkpointing": True},
          "Llama": {**LLAMA, "n_kv_head": 1, "n_inner": 7}, "parallel": {"block": "parallel"}}


def with_lora(targets=ALL, rank=3, alpha=4.5, lively=True, **options):
    """A GPT with LoRA; lively: B is not 0."""
    model = gpt(**options)
    add_lora(model, rank, alpha, targets, seed=5)
    if lively:
        rng = np.random.default_rng(3)
        for layer in lora_layers(model).values():
            layer.lora_B.data[...] = rng.standard_normal(layer.lora_B.shape)
    return model


@pytest.mark.parametrize("options", MODELS)
def test_it_begins_as_the_model_it_is_put_on(options):
    base, model = gpt(**MODELS[options]), with_lora(lively=False, **MODELS[options])
    assert np.array_equal(model.forward(tokens(), KEY)[0], base.forward(tokens(), KEY)[0])
    assert not np.allclose(with_lora(**MODELS[options]).forward(tokens(), KEY)[0],
                           base.forward(tokens(), KEY)[0], atol=0.1)
    for name, parameter in base.parameters.items():
        assert np.array_equal(model.parameters[name].data, parameter.data), name


@pytest.mark.parametrize("options", MODELS)
@pytest.mark.parametrize(("targets", "found"), [
    (("c_attn",), ["attn.c_attn"]), ("attn.c_attn", ["attn.c_attn"]), (("mlp.c_proj",), ["mlp.c_proj"]),
    (("c_proj",), ["attn.c_proj", "mlp.c_proj"]), (("mlp.c_fc", "attn.c_proj"), ["attn.c_proj", "mlp.c_fc"]),
    (ALL, ["attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"])])
def test_it_stands_at_the_named_layers_of_every_block_and_is_learned_alone(targets, found, options):
    model  = with_lora(targets, **MODELS[options])
    places = {f"h.{n}.{name}" for n in range(3) for name in found}
    assert set(lora_layers(model)) == places
    assert set(model.flat.parameters) == {f"{place}.lora_{end}" for place in places for end in "AB"}
    assert set(model.parameters) == set(gpt(**MODELS[options]).parameters) | set(model.flat.parameters)
    assert all(parameter.frozen for name, parameter in model.parameters.items() if "lora" not in name)


def test_shapes_and_initial_values():
    model = GPT(CONFIG)
    add_lora(model, 300, 8, ("c_attn", "mlp.c_proj"), seed=2)
    wide  = model.parameters["h.1.mlp.c_proj.lora_A"].data
    assert wide.shape == (32, 300) and wide.dtype == np.float32
    assert model.parameters["h.1.mlp.c_proj.lora_B"].data.shape == (300, 8)
    assert not model.parameters["h.1.mlp.c_proj.lora_B"].data.any()
    assert abs(wide.std() * math.sqrt(3 * 32) - 1) < 5 / math.sqrt(2 * wide.size)
    assert abs(wide.mean()) < 5 * wide.std() / math.sqrt(wide.size)
    assert not np.allclose(model.parameters["h.0.attn.c_attn.lora_A"].data,
                           model.parameters["h.1.attn.c_attn.lora_A"].data)
    other = GPT(CONFIG)
    add_lora(other, 300, 8, ("mlp.c_proj",), seed=2)
    assert np.array_equal(other.parameters["h.1.mlp.c_proj.lora_A"].data, wide)


@pytest.mark.parametrize("options", MODELS)
def test_gradients_are_right(options):
    model = with_lora(**MODELS[options])
    check_gradients(lambda: model.loss(tokens(), tokens(1), KEY),
                    lambda dy, saved: model.backward(saved, dy), parameters=model.flat.parameters)


@pytest.mark.parametrize("also", [".c_attn.bias", ".c_proj.weight"])
def test_the_weights_and_biases_beside_it_get_their_gradients_where_they_learn(also):
    """As PEFT's bias="lora_only" has it."""
    model = gpt()
    add_lora(model, 3, 4.5, ALL, also=lambda name: name.endswith(also))
    assert any(name.endswith(also) for name in model.flat.parameters)
    check_gradients(lambda: model.loss(tokens(), tokens(1), KEY),
                    lambda dy, saved: model.backward(saved, dy), parameters=model.flat.parameters)


@pytest.mark.parametrize("options", MODELS)
@pytest.mark.parametrize("targets", [ALL, ("c_attn",)])
def test_merged_it_computes_the_same_and_is_a_plain_model(targets, options):
    model = with_lora(targets, **MODELS[options])
    logits, plain = model.forward(tokens(), KEY)[0], gpt(**MODELS[options])
    weights = {name: layer.weight.data + 1.5 * layer.lora_A.data @ layer.lora_B.data
               for name, layer in lora_layers(model).items()}
    merge_lora(model)
    np.testing.assert_allclose(model.forward(tokens(), KEY)[0], logits, rtol=0, atol=1e-11)
    assert not lora_layers(model) and list(model.parameters) == list(plain.parameters)
    assert list(model.flat.parameters) == list(plain.flat.parameters)
    assert not any(parameter.frozen for parameter in model.parameters.values())
    for name, parameter in plain.parameters.items():
        expected = weights.get(name.removesuffix(".weight"), parameter.data)
        np.testing.assert_allclose(model.parameters[name].data, expected, rtol=0, atol=1e-14)
    plain.flat.data[...] = model.flat.data
    one, other = gradients(model), gradients(plain)
    assert all(np.array_equal(one[name], other[name]) for name in other)
    add_lora(model, 2, 1, ("c_attn",))                      # and can have LoRA again


def test_a_model_without_lora_is_not_changed_by_merging():
    model = gpt()
    model.freeze(lambda name: name.startswith("h.2"))
    flat = model.flat
    merge_lora(model)
    assert model.flat is flat


def test_only_the_addition_moves_and_what_is_named_beside_it():
    model = gpt()
    add_lora(model, 2, 2.0, ("c_attn",), also=lambda name: name.startswith("ln_f"))
    before = {name: parameter.data.copy() for name, parameter in model.parameters.items()}
    optimizer = AdamW(model, 1e-2, weight_decay=0.0)
    losses = []
    for _ in range(30):
        model.zero_grad()
        loss, saved = model.loss(tokens(), tokens(1))
        model.backward(saved)
        optimizer.step()
        losses.append(loss)
    assert losses[-1] < losses[0] - 0.3
    for name, parameter in model.parameters.items():
        moved = "lora" in name or name.startswith("ln_f")
        assert np.array_equal(parameter.data, before[name]) is not moved, name


def test_a_replica_shares_the_addition():
    model = with_lora()
    replica = model.replica()
    assert same_arrays(model, replica) and set(lora_layers(replica)) == set(lora_layers(model))
    assert replica.flat.data is model.flat.data
    one, other = gradients(model), gradients(replica)
    assert all(np.array_equal(one[name], other[name]) for name in one)
    assert not any(np.shares_memory(parameter.grad, replica.flat.grad)
                   for parameter in replica.flat.parameters.values())


class Experts(Module):
    """All of them, added up: what it holds stands in lists and dicts, for a test of what is found there."""

    def __init__(self, make):
        self.experts, self.named = make([FeedForward(8, 7), Linear(8, 8)]), {"last": [Linear(8, 8)]}

    def _all(self):
        return [*self.experts, *self.named["last"]]

    def forward(self, x, key=None):
        ys, saved = zip(*(expert.forward(x) for expert in self._all()), strict=True)
        return sum(ys), saved

    def backward(self, dy, saved):
        return sum(expert.backward(dy, s) for expert, s in zip(self._all(), saved, strict=True))


def with_experts(make=list, **options):
    model = gpt(**options)
    for block in model.h:
        block.mlp = Experts(make)
    model.initialise(dtype="float64")
    model.flat.data += 0.4 * np.random.default_rng(1).standard_normal(model.flat.size)
    return model


@pytest.mark.parametrize("checkpointed", [False, True])
def test_it_finds_layers_in_lists_and_dicts_of_parts_of_ones_own(checkpointed):
    model = with_experts(gradient_checkpointing=checkpointed)
    targets = ("c_fc", "experts.1", "named.last.0")
    before = model.forward(tokens())[0]
    add_lora(model, 2, 3.0, targets)
    assert list(lora_layers(model)) == [f"h.{n}.mlp.{name}" for n in range(3)
                                        for name in ("experts.0.c_fc", "experts.1", "named.last.0")]
    assert np.array_equal(model.forward(tokens())[0], before)
    for layer in lora_layers(model).values():
        layer.lora_B.data[...] = np.random.default_rng(2).standard_normal(layer.lora_B.shape)
    check_gradients(lambda: model.loss(tokens(), tokens(1)), lambda dy, saved: model.backward(saved, dy),
                    parameters=model.flat.parameters)
    learned = model.forward(tokens())[0]
    assert not np.allclose(learned, before, atol=0.1)
    merge_lora(model)
    np.testing.assert_allclose(model.forward(tokens())[0], learned, rtol=0, atol=1e-11)
    assert isinstance(model.h[1].mlp.experts[1], Linear)
    assert model.parameters.keys() == with_experts().parameters.keys()


def test_what_stands_in_a_tuple_is_refused_and_nothing_is_changed():
    model = with_experts(tuple)
    with pytest.raises(ConfigError, match="h.0.mlp.experts.1 stands in a tuple, .*: make that a list"):
        add_lora(model, 2, 1, ("c_attn", "experts.1"))
    assert not lora_layers(model) and model.flat.size == with_experts().flat.size
    add_lora(model, 2, 1, ("experts.0.c_fc",))              # a part in a tuple may have it within


def share_block(model):
    model.h[2] = model.h[0]


def share_part(model):
    model.h[2].mlp = model.h[0].mlp


def share_layer(model):
    model.h[2].mlp.c_fc = model.h[0].mlp.c_fc


@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize("share", [share_block, share_part, share_layer])
def test_a_layer_that_is_used_twice_stays_one_and_is_merged_once(share, checkpointed):
    model = gpt(gradient_checkpointing=checkpointed)
    share(model)
    model.initialise(dtype="float64")
    add_lora(model, 2, 3.0, ("c_fc",))
    layers = lora_layers(model)
    assert layers["h.0.mlp.c_fc"] is layers["h.2.mlp.c_fc"] is not layers["h.1.mlp.c_fc"]
    alone = gpt()
    add_lora(alone, 2, 3.0, ("c_fc",))
    for name in ("h.0.mlp.c_fc", "h.1.mlp.c_fc"):
        assert np.array_equal(layers[name].lora_A.data, lora_layers(alone)[name].lora_A.data)
    for layer in layers.values():
        layer.lora_B.data[...] = np.random.default_rng(2).standard_normal(layer.lora_B.shape)
    check_gradients(lambda: model.loss(tokens(), tokens(1)), lambda dy, saved: model.backward(saved, dy),
                    parameters=model.flat.parameters)
    before = model.forward(tokens())[0]
    merge_lora(model)
    np.testing.assert_allclose(model.forward(tokens())[0], before, rtol=0, atol=1e-11)
    assert model.h[0].mlp.c_fc is model.h[2].mlp.c_fc and isinstance(model.h[0].mlp.c_fc, Linear)
    assert "h.2.mlp.c_fc.weight" not in model.parameters


def test_ranks_on_threads_train_the_addition():
    config = TrainConfig(block_size=6, batch_size=4, n_layer=3, n_head=2, n_embd=8, max_iters=9,
                         learning_rate=1e-2, dropout=0.2)
    text = np.random.default_rng(5).integers(0, 13, 300)

    def trained(size):
        model = with_lora()

        def work(ranks):
            trainer = Trainer(config, model.replica() if ranks.rank else model, text, text, ranks)
            return [trainer.update(step).loss for step in range(4)]
        return run_on_threads(size, work), model.flat.data

    (losses, alone), (other_losses, together) = trained(1), trained(2)
    assert np.allclose(losses, other_losses, rtol=1e-12) and np.allclose(alone, together, rtol=0, atol=1e-9)
    assert not np.allclose(alone, with_lora().flat.data)


@pytest.mark.parametrize(("arguments", "words"), [
    ((0, 1, ALL), "LoRA's rank must be at least 1, not 0"), (("8", 1, ALL), "rank must be a number, not '8'"),
    ((2, 0.0, ALL), "LoRA's alpha must be above 0 and finite, not 0.0"), ((2, None, ALL), "alpha must be a"),
    ((2, math.inf, ALL), "alpha must be above 0 and finite"), ((2.5, 1, ALL), "given as whole numbers"),
    ((2, 1, "q_proj"), "put at 'q_proj'"),
    ((2, 1, ("c_attn", "q_proj")), "put at 'q_proj': a block has attn.c_attn, attn.c_proj, mlp.c_fc, mlp.c_"),
    ((2, 1, ("tn.c_attn",)), "cannot be put at 'tn.c_attn'"),
    ((2, 1, ()), "nothing would be learned")])
def test_what_cannot_be_is_refused_and_changes_nothing(arguments, words):
    model = gpt()
    with pytest.raises(ConfigError, match=words):
        add_lora(model, *arguments)
    assert not lora_layers(model) and model.flat.size == gpt().flat.size


def test_a_model_without_blocks_is_told_to_give_the_gpt_within():
    class Probe(Module):
        def __init__(self):
            self.body = gpt()
    with pytest.raises(ConfigError, match="LoRA is for a model with blocks, `h`, and not for a Probe"):
        add_lora(Probe().initialise(), 2, 1, ("c_attn",))


def test_lora_on_lora_is_refused():
    model = with_lora()
    with pytest.raises(ConfigError, match="has LoRA already"):
        add_lora(model, 2, 1, ("c_attn",))
    assert lora_layers(model)["h.0.attn.c_attn"].rank == 3


def test_the_scale_is_alpha_over_rank():
    layer = LoRALinear(layers.Linear(3, 4), 2, 5.0).initialise(dtype="float64")
    layer.lora_B.data[...] = 1
    x = np.random.default_rng(0).standard_normal((2, 3))
    expected = x @ layer.weight.data + 2.5 * (x @ layer.lora_A.data @ layer.lora_B.data)
    np.testing.assert_allclose(layer.forward(x)[0], expected, rtol=1e-13)
