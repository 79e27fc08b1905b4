"""A model that is given embeddings in the place of tokens computes the same, and gives their gradient."""

import gpt_options
import numpy as np
import pytest
from model_folders import random_model
from small_gpt import CONFIG, KEY, LLAMA, gpt, tokens

from npgpt import GPT, GPTConfig, SequenceClassifier, add_lora, check_gradients
from npgpt.layers import Module, Parameter
from npgpt.training.optimizer import AdamW

MASK = np.array([[1, 1, 1, 2, 2, 2], [0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 0]])


def embeddings(model, ids=None):
    return model.wte.forward(tokens() if ids is None else ids)[0]


@pytest.mark.parametrize("options", [{}, *gpt_options.ALONE], ids=gpt_options.label)
def test_a_model_computes_from_embeddings_what_it_does_from_their_tokens(options):
    model = random_model(GPTConfig(**gpt_options.SHAPE | {"dropout": 0.2} | options), "float64")
    ids = np.random.default_rng(0).integers(0, 11, (3, 6))
    x, s_wte = model.wte.forward(ids)
    before   = x.copy()
    for arguments in ({}, {"key": KEY}, {"attention_mask": MASK}):
        (one, saved), (other, s) = (model.loss(given, ids, **arguments) for given in (ids, x))
        assert one == other
        model.zero_grad()
        assert model.backward(saved) is None
        expected = {name: parameter.grad.copy() for name, parameter in model.parameters.items()}
        model.zero_grad()
        dx = model.backward(s)
        model.wte.backward(dx, s_wte)
        for name, parameter in model.parameters.items():
            np.testing.assert_allclose(parameter.grad, expected[name], rtol=0, atol=1e-13, err_msg=name)
        assert dx.shape == x.shape and np.array_equal(x, before)


@pytest.mark.parametrize("options", [{}, {**LLAMA, "gradient_checkpointing": True}])
@pytest.mark.parametrize("change", [None, "last block", "lora"])
def test_the_gradient_of_embeddings_is_right_whatever_of_the_model_learns(options, change):
    model = gpt(**options)
    if change == "lora":
        add_lora(model, 2, 3.0, ("c_attn",))
    elif change:
        model.freeze(lambda name: name.startswith("h.2.mlp"))
    x = np.random.default_rng(4).standard_normal((3, 6, 8))
    check_gradients(lambda x: model.loss(x, tokens(1), KEY, None, MASK),
                    lambda dy, saved: model.backward(saved, dy), x, parameters=model.flat.parameters)
    check_gradients(lambda x: model.forward(x, KEY), model.backward_logits, x,
                    parameters=model.flat.parameters)
    check_gradients(lambda x: model.body_forward(x, KEY), model.body_backward, x)


def test_so_is_that_of_a_classifiers():
    model = SequenceClassifier(CONFIG, ["a", "b"], dtype="float64")
    x, padded = np.random.default_rng(4).standard_normal((3, 6, 8)), MASK != 0
    check_gradients(lambda x: model.loss(x, np.array([0, 1, 1]), KEY, None, padded),
                    lambda dy, saved: model.backward(saved, dy), x, parameters=model.parameters)
    assert model.backward(model.loss(tokens(), np.array([0, 1, 1]))[1]) is None


def test_embeddings_may_join_a_cache_and_come_in_the_models_type():
    model = gpt("float32")
    x, cache = embeddings(model), model.new_cache(8)
    expected = model.forward(tokens())[0]
    parts = [model.forward(part, kv_cache=cache)[0] for part in (x[:, :4], tokens()[:, 4:5], x[:, 5:])]
    np.testing.assert_allclose(np.concatenate(parts, 1), expected, rtol=0, atol=1e-4)
    np.testing.assert_array_equal(model.next_logits(x), model.next_logits(tokens()))
    logits, saved = model.forward(x.astype("float64"))
    assert logits.dtype == "float32" and np.array_equal(logits, expected)
    assert model.backward_logits(logits.astype("float64"), saved).dtype == "float32"


class Prompted(Module):
    """A soft prompt (Lester et al. 2021): embeddings before a text's, learned, of a model that is not."""

    def __init__(self, body, length=2):
        self.body, self.prompt = body, Parameter(length, body.config.n_embd, std=1.0)

    def loss(self, ids, targets):
        P, x = len(self.prompt.data), embeddings(self.body, ids)
        x = np.concatenate([np.broadcast_to(self.prompt.data, (len(x), *self.prompt.shape)), x], 1)
        return self.body.loss(x, np.pad(targets, ((0, 0), (P, 0)), constant_values=-100))

    def backward(self, saved, dloss=1.0):
        self.prompt.add_grad(self.body.backward(saved, dloss)[:, :len(self.prompt.data)].sum(0))


def test_a_soft_prompt_learns_before_a_model_that_does_not():
    model = Prompted(gpt("float32")).initialise(dtype="float64")
    model.freeze(lambda name: name == "prompt")
    before = {name: values for name, values in model.state_dict().items() if name != "prompt"}
    check_gradients(lambda: model.loss(tokens(), tokens(1)), lambda dy, saved: model.backward(saved, dy),
                    parameters=model.flat.parameters)
    optimizer, losses = AdamW(model, 0.1, weight_decay=0.0), []
    for _ in range(20):
        model.zero_grad()
        loss, saved = model.loss(tokens(), tokens(1))
        model.backward(saved)
        optimizer.step()
        losses.append(loss)
    assert losses[-1] < losses[0] - 0.1
    assert all(np.array_equal(model.parameters[name].data, values) for name, values in before.items())
    assert isinstance(model.body, GPT)
