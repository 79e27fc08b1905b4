"""Classification: numbers by hand and equal to scikit-learn's, batches against each text alone."""

import math

import numpy as np
import pytest

from npgpt.errors import CheckpointError
from npgpt.evaluation.bootstrap import mean_interval, resampled
from npgpt.evaluation.classification import averages, measure, probabilities


class Counting:
    """Logits (B, 3) of what a classifier may see: the real tokens in their order, and nothing of padding."""

    labels = ("a", "b", "c")

    def __init__(self):
        self.shapes = []

    def forward(self, tokens, *, attention_mask):
        assert attention_mask.shape == tokens.shape and (np.diff(attention_mask, axis=1) <= 0).all()
        self.shapes.append(tokens.shape)
        return np.array([self.logits(row[real == 1].tolist())
                         for row, real in zip(tokens, attention_mask, strict=True)]), ()

    @staticmethod
    def logits(ids):
        return [math.sin(sum((n + 1) * (id + 1) for n, id in enumerate(ids)) + c) * 3 for c in range(3)]


def test_the_numbers_by_hand():
    """Rows are classes, columns what they were given:  2 1 0 0 / 0 1 1 0 / 0 0 0 0 / 0 0 0 0"""
    labels, given = np.array([0, 0, 0, 1, 1]), np.array([0, 0, 1, 1, 2])
    result = measure(labels, given, 4, resamples=10)
    assert result.confusion.tolist() == [[2, 1, 0, 0], [0, 1, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    assert result.classes["precision"].tolist() == [1, 0.5, 0, 0]
    assert result.classes["recall"].tolist()    == [2 / 3, 0.5, 0, 0]
    assert result.classes["f1"].tolist()        == [0.8, 0.5, 0, 0]
    assert result.classes["support"].tolist()   == [3, 2, 0, 0]
    assert result.numbers == {
        "accuracy": 0.6, "precision_micro": 0.6, "recall_micro": 0.6, "f1_micro": 0.6,
        "precision_macro": pytest.approx(1.5 / 3), "recall_macro": pytest.approx((2 / 3 + 0.5) / 3),
        "f1_macro": pytest.approx(1.3 / 3), "precision_weighted": pytest.approx(0.8),
        "recall_weighted": pytest.approx(0.6), "f1_weighted": pytest.approx((3 * 0.8 + 2 * 0.5) / 5)}


@pytest.mark.parametrize("seed", range(12))
def test_equal_to_scikit_learns(seed):
    """Of K classes some are never there, some never given, some neither."""
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(seed)
    K   = int(rng.integers(2, 9))
    N   = int(rng.integers(1, 60))
    labels = rng.choice(rng.permutation(K)[:rng.integers(1, K + 1)], N)
    given  = np.where(rng.random(N) < 0.5, labels, rng.choice(rng.permutation(K)[:rng.integers(1, K + 1)], N))
    result = measure(labels, given, K, resamples=2)
    assert result.confusion.tolist() == metrics.confusion_matrix(labels, given, labels=range(K)).tolist()
    assert result.numbers["accuracy"] == pytest.approx(metrics.accuracy_score(labels, given), abs=1e-12)
    each = metrics.precision_recall_fscore_support(labels, given, labels=range(K), zero_division=0)
    for name, theirs in zip(("precision", "recall", "f1", "support"), each, strict=True):
        np.testing.assert_allclose(result.classes[name], theirs, rtol=0, atol=1e-12)
    for average in ("macro", "micro", "weighted"):
        theirs = metrics.precision_recall_fscore_support(labels, given, average=average, zero_division=0)
        for name, number in zip(("precision", "recall", "f1"), theirs, strict=False):
            assert result.numbers[f"{name}_{average}"] == pytest.approx(number, abs=1e-12), (name, average)


def test_intervals_are_of_the_texts():
    rng = np.random.default_rng(5)
    labels, given = rng.integers(3, size=40), rng.integers(3, size=40)
    result = measure(labels, given, 3, seed=2, resamples=30)
    assert result.intervals["accuracy"] == pytest.approx(mean_interval((labels == given) * 1.0, 2, 30))
    drawn  = resampled(lambda n: list(averages(labels[n], given[n], 3).values()), 40, 2, 30)
    assert result.intervals == dict(zip(result.numbers, drawn, strict=True))
    assert result.intervals["precision_macro"] != result.intervals["recall_macro"]
    assert set(measure(labels[:1], given[:1], 3).intervals.values()) == {None}


@pytest.mark.parametrize("batch_size", [1, 2, 3, 100, None])
def test_batches_give_what_each_text_gives_alone(batch_size):
    texts = [[3], [1, 4, 1, 5, 9], [2, 6], [5, 3, 5], [8, 9, 7, 9, 3, 2]]
    told  = []
    model = Counting()
    p     = probabilities(model, texts, batch_size, lambda done, total: told.append((done, total)))
    for own, ids in zip(p, texts, strict=True):
        odds = [math.exp(z) for z in Counting.logits(ids)]
        assert own == pytest.approx([x / sum(odds) for x in odds], abs=1e-14)
    assert told[-1] == (5, 5) and len(told) == len(model.shapes) and {total for _, total in told} == {5}
    assert model.shapes[0] == (min(batch_size or 5, 5), 6)           # the longest first
    if batch_size == 2:
        assert model.shapes == [(2, 6), (2, 3), (1, 1)]


def test_batches_of_themselves_hold_no_more_tokens_than_a_few_thousand():
    model = Counting()
    probabilities(model, [[1] * 24] * 300 + [[1]] * 9)
    assert model.shapes == [(170, 24), (139, 24)]
    model = Counting()
    probabilities(model, [[1] * 4097] * 2)                           # one text is always a batch
    assert model.shapes == [(1, 4097)] * 2


def test_large_logits_overflow_nothing_and_none_that_is_no_number_passes():
    class Large:
        labels = ("a", "b")

        def __init__(self, z):
            self.z = z

        def forward(self, tokens, *, attention_mask):
            return np.array([self.z, [0, 0]], np.float32)[:len(tokens)], ()

    assert probabilities(Large([1e4, 1e4 - 800]), [[1], [1]]).tolist() == [[1, 0], [0.5, 0.5]]
    for wrong in (np.nan, np.inf):
        with pytest.raises(CheckpointError, match="no number"):
            probabilities(Large([0, wrong]), [[1]])
