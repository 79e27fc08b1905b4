"""What a GPT refuses: shapes that cannot be, and tokens, targets and masks that do not fit."""

import dataclasses
import re

import numpy as np
import pytest
from models.test_gpt import CONFIG, gpt, tokens

from npgpt import GPT, Key, NpgptError, SequenceClassifier
from npgpt.errors import ConfigError, DataError, DeviceError


@pytest.mark.parametrize(("options", "words"), [
    ({"vocab_size": 0}, "vocab_size must be at least 1"),
    ({"block_size": 0}, "block_size must be at least 1"),
    ({"n_layer": 0}, "n_layer must be at least 1"),
    ({"n_layer": 10_001}, "n_layer must be at most 10000, not 10001"),
    ({"n_layer": None}, "n_layer must be of type int, not None"),
    ({"vocab_size": 11.0}, "vocab_size must be of type int, not 11.0"),
    ({"dropout": "0.1"}, "dropout must be of type float, not '0.1'"),
    ({"bias": "no"}, "bias must be of type bool, not 'no'"),
    ({"qkv_bias": "no"}, "qkv_bias must be of type bool, not 'no'"),
    ({"norm": None}, "norm must be of type str, not None"),
    ({"n_head": 0}, "n_head must be at least 1"),
    ({"n_embd": -8}, "n_embd must be at least 1"),
    ({"n_embd": 9}, "9 is no multiple of 2"),
    ({"dropout": 1.0}, "dropout must be at least 0 and below 1"),
    ({"dropout": -0.1}, "dropout must be at least 0 and below 1"),
    ({"attention_dropout": 1.5}, "attention_dropout must be at least 0 and below 1"),
    ({"n_kv_head": 3}, "2 is no multiple of 3"),
    ({"n_kv_head": 0}, "n_kv_head must be at least 1"),
    ({"head_dim": 0}, "head_dim must be at least 1"),
    ({"n_inner": 0}, "n_inner must be at least 1"),
    ({"rope_original_block_size": 0}, "rope_original_block_size must be at least 1"),
    ({"position": "rotary", "head_dim": 5}, "heads of 5 have no pairs"),
    ({"norm": "batchnorm"}, "layernorm or rmsnorm, not 'batchnorm'"),
    ({"norm_eps": 0.0}, "norm_eps must be above 0"),
    ({"block": "sandwich"}, "pre or post or parallel or parallel_post, not 'sandwich'"),
    ({"rope_scaling": "yarn"}, "none or linear or llama3, not 'yarn'"),
    ({"rope_factor": -1.0}, "rope_factor must be above 0"),
    ({"rope_theta": 0.0}, "rope_theta must be above 0"),
    ({"rope_low_freq_factor": 4.0}, "rope_low_freq_factor must be below"),
    ({"logit_softcap": -1.0}, "logit_softcap must be at least 0"),
    ({"logit_softcap": float("nan")}, "logit_softcap must be at least 0"),
    ({"logit_softcap": float("inf")}, "logit_softcap must be at least 0"),
    ({"norm_eps": float("inf")}, "norm_eps must be above 0"),
    ({"norm_eps": 10**400}, "norm_eps must be of type float, not 1000"),
    ({"activation": "none"}, "gelu_tanh or gelu_erf or relu or "),
    ({"position": "alibi"}, "learned or sinusoidal or rotary or none, not 'alibi'"),
])
def test_a_configuration_that_cannot_be_is_refused(options, words):
    with pytest.raises(ConfigError, match=words):
        dataclasses.replace(CONFIG, **options)


@pytest.mark.parametrize("seed", [-1, 2**64, 1.5, "1"])
def test_a_seed_that_cannot_be_is_refused(seed):
    with pytest.raises(ConfigError, match="seed must be a whole number, at least 0 and below 2⁶⁴, not"):
        GPT(CONFIG, seed=seed)


def test_a_key_that_is_none_is_refused_and_numpys_numbers_widen_nothing():
    model, tokens = GPT(CONFIG), np.zeros((1, 4), int)
    for key in (3, Key("1"), Key(1.5), Key(1, step=-1), Key(2**64), Key(None)):
        with pytest.raises(ConfigError, match="key must be an npgpt.Key.* at least 0 and below 2⁶⁴, or None"):
            model.loss(tokens, tokens, key)
    for number in (-1, np.nan, np.inf, "4", [1, 2]):
        with pytest.raises(ConfigError, match="num_items_in_batch must be"):
            model.loss(tokens, tokens, num_items_in_batch=number)
    model.loss(tokens, tokens, Key(np.int64(1), step=2**64 - 1))
    loss, _ = model.loss(tokens, tokens, num_items_in_batch=np.int64(4))
    assert loss.dtype == "float32" and loss == model.loss(tokens, tokens)[0]


@pytest.mark.parametrize(("bad", "words"), [
    (np.array([[0, 13]]), "token 13 is not in the vocabulary of 13"),
    (np.array([[0, -1]]), "token -1"),
    (np.array([[0, -100]]), "token -100"),
    (np.array([0, 1]), r"integers of shape \(B, T\), not int64 of shape \(2,\)"),
    (np.array([[0.0, 1.0]]), "not float64"),
    (np.array([[True, False]]), "not bool"),
    ([[0], [1, 2]], r"tokens must be integers of shape \(B, T\): rows of one length"),
    (np.zeros((1, 9), int), "1 to block_size = 8 long, not 9"),
    (np.zeros((1, 0), int), "1 to block_size = 8 long, not 0"),
    (np.zeros((0, 4), int), "a batch of at least 1, not 0"),
])
def test_bad_tokens_are_refused(bad, words):
    with pytest.raises(DataError, match=words):
        gpt().forward(bad)
    with pytest.raises(DataError, match=words):
        gpt().loss(bad, tokens())


@pytest.mark.parametrize(("bad", "words"), [
    (np.full((3, 6), 13), "target 13 is not in the vocabulary of 13"),
    (np.full((3, 6), -1), "target -1"),
    (np.zeros((3, 5), int), r"the shape of tokens, \(3, 6\), not \(3, 5\)"),
    (np.zeros((3, 6)), "targets must be integers"),
])
def test_bad_targets_are_refused(bad, words):
    with pytest.raises(DataError, match=words):
        gpt().loss(tokens(), bad)


@pytest.mark.parametrize(("bad", "words"), [
    (lambda right: right[:1], r"not float64 of shape \(1, "), (lambda right: right[0], "float64 of shape"),
    (lambda right: right[..., :1], r", 1\)$"), (lambda right: right.tolist(), "not a list"),
    (lambda right: right + 1j, "not complex128"), (lambda right: 1.0, "not a float"),
    (lambda right: None, "not a NoneType")])
def test_a_gradient_of_another_shape_or_kind_is_refused_and_nothing_is_added(bad, words):
    model, classifier = gpt(), SequenceClassifier(CONFIG, ["a", "b", "c"], dtype="float64")
    for owner, forward, backward, name in (
            (model, model.forward, model.backward_logits, "dlogits"),
            (model, model.body_forward, model.body_backward, "dx"),
            (classifier, classifier.forward, classifier.backward_logits, "dlogits")):
        right, saved = forward(tokens())
        with pytest.raises(DataError, match=rf"{name} must be floats of shape \(3, .*") as error:
            backward(bad(right), saved)
        assert re.search(words, str(error.value))
        assert not owner.flat.grad.any()


def test_a_gradient_comes_in_the_type_of_what_it_is_of():
    model, expected = gpt("float32"), gpt("float32")
    logits, saved = expected.forward(tokens())
    expected.backward_logits(np.ones_like(logits), saved)
    for dlogits in (np.ones(logits.shape), np.ones(logits.shape, int)):
        model.zero_grad()
        _, saved = model.forward(tokens())
        model.backward_logits(dlogits, saved)
        np.testing.assert_array_equal(model.flat.grad, expected.flat.grad)


def test_where_the_losses_gradient_is_none_it_is_1_as_in_pytorch():
    classifier = SequenceClassifier(CONFIG, ["a", "b"])
    for model, targets in ((gpt(), tokens(seed=1)), (classifier, np.array([0, 1, 1]))):
        for dloss in (1.0, None):
            _, saved = model.loss(tokens(), targets)
            model.backward(saved, dloss)
            if dloss:
                once = model.flat.grad.copy()
        np.testing.assert_allclose(model.flat.grad, 2 * once, rtol=1e-6)


@pytest.mark.parametrize(("bad", "words"), [
    (np.zeros((3, 6, 9)), r"embeddings .* floats of shape \(B, T, 8\), not float64 of shape \(3, 6, 9\)"),
    (np.zeros((3, 6, 8), int), "not int64 of shape"), (np.zeros((3, 6, 8), complex), "not complex128"),
    (np.zeros((3, 9, 8)), "1 to block_size = 8 long, not 9"), (np.zeros((0, 4, 8)), "at least 1, not 0"),
    (np.zeros((3, 6, 8, 1)), r"tokens must be integers of shape \(B, T\), not float64"),
    (np.zeros((3, 5, 8)), r"the shape of tokens, \(3, 5\), not \(3, 6\)")])
def test_bad_embeddings_are_refused(bad, words):
    with pytest.raises(DataError, match=words):
        gpt().loss(bad, tokens())
    with pytest.raises(DataError, match="targets must be integers"):
        gpt().loss(np.zeros((3, 6, 8)), np.zeros((3, 6, 8)))


@pytest.mark.parametrize("bad", [[1, 2], np.array([1, 2]), np.array([[13]]), "text"])
def test_next_logits_and_checked_refuse_what_are_no_tokens(bad):
    for call in (gpt().next_logits, gpt().checked):
        with pytest.raises(DataError, match="token"):
            call(bad)
    np.testing.assert_array_equal(gpt().next_logits([[1, 2]]), gpt().next_logits(np.array([[1, 2]])))


@pytest.mark.parametrize("config", ["gpt2", {"vocab_size": 13}, None])
def test_what_is_no_configuration_is_refused(config):
    with pytest.raises(ConfigError, match="made of an npgpt.GPTConfig, and not of a .*from_pretrained"):
        GPT(config)


def test_the_largest_token_and_the_longest_sequence_are_taken():
    gpt().loss(np.full((1, 8), 12), np.full((1, 8), 12))


@pytest.mark.parametrize("device", ["tpu", "cuda:", "cuda:x"])
def test_an_unknown_device_is_refused(device):
    with pytest.raises(DeviceError, match="unknown device"):
        GPT(CONFIG, device=device)


def test_an_unknown_dtype_is_refused():
    with pytest.raises(ConfigError, match="float16"):
        gpt("float16")
    assert issubclass(ConfigError, NpgptError)


@pytest.mark.parametrize("mask", [np.ones((3, 5)), np.ones((2, 6)), np.ones(6)])
def test_an_attention_mask_must_be_of_the_shape_of_the_tokens(mask):
    with pytest.raises(DataError, match=r"attention_mask must be of shape \(3, 6\)"):
        gpt().forward(tokens(), attention_mask=mask)


@pytest.mark.parametrize("padding", [-np.inf, -1, np.nan])
def test_an_attention_mask_that_is_to_be_added_to_scores_is_refused_and_not_read_the_wrong_way_round(padding):
    mask = np.where(tokens() > 5, 0, padding)
    with pytest.raises(DataError, match=f"must be 1 for tokens and 0 for padding, .* not {padding}"):
        gpt().forward(tokens(), attention_mask=mask)
