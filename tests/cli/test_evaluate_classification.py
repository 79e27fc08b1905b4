"""npgpt evaluate --task classification as a user types it, with a classifier that is a few lines."""

import math
import re
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import evaluating
import numpy as np
import pytest
from evaluating import evaluate, lines_of, refused, write_records

from npgpt.cli.tasks import classification
from npgpt.files import file_sha256
from npgpt.training.loading import load_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return evaluating.make_folder(tmp_path_factory.mktemp("evaluate"))


@pytest.fixture(autouse=True)
def inside(folder, monkeypatch):
    evaluating.enter(folder, monkeypatch)


class Classifier:
    """Knows a text's class by its last token."""

    labels     = ("even", "odd", "never")
    parameters: ClassVar = {"head": SimpleNamespace(data=np.ones(3, np.float32))}
    config     = SimpleNamespace(block_size=8)

    def forward(self, tokens, *, attention_mask):
        last = tokens[np.arange(len(tokens)), attention_mask.sum(1) - 1]
        return np.stack([1 - last % 2, last % 2, last * 0 - 1], 1).astype(np.float32), ()


TEXTS = [("to be", "even"), ("or not", "odd"), ("that is the question that", "odd"), ("be", "even"),
         ("t", "odd")]


@pytest.fixture
def classifier(monkeypatch):
    """What npgpt.training.loading.load_classifier gives: a model, and the tokenizer of a run."""
    def load(path, which, device, warn):
        assert (path, which, device) == ("classifier", "best", "cpu")
        return Classifier(), load_model(Path("run"), "best", "cpu", print).tokenizer

    monkeypatch.setattr(classification, "load_classifier", load)


def classify(data, *arguments):
    return evaluate("classifier", "--task", "classification", "--data", data, *arguments)


def test_classification(capsys, classifier):
    data   = write_records(*({"text": text, "label": label} for text, label in TEXTS))
    result = classify(data, "--predictions", "predictions.jsonl", "--batch-size", 2)
    said   = capsys.readouterr().out
    tokenizer = load_model(Path("run"), "best", "cpu", print).tokenizer
    given  = [("even", "odd")[tokenizer.encode_ordinary(text)[:8][-1] % 2] for text, _ in TEXTS]
    hits   = [own == label for own, (_, label) in zip(given, TEXTS, strict=True)]
    rows   = lines_of("predictions.jsonl")
    assert [(row["text"], row["label"], row["predicted"]) for row in rows] == [
        (text, label, own) for (text, label), own in zip(TEXTS, given, strict=True)]
    odds   = {"even": math.e, "odd": 1, "never": math.exp(-1)}
    if given[0] == "odd":
        odds |= {"even": 1, "odd": math.e}
    assert rows[0]["probabilities"] == pytest.approx({k: x / sum(odds.values()) for k, x in odds.items()})
    assert all(max(row["probabilities"], key=row["probabilities"].get) == row["predicted"] for row in rows)
    assert result["numbers"]["accuracy"] == sum(hits) / 5
    assert result["labels"] == ["even", "odd", "never"]
    pairs = [(label, own) for (_, label), own in zip(TEXTS, given, strict=True)]
    assert result["confusion"] == [[pairs.count((own, given)) for given in Classifier.labels]
                                   for own in Classifier.labels]
    assert [own["support"] for own in result["classes"]] == [2, 3, 0]
    assert result["classes"][2] == {"label": "never", "precision": 0, "recall": 0, "f1": 0, "support": 0}
    assert result["protocol"] == {
        "texts": 5, "truncated": 1, "context": 8, "zero_division": 0,
        "macro_over": "the classes that occur or were given", "bootstrap_units": "texts",
        "bootstrap_number": 5, "confidence": 0.95}
    assert result["intervals"].keys() == result["numbers"].keys()
    assert result["data"] == {"source": data, "kind": "records", "sha256": file_sha256(Path(data))}
    even = result["classes"][0]
    assert re.search(rf" even +{even['precision']:.4f} +{even['recall']:.4f} +{even['f1']:.4f} +2 ", said)
    for shown in ("accuracy", "f1 macro", "f1 weighted", "f1 micro", "even", "never", "given →",
                  "5 texts, 1 of them longer than the model's 8 tokens", "what would be 0/0 is 0",
                  "bootstrap over 5 texts", "predictions: predictions.jsonl"):
        assert shown in said, shown
    assert classify(data, "--limit", 2)["protocol"]["texts"] == 2


def test_bootstrap_and_batch_size(classifier, monkeypatch):
    data = write_records(*({"text": text, "label": label} for text, label in 3 * TEXTS))
    evaluating.check_bootstrap_and_batch_size(monkeypatch, Classifier, "classifier", "--task",
                                              "classification", "--data", data)


@pytest.mark.parametrize("count", [20, 21])
def test_confusion_matrices_of_up_to_twenty_classes_are_shown(capsys, classifier, monkeypatch, count):
    labels = tuple(f"the class of number {n}" for n in range(count))
    monkeypatch.setattr(Classifier, "labels", labels)
    monkeypatch.setattr(Classifier, "forward", lambda self, tokens, *, attention_mask: (
        np.eye(count)[np.full(len(tokens), count - 1)] * 5, ()))
    data   = write_records(*({"text": "to be", "label": label} for label in labels))
    result = classify(data)
    said   = capsys.readouterr().out
    assert len(result["confusion"]) == count and result["confusion"][3] == [0] * (count - 1) + [1]
    assert ("given →" in said) == (count == 20)
    assert ("confusion matrix of 21 classes is in the result file" in said) == (count == 21)
    if count == 20:
        rows = [line for line in said.splitlines() if re.match(r" *\d+ the class of number", line)]
        assert [line.split()[-20:] for line in rows] == [
            ["·"] * n + ["0"] + ["·"] * (18 - n) + ["1"] for n in range(19)] + [["·"] * 19 + ["1"]]


@pytest.mark.parametrize(("sentence", "arguments", "record"), [
    ("has the label 'prime', which the model does not know: it knows 'even', 'odd', 'never'", [],
     {"text": "to", "label": "prime"}),
    ("records.jsonl has records without a label", [], {"text": "to"}),
    ("records.jsonl has records without a label", [], {"prompt": "to", "completion": "be"}),
    ("record 1 of records.jsonl has an empty text", [], {"text": "", "label": "odd"}),
    ("surprisal is of language-modelling", ["--surprisal", "x"], {"text": "to", "label": "odd"}),
    ("num_beams is of generation", ["--num-beams", "2"], {"text": "to", "label": "odd"}),
    ("context is of", ["--context", "2"], {"text": "to", "label": "odd"}),
    ("say by --data in which JSONL file the texts", ["--data", ""], {"text": "to", "label": "odd"})])
def test_what_classification_refuses(capsys, classifier, sentence, arguments, record):
    refused(capsys, 1, sentence, "classifier", "--task", "classification", "--data", write_records(record),
            *arguments)


def test_many_unknown_labels_are_named_in_one_line(capsys, classifier):
    data = write_records(*({"text": "to", "label": f"{n:02}"} for n in range(30)))
    refused(capsys, 1, "has labels '00', .* '09' and 20 more, which the model does not know", "classifier",
            "--task", "classification", "--data", data)
