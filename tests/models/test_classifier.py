"""What must be true of a SequenceClassifier."""

import dataclasses
import json

import numpy as np
import pytest
from model_folders import refused
from small_gpt import CONFIG, KEY, LLAMA, gpt, same_arrays

from npgpt import GPT, AdamW, SequenceClassifier, add_lora, check_gradients, merge_lora
from npgpt.errors import CheckpointError, ConfigError, DataError
from npgpt.interop.huggingface import is_classifier
from npgpt.layers import lora_layers

LABELS = ("calm", "merry", "sad", "wild")
TARGETS = np.array([2, 0, 3])
RIGHT = np.array([[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1], [1, 0, 0, 0, 0, 0]])
LEFT, HOLE = RIGHT[:, ::-1], np.array([[0, 1, 0, 1, 1, 0], [1, 1, 1, 1, 1, 1], [0, 0, 1, 0, 0, 0]])
MASKS = {"none": None, "right": RIGHT, "left": LEFT, "both sides": HOLE}
MODELS = {"GPT-2": {}, "checkpointed": {"gradient_checkpointing": True},
          "Llama": {**LLAMA, "n_kv_head": 1, "n_inner": 7}, "post-norm": {"block": "post"}}


def classifier(dtype="float64", **options):
    """A SequenceClassifier of weights of order 1."""
    model = SequenceClassifier(dataclasses.replace(CONFIG, **options), LABELS, seed=1, dtype=dtype)
    model.flat.data += 0.4 * np.random.default_rng(0).standard_normal(model.flat.size)
    return model


def tokens(B=3, T=6, seed=0):
    return np.random.default_rng(seed).integers(0, 13, (B, T))


def gradients(model, *arguments, **options):
    model.zero_grad()
    loss, saved = model.loss(*arguments, **options)
    model.backward(saved)
    return loss, {name: parameter.grad.copy() for name, parameter in model.flat.parameters.items()}


# ---- parameters ----

@pytest.mark.parametrize("options", MODELS)
def test_it_has_the_parameters_of_a_gpt_with_another_head(options):
    model, base = classifier(**MODELS[options]), gpt(**MODELS[options])
    assert set(model.parameters) == set(base.parameters) - {"lm_head.weight"} | {"score.weight"}
    assert model.score.weight.shape == (8, 4) and model.labels == LABELS
    assert 0.01 < SequenceClassifier(CONFIG, LABELS).score.weight.data.std() < 0.03


@pytest.mark.parametrize("options", MODELS)
def test_from_a_gpt_it_takes_the_body_and_shares_nothing(options):
    base  = gpt(**MODELS[options])
    model = SequenceClassifier.from_gpt(base, LABELS, seed=3)
    before = base.flat.data.copy()
    for name, parameter in model.parameters.items():
        if name != "score.weight":
            assert np.array_equal(parameter.data, base.parameters[name].data), name
    assert model.flat.data.dtype == np.float64 and model.config == base.config
    score = model.score.weight.data.copy()
    assert 0.01 < score.std() < 0.03
    assert np.array_equal(score, SequenceClassifier(CONFIG, LABELS, 3, dtype="float64").score.weight.data)
    assert not np.array_equal(score, SequenceClassifier.from_gpt(base, LABELS, 4).score.weight.data)
    for parameter in model.parameters.values():
        assert np.shares_memory(parameter.data, model.flat.data)
        parameter.data[...] = 7
    assert np.array_equal(base.flat.data, before)


def test_from_a_gpt_with_frozen_parameters_it_learns_all():
    base = gpt()
    base.freeze(lambda name: name.startswith("h.2"))
    model = SequenceClassifier.from_gpt(base, LABELS)
    assert not any(parameter.frozen for parameter in model.parameters.values())
    assert np.array_equal(model.parameters["wte.weight"].data, base.parameters["wte.weight"].data)


# ---- forward ----

def expected_logits(model, row):
    """The score of the body's last place, of tokens (T,)."""
    x, _ = model.body_forward(row[None])
    return x[0, -1] @ model.score.weight.data


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("options", MODELS)
def test_a_padded_row_is_what_it_is_without_padding(options, mask):
    model, x = classifier(**MODELS[options]), tokens()
    logits, _ = model.forward(x, attention_mask=MASKS[mask])
    assert logits.shape == (3, 4)
    for b in range(3):
        row = x[b] if MASKS[mask] is None else x[b][MASKS[mask][b].astype(bool)]
        if mask != "both sides" or b != 0:                  # the hole of row 0 is hidden, but not taken out
            np.testing.assert_allclose(logits[b], model.forward(row[None])[0][0], rtol=0, atol=1e-12)
            np.testing.assert_allclose(logits[b], expected_logits(model, row), rtol=0, atol=1e-12)


@pytest.mark.parametrize("mask", ["right", "left", "both sides"])
@pytest.mark.parametrize("options", MODELS)
def test_what_is_masked_has_exactly_no_influence(options, mask):
    model, x, mask = classifier(**MODELS[options]), tokens(), MASKS[mask]
    other = np.where(mask == 0, (x + 5) % 13, x)
    for key in (None, KEY):
        loss, one = gradients(model, x, TARGETS, key, attention_mask=mask)
        again, two = gradients(model, other, TARGETS, key, attention_mask=mask)
        assert loss == again
        assert all(np.array_equal(one[name], two[name]) for name in one if name != "wte.weight")
        unused = np.setdiff1d(np.arange(13), x[mask != 0])
        assert not one["wte.weight"][unused].any() and one["wte.weight"][x[mask != 0]].any(1).all()


def test_the_last_token_counts():
    model, x = classifier(), tokens()
    other = x.copy()
    other[:, -1] = (other[:, -1] + 1) % 13
    assert (model.forward(x)[0] != model.forward(other)[0]).all()


def test_masks_of_any_type_say_the_same():
    model, x = classifier(), tokens()
    expected, _ = model.forward(x, attention_mask=RIGHT)
    for mask in (RIGHT.astype(bool), RIGHT.astype("f4"), RIGHT.tolist()):
        assert np.array_equal(model.forward(x, attention_mask=np.asarray(mask))[0], expected)


def test_the_loss_is_the_mean_cross_entropy_of_the_targets_that_count():
    model, x = classifier(), tokens()
    logits, _ = model.forward(x, attention_mask=RIGHT)
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    loss, _ = model.loss(x, TARGETS, attention_mask=RIGHT)
    assert np.isclose(loss, -np.mean(log_p[np.arange(3), TARGETS]), rtol=1e-13) and np.ndim(loss) == 0
    loss, _ = model.loss(x, np.array([2, -100, 3]), attention_mask=RIGHT)
    assert np.isclose(loss, -np.mean(log_p[[0, 2], [2, 3]]), rtol=1e-13)
    loss, _ = model.loss(x, TARGETS, None, 12, RIGHT)
    assert np.isclose(loss, -np.sum(log_p[np.arange(3), TARGETS]) / 12, rtol=1e-13)


def test_dropout_acts_only_with_a_key():
    model, silent = classifier(), classifier(dropout=0.0)

    def loss(model, key):
        return float(model.loss(tokens(), TARGETS, key, attention_mask=LEFT)[0])
    assert loss(model, None) == loss(silent, None) == loss(silent, KEY)
    assert len({loss(model, None), loss(model, KEY), loss(model, KEY._replace(step=3))}) == 3
    assert loss(model, KEY) == loss(model, KEY)


# ---- gradients ----

@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("options", MODELS)
def test_gradients_are_right(options, mask):
    model = classifier(**MODELS[options])
    check_gradients(lambda: model.loss(tokens(), TARGETS, KEY, attention_mask=MASKS[mask]),
                    lambda dy, saved: model.backward(saved, dy), parameters=model.parameters)


def test_gradients_of_the_logits_are_right():
    model = classifier()
    check_gradients(lambda: model.forward(tokens(), KEY, RIGHT), model.backward_logits,
                    parameters=model.parameters)


@pytest.mark.parametrize("of", ["loss", "forward"])
def test_backward_tells_of_each_block_when_it_has_passed_it(of):
    model, passed = classifier(), []
    if of == "loss":
        model.backward(model.loss(tokens(), TARGETS)[1], after_block=passed.append)
    else:
        logits, saved = model.forward(tokens())
        model.backward_logits(logits, saved, passed.append)
    assert passed == model.h[::-1]


def test_the_parts_of_a_batch_add_up_to_the_whole():
    model, x = classifier(), tokens()
    loss, whole = gradients(model, x, TARGETS, KEY, attention_mask=LEFT)
    model.zero_grad()
    total = 0.0
    for part in (slice(0, 1), slice(1, 3)):
        key = KEY._replace(example=KEY.example + part.start)
        part_loss, saved = model.loss(x[part], TARGETS[part], key, 3, LEFT[part])
        model.backward(saved)
        total += part_loss
    assert np.isclose(total, loss, rtol=1e-13)
    for name, parameter in model.parameters.items():
        np.testing.assert_allclose(parameter.grad, whole[name], rtol=0, atol=1e-13)


def test_a_batch_is_learned():
    model = SequenceClassifier(CONFIG, LABELS)
    optimizer = AdamW(model, 1e-2)
    for _ in range(60):
        loss, _ = gradients(model, tokens(), TARGETS, attention_mask=RIGHT)
        optimizer.step()
    assert loss < 0.05
    assert (model.forward(tokens(), attention_mask=RIGHT)[0].argmax(1) == TARGETS).all()


# ---- frozen, LoRA'd, for another thread ----

def test_the_head_alone_is_learned():
    model = classifier()
    _, expected = gradients(model, tokens(), TARGETS, KEY)
    model.freeze(lambda name: name == "score.weight")
    _, actual = gradients(model, tokens(), TARGETS, KEY)
    assert list(actual) == ["score.weight"]
    assert np.array_equal(actual["score.weight"], expected["score.weight"])


@pytest.mark.parametrize("options", MODELS)
def test_lora_with_the_head(options):
    model = classifier(**MODELS[options])
    before, _ = model.forward(tokens(), attention_mask=LEFT)
    add_lora(model, 2, 3.0, ("c_attn", "mlp.c_proj"), also=lambda name: name == "score.weight")
    assert np.array_equal(model.forward(tokens(), attention_mask=LEFT)[0], before)
    assert {name for name in model.flat.parameters if "lora" not in name} == {"score.weight"}
    for layer in lora_layers(model).values():
        layer.lora_B.data[...] = np.random.default_rng(1).standard_normal(layer.lora_B.shape)
    check_gradients(lambda: model.loss(tokens(), TARGETS, KEY, attention_mask=LEFT),
                    lambda dy, saved: model.backward(saved, dy), parameters=model.flat.parameters)
    after, _ = model.forward(tokens())
    merge_lora(model)
    np.testing.assert_allclose(model.forward(tokens())[0], after, rtol=0, atol=1e-11)


def test_what_backward_has_used_up_is_refused():
    model = classifier()
    _, saved = model.loss(tokens(), TARGETS)
    model.backward(saved)
    once = model.flat.grad.copy()
    with pytest.raises(DataError, match="a backward has used this `saved` up already"):
        model.backward(saved)
    with pytest.raises(DataError, match="this `saved` is from loss"):
        model.backward_logits(np.ones((3, 4)), model.loss(tokens(), TARGETS)[1])
    _, saved = model.forward(tokens())
    with pytest.raises(DataError, match="this `saved` is from forward"):
        model.backward(saved)
    model.zero_grad()
    model.backward_logits(np.ones((3, 4)), saved)
    with pytest.raises(DataError, match="a backward has used this `saved` up already"):
        model.backward_logits(np.ones((3, 4)), saved)
    assert once.any() and model.flat.grad.any() and not np.array_equal(model.flat.grad, once)


def test_a_backward_that_is_refused_has_added_nothing():
    model = classifier()
    _, saved = model.loss(tokens(), TARGETS)
    model.backward(saved)
    once = model.flat.grad.copy()
    with pytest.raises(DataError):
        model.backward(saved)
    assert np.array_equal(model.flat.grad, once)


@pytest.mark.parametrize("lora", [False, True])
def test_a_replica_shares_parameters_and_labels(lora):
    model = classifier()
    if lora:
        add_lora(model, 2, 3.0, ("c_attn",), also=lambda name: name == "score.weight")
    replica = model.replica()
    assert type(replica) is SequenceClassifier and replica.labels == LABELS and same_arrays(model, replica)
    _, one = gradients(model, tokens(), TARGETS, KEY)
    _, two = gradients(replica, tokens(), TARGETS, KEY)
    assert all(np.array_equal(one[name], two[name]) for name in one)
    assert not any(np.shares_memory(parameter.grad, replica.flat.grad)
                   for parameter in replica.flat.parameters.values())


# ---- folders ----

OWN = {"block": "parallel", "bias": False}


@pytest.mark.parametrize(("options", "kind", "architecture"), [
    ({}, "gpt2", "GPT2ForSequenceClassification"),
    (LLAMA, "llama", "LlamaForSequenceClassification"),
    ({**LLAMA, "qkv_bias": True, "attn_proj_bias": False}, "qwen2", "Qwen2ForSequenceClassification"),
    (OWN, "npgpt", "SequenceClassifier")])
@pytest.mark.parametrize("pad", [None, 0])
def test_saved_and_read_again_it_is_the_same(options, kind, architecture, pad, tmp_path):
    model = classifier("float32", **options)
    model.pad_token_id = pad
    model.save_pretrained(tmp_path / "x")
    config = json.loads((tmp_path / "x" / "config.json").read_text())
    assert config["model_type"] == kind and config["architectures"] == [architecture]
    assert config["id2label"] == {"0": "calm", "1": "merry", "2": "sad", "3": "wild"}
    assert config["label2id"] == {"calm": 0, "merry": 1, "sad": 2, "wild": 3}
    assert config["pad_token_id"] == pad
    assert is_classifier(tmp_path / "x")
    again = SequenceClassifier.from_pretrained(tmp_path / "x")
    assert again.labels == LABELS and again.pad_token_id == pad
    names = dict.fromkeys(again.parameters)
    assert names == dict.fromkeys(model.parameters)
    assert all(np.array_equal(again.parameters[name].data, model.parameters[name].data) for name in names)
    assert np.array_equal(again.forward(tokens())[0], model.forward(tokens())[0])


@pytest.mark.parametrize("options", [{}, OWN])
def test_a_classifier_is_no_language_model_nor_the_other_way_round(options, tmp_path):
    classifier(**options).save_pretrained(tmp_path / "classifier")
    gpt(**options).save_pretrained(tmp_path / "gpt")
    assert not is_classifier(tmp_path / "gpt")
    refused(lambda: GPT.from_pretrained(tmp_path / "classifier"), "config.json", "language model's head",
            "SequenceClassifier reads it", error=ConfigError)
    refused(lambda: SequenceClassifier.from_pretrained(tmp_path / "gpt"), "config.json", "classifier",
            error=ConfigError)


def test_labels_that_transformers_left_out_have_its_names(tmp_path):
    model = SequenceClassifier(CONFIG, ("no", "yes"))
    model.save_pretrained(tmp_path / "x")
    path = tmp_path / "x" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({k: v for k, v in config.items() if k not in ("id2label", "label2id")}))
    assert SequenceClassifier.from_pretrained(tmp_path / "x").labels == ("LABEL_0", "LABEL_1")


@pytest.mark.parametrize(("changes", "words"), [
    ({"problem_type": "regression"}, ("problem_type = 'regression'",)),
    ({"id2label": {"0": "a", "2": "b"}}, ("id2label", "a name of its own")),
    ({"id2label": {"0": "a", "1": "a"}}, ("id2label", "a name of its own")),
    ({"id2label": {"0": "a", "1": 3}}, ("id2label",)),
    ({"id2label": {"0": "a"}}, ("id2label", "2 or more")),
    ({"id2label": ["a", "b"]}, ("id2label", "no JSON object")),
    ({"id2label": None, "num_labels": 10**9}, ("id2label",)),
    ({"pad_token_id": -1}, ("pad_token_id is -1",)),
    ({"pad_token_id": 2**31}, ("pad_token_id is 2147483648",)),
    ({"pad_token_id": "x"}, ("pad_token_id is 'x'",)),
    ({"architectures": None}, ("architectures", "GPT2ForSequenceClassification")),
    ({"architectures": ["GPT2ForTokenClassification"]}, ("GPT2ForTokenClassification",))])
def test_a_configuration_that_does_not_fit_is_refused(changes, words, tmp_path):
    classifier().save_pretrained(tmp_path / "x")
    path = tmp_path / "x" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    refused(lambda: SequenceClassifier.from_pretrained(tmp_path / "x"), path, *words, error=ConfigError)


def test_another_number_of_labels_than_the_head_has_is_refused(tmp_path):
    classifier().save_pretrained(tmp_path / "x")
    path = tmp_path / "x" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"id2label": {"0": "a", "1": "b"}}))
    refused(lambda: SequenceClassifier.from_pretrained(tmp_path / "x"), "score.weight", "(4, 8)", "(2, 8)",
            error=CheckpointError)


def test_a_model_with_lora_is_not_saved_as_if_it_had_none(tmp_path):
    model = classifier()
    add_lora(model, 2, 3.0, ("c_attn",))
    with pytest.raises(ConfigError, match="merge it first"):
        model.save_pretrained(tmp_path / "x")
    assert not list(tmp_path.iterdir())
    base = gpt()
    add_lora(base, 2, 3.0, ("c_attn",))
    with pytest.raises(ConfigError, match="has LoRA: merge"):
        SequenceClassifier.from_gpt(base, LABELS)


# ---- errors ----

@pytest.mark.parametrize("labels", [("one",), (), ("a", "b", "a"), 3, (0, 1)])
def test_labels_must_be_two_or_more_and_differ(labels):
    with pytest.raises(ConfigError, match="at least 2 labels"):
        SequenceClassifier(CONFIG, labels)


@pytest.mark.parametrize(("bad", "words"), [
    (np.array([0, 1, 4]), "target 4 is not one of the 4 labels"),
    (np.array([0, 1, -1]), "target -1"),
    (np.array([0, 1]), r"shape \(3,\), one for each row of tokens, not int64 of shape \(2,\)"),
    (np.zeros((3, 6), int), r"not int64 of shape \(3, 6\)"),
    (np.zeros(3), "not float64")])
def test_bad_targets_are_refused(bad, words):
    with pytest.raises(DataError, match=words):
        classifier().loss(tokens(), bad)


def test_bad_tokens_and_masks_are_refused():
    model = classifier()
    with pytest.raises(DataError, match="token 13"):
        model.forward(tokens() + 13 * (tokens() == tokens()[0, 0]) - tokens() * (tokens() == tokens()[0, 0]))
    with pytest.raises(DataError, match=r"must be of shape \(3, 6\)"):
        model.forward(tokens(), attention_mask=np.ones((3, 5)))
    with pytest.raises(DataError, match="row 1 of the batch is padding alone"):
        model.forward(tokens(), attention_mask=RIGHT * np.array([[1], [0], [1]]))
