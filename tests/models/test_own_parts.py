"""A model with parts of one's own: put in, trained, kept; and refused where only a configuration is known."""

import dataclasses

import numpy as np
import pytest
import strict_cupy
from small_gpt import CONFIG, LLAMA, gpt, tokens

from npgpt import GPT, SequenceClassifier, add_lora, check_gradients
from npgpt.errors import CheckpointError, ConfigError
from npgpt.layers import Linear, Module, Parameter, SelfAttention
from npgpt.tensor import device_of


class Gate(Module):
    """x g, g learned: a feed-forward layer's stand-in."""

    def __init__(self, n_embd):
        self.gate = Parameter(n_embd, constant=0.5)

    def forward(self, x, key=None):
        return x * self.gate.data, x

    def backward(self, dy, x):
        self.gate.add_grad((dy * x).sum((0, 1)))
        return dy * self.gate.data


class Shifted(Gate):
    """Sees the place before its own, too."""

    def forward(self, x, key=None):
        before = np.concatenate([np.zeros_like(x[:, :1]), x[:, :-1]], 1)
        return super().forward(x + before)


class Recurrent(Gate):
    """In attention's place, without a thought of the cache."""

    def forward(self, x, key=None, **context):
        return super().forward(np.cumsum(x, 1))


class Averaging(SelfAttention):
    """Has the parameters of SelfAttention, and may compute otherwise."""


def gated(**options):
    model = gpt(**options)
    for block in model.h:
        block.mlp = Gate(8)
    return model.initialise(dtype="float64")


@pytest.mark.parametrize("gradient_checkpointing", [False, True])
def test_a_part_of_ones_own_takes_the_place_of_another_and_learns(gradient_checkpointing):
    model = gated(gradient_checkpointing=gradient_checkpointing)
    model.wpe, model.drop, model.ln_f = Gate(8), Gate(8), Gate(8)
    model.initialise()
    assert [name for name in model.parameters if "mlp" in name] == [f"h.{n}.mlp.gate" for n in range(3)]
    assert isinstance(model.h[1].mlp, Gate)
    check_gradients(lambda: model.loss(tokens(), tokens(1)), lambda dy, saved: model.backward(saved, dy),
                    parameters=model.parameters)


@pytest.mark.parametrize(("device", "dtype"), [("cpu", "float64"), ("cuda", "bfloat16")])
def test_a_part_that_is_put_in_becomes_what_and_where_the_model_is(monkeypatch, device, dtype):
    if device == "cuda":
        strict_cupy.install(monkeypatch)
    both = Module()
    both.first, both.second = Gate(8), GPT(CONFIG, device=device, dtype=dtype)
    for parameter in both.initialise().parameters.values():
        assert device_of(parameter.data).startswith(device) and parameter.data.dtype.name == dtype


def other_feed_forward(model):
    model.h[1].mlp = Gate(8)


def other_attention(model):
    old, model.h[2].attn = model.h[2].attn, Averaging(8, 2)
    model.h[2].attn.c_attn, model.h[2].attn.c_proj = old.c_attn, old.c_proj


def one_more_part(model):
    model.value = Linear(8, 1, bias=False)


def a_block_less(model):
    del model.h[2]


def a_block_more(model):
    model.h.append(model.h[0])


def a_wider_layer(model):
    model.h[0].mlp.c_fc, model.h[0].mlp.c_proj = Linear(8, 40), Linear(40, 8)


def a_head_of_its_own(model):
    model.lm_head.weight = Parameter(13, 8, std=0.02)


@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize(("change", "told"), [
    (other_feed_forward, "h.1.mlp is of class Gate"),
    (other_attention, "h.2.attn is of class Averaging"),
    (one_more_part, "there is a parameter value.weight of shape (8, 1)"), (a_block_less, "there is no h.2"),
    (a_block_more, "h.3 is there, a Block"),
    (a_wider_layer, "there is a parameter h.0.mlp.c_fc.bias of shape (40,)"),
    (a_head_of_its_own, "there is a parameter lm_head.weight of shape (13, 8)")])
def test_a_model_that_its_configuration_does_not_tell_is_not_written_as_if_it_did(tmp_path, change, told,
                                                                                 checkpointed):
    model = gpt(gradient_checkpointing=checkpointed)
    change(model)
    model.initialise(dtype="float64")
    with pytest.raises(ConfigError) as error:
        model.save_pretrained(tmp_path / "model")
    assert told in str(error.value) and "model.state_dict()" in str(error.value)
    assert not (tmp_path / "model").exists()
    with pytest.raises(ConfigError, match="a Module of your own"):
        SequenceClassifier.from_gpt(model, ["a", "b"])


@pytest.mark.parametrize("classifier", [False, True])
def test_an_adapter_is_for_no_model_but_the_one_that_the_configuration_makes(tmp_path, classifier):
    model = gpt()
    if classifier:
        model = SequenceClassifier.from_gpt(model, ["a", "b"])
    other_feed_forward(model)
    model.initialise()
    add_lora(model, 2, 1, ("c_attn",))
    with pytest.raises(ConfigError, match="h.1.mlp is of class Gate.* model.state_dict()"):
        model.save_adapter(tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_a_head_that_is_tied_by_hand_is_not_written_as_zeros(tmp_path):
    model = gpt(**LLAMA)
    model.lm_head.weight = model.wte.weight
    model.initialise(dtype="float64")
    with pytest.raises(ConfigError, match="there is no parameter lm_head.weight"):
        model.save_pretrained(tmp_path / "model")


def test_a_classifier_with_a_part_of_ones_own_is_not_written(tmp_path):
    model = SequenceClassifier(CONFIG, ["a", "b"])
    other_feed_forward(model)
    model.initialise()
    with pytest.raises(ConfigError, match="h.1.mlp is of class Gate"):
        model.save_pretrained(tmp_path / "model")


@pytest.mark.parametrize("change", [None, "frozen", "lora"])
def test_the_state_of_a_model_with_own_parts_comes_back_from_a_file(tmp_path, change):
    model, other = gated(), gated()
    other.flat.data[...] = 0
    for one in (model, other):
        if change == "frozen":
            one.freeze(lambda name: "gate" in name)
        elif change == "lora":
            add_lora(one, 2, 4.0, ["c_attn"], seed=id(one) % 99)
    np.savez(tmp_path / "weights.npz", **model.state_dict())
    other.load_state_dict(np.load(tmp_path / "weights.npz"))
    np.testing.assert_array_equal(model.forward(tokens())[0], other.forward(tokens())[0])
    assert list(model.state_dict()) == list(model.parameters)


def test_a_state_is_a_copy_and_one_that_does_not_fit_is_refused():
    model = GPT(CONFIG)
    state = model.state_dict()
    before = state["wte.weight"].copy()
    model.flat.data += 1
    np.testing.assert_array_equal(state["wte.weight"], before)
    for wrong, told in [({}, "in the model but not in the checkpoint"), (state | {"z": before}, "z is in"),
                        (state | {"wte.weight": before[:1]}, "wte.weight has shape"),
                        (state | {"wte.weight": before.tolist()}, "wte.weight is list in the"),
                        (state | {"wte.weight": before + 1j}, "wte.weight is complex64 in"),
                        ([before], "not from a list")]:
        with pytest.raises(CheckpointError, match=told):
            model.load_state_dict(wrong)
    assert model.state_dict()["wte.weight"][0, 0] == before[0, 0] + 1


def test_a_checkpointed_layer_shows_the_layers_parts():
    block = GPT(dataclasses.replace(CONFIG, gradient_checkpointing=True)).h[0]
    assert block.mlp is block.layer.mlp and list(vars(block)) == ["layer"]
    with pytest.raises(AttributeError, match="'Block' object has no attribute 'mlpp'"):
        _ = block.mlpp
    block.layer = other = GPT(CONFIG).h[1]
    assert block.layer is other and block.mlp is other.mlp


def test_what_was_frozen_in_a_part_is_learned_once_that_lies_in_a_larger_module():
    class Probe(Module):
        def __init__(self, body):
            self.body, self.head = body, Linear(8, 3)

    body = gpt()
    add_lora(body, 2, 4.0, ["c_attn"])
    probe = Probe(body).initialise(dtype="float64")
    assert not any(parameter.frozen for parameter in probe.parameters.values())


@pytest.mark.parametrize(("name", "part", "blocks", "told"), [
    ("mlp", Shifted, [1], True), ("attn", Recurrent, [1], True), ("attn", Recurrent, [0, 1, 2], False),
    ("mlp", Gate, [1], False), ("attn", lambda n_embd: Averaging(n_embd, 2), [1], False)])
def test_a_part_that_does_not_keep_what_it_saw_is_not_generated_from_with_a_cache(name, part, blocks, told):
    model = gpt()
    for n in blocks:
        setattr(model.h[n], name, part(8))
    model.initialise()
    model.flat.data[...] += 0.3 * np.random.default_rng(0).standard_normal(model.flat.size)
    settings = {"max_new_tokens": 3, "output_logits": True, "return_dict_in_generate": True}
    without = model.generate(tokens()[:, :4], use_cache=False, **settings)
    if told:
        with pytest.raises(ConfigError, match="a part of yours looks at other places .* use_cache=False"):
            model.generate(tokens()[:, :4], **settings)
    else:
        cached = model.generate(tokens()[:, :4], **settings)
        np.testing.assert_allclose(cached.logits, without.logits, atol=1e-9)


def test_a_context_of_one_token_has_no_other_places():
    model = gpt(block_size=1)
    model.h[1].mlp = Shifted(8)
    model.initialise()
    assert model.generate(tokens()[:, :1], max_new_tokens=2).shape == (3, 3)


def test_what_a_part_does_with_a_cache_is_found_out_by_few_tokens_of_a_long_context(monkeypatch):
    """Three passes over as many tokens as the context has would take longer than what is generated."""
    read, model = [], gpt(block_size=3000)
    model.h[1].mlp = Gate(8)
    model.initialise()
    forward = Gate.forward
    monkeypatch.setattr(Gate, "forward",
                        lambda self, x, key=None: read.append(x.shape[1]) or forward(self, x))
    model.new_cache(3000)
    assert read == [255, 1, 256]
