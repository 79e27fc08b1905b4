"""transformers as the oracle for classifiers: what its …ForSequenceClassification computes, npgpt's computes
from the same folder, and back again. All numbers are of order 1, gains are not 1 and biases not 0.
"""

import numpy as np
import pytest

from npgpt import SequenceClassifier

torch        = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

PAD    = 36
LABELS = {0: "calm", 1: "merry", 2: "sad"}
COMMON = {"vocab_size": 37, "bos_token_id": None, "eos_token_id": None, "pad_token_id": PAD,
          "id2label": LABELS, "label2id": {name: n for n, name in LABELS.items()}}
GPT2   = {**COMMON, "n_positions": 16, "n_embd": 12, "n_layer": 2, "n_head": 3}
LLAMA  = {**COMMON, "max_position_embeddings": 32, "hidden_size": 16, "intermediate_size": 20,
          "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 2}
MODELS = {
    "gpt2": ("GPT2", GPT2), "gpt2, as many labels as channels": ("GPT2", {**GPT2, "n_embd": 3, "n_head": 1}),
    "llama": ("Llama", LLAMA), "llama, tied": ("Llama", {**LLAMA, "tie_word_embeddings": True}),
    "mistral": ("Mistral", {**LLAMA, "sliding_window": None}), "qwen2": ("Qwen2", LLAMA),
    "qwen3": ("Qwen3", {**LLAMA, "head_dim": 8}),
}


def build(name):
    """A transformers classifier of random numbers."""
    kind, config = MODELS[name]
    config = getattr(transformers, f"{kind}Config")(**config)
    model  = transformers.AutoModelForSequenceClassification.from_config(config).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.5 + (parameter.ndim == 1) * 0.7)
    return model


def batch(side):
    """Tokens, padded to one length on one side, and the mask."""
    rng, T = np.random.default_rng(1), 11
    tokens, mask = np.full((4, T), PAD), np.zeros((4, T), int)
    for b, length in enumerate((T, 5, 1, 8)):
        place = slice(0, length) if side == "right" else slice(T - length, T)
        tokens[b, place], mask[b, place] = rng.integers(0, PAD, length), 1
    return tokens, mask


def outputs(theirs, tokens, mask, labels=None):
    """Padding on the left counts as places in transformers unless it is told the places."""
    places = np.maximum(mask.cumsum(1) - 1, 0)
    labels = None if labels is None else torch.tensor(labels)
    return theirs(torch.tensor(tokens), attention_mask=torch.tensor(mask), position_ids=torch.tensor(places),
                  labels=labels)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("name", MODELS)
def test_logits_loss_and_gradients_are_theirs_and_the_way_back_loses_no_bit(name, side, tmp_path):
    theirs = build(name)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = SequenceClassifier.from_pretrained(tmp_path / "theirs")
    assert ours.labels == ("calm", "merry", "sad") and ours.pad_token_id == PAD
    (tokens, mask), targets = batch(side), np.array([2, 0, 1, 2])
    expected = outputs(theirs, tokens, mask, targets)
    logits, _ = ours.forward(tokens, attention_mask=mask)
    np.testing.assert_allclose(logits, expected.logits.detach().numpy(), rtol=0, atol=1e-4)

    loss, saved = ours.loss(tokens, targets, attention_mask=mask)
    assert abs(float(loss) - expected.loss.item()) < 1e-4
    ours.backward(saved)
    expected.loss.backward()
    for mine, grad in (("score.weight", theirs.score.weight.grad.T),
                       ("wte.weight", theirs.get_input_embeddings().weight.grad)):
        grad = grad.numpy()
        assert abs(ours.parameters[mine].grad - grad).max() <= 1e-4 * abs(grad).max(), mine

    ours.save_pretrained(tmp_path / "ours")
    again = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "ours")
    assert again.config.id2label == LABELS and again.config.pad_token_id == PAD
    one, other = dict(theirs.named_parameters()), dict(again.named_parameters())
    assert one.keys() == other.keys() and len(one) > 10
    assert all(torch.equal(one[key], other[key]) for key in one)
    np.testing.assert_allclose(outputs(again, tokens, mask).logits.detach().numpy(), logits, rtol=0,
                               atol=1e-4)


def test_a_classifier_of_two_labels_that_transformers_saved_without_names(tmp_path):
    config = transformers.GPT2Config(**{k: v for k, v in GPT2.items() if "label" not in k})
    transformers.GPT2ForSequenceClassification(config).save_pretrained(tmp_path / "x")
    assert SequenceClassifier.from_pretrained(tmp_path / "x").labels == ("LABEL_0", "LABEL_1")
