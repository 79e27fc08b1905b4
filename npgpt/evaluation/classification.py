"""Classification: how often a model finds the class of a text, and with which it mistakes which.

    hits(c)       texts of class c that were given c         accuracy = Σ hits / texts
    support(c)    texts of class c                           recall(c) = hits / support
    predicted(c)  texts that were given c                    precision(c) = hits / predicted
                                                             F1(c) = 2 hits / (support + predicted)

0 where it would be 0/0 (scikit-learn's zero_division=0). Of all classes together:

    macro       the mean over the classes that occur among the texts or what they were given, as scikit-learn
                takes them where it is not told
    weighted    the mean over classes by their support
    micro       of the sums of hits, support and predicted: as each text has one class, and is given one, all
                three are the accuracy
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from npgpt.errors import CheckpointError
from npgpt.evaluation.bootstrap import Interval, resampled
from npgpt.evaluation.scoring import TOKENS_AT_ONCE, Progress
from npgpt.tensor import to_numpy

SCORES = ("precision", "recall", "f1")


class Classifier(Protocol):
    """tokens (B, T), attention_mask (B, T) of 0 and 1  →  logits (B, K), of the K labels."""

    labels: tuple[str, ...]

    def forward(self, tokens: np.ndarray, *, attention_mask: np.ndarray) -> tuple[Any, Any]: ...


class Classification(NamedTuple):
    """numbers, intervals: accuracy, then each of SCORES by macro, micro and weighted, as in `f1_macro`.
    classes: of SCORES and "support" the number of each class, (K,).  confusion: (K, K), texts of the row's
    class that were given the column's.
    """

    numbers: dict[str, float]
    intervals: dict[str, Interval | None]
    classes: dict[str, np.ndarray]
    confusion: np.ndarray


def measure(labels: np.ndarray, predicted: np.ndarray, K: int, seed: int = 0,
            resamples: int = 1000) -> Classification:
    """labels, predicted: the class of each text and the one it was given, from 0 to K − 1: (N,), N ≥ 1"""
    numbers = averages(labels, predicted, K)
    bounds: Sequence[Interval | None] = resampled(
        lambda drawn: list(averages(labels[drawn], predicted[drawn], K).values()),
        len(labels), seed, resamples) or [None] * len(numbers)
    counts  = _counts(labels, predicted, K)
    return Classification(numbers, dict(zip(numbers, bounds, strict=True)),
                          dict(zip(SCORES, _of_each_class(*counts), strict=True)) | {"support": counts[1]},
                          np.bincount(labels * K + predicted, minlength=K * K).reshape(K, K))


def averages(labels: np.ndarray, predicted: np.ndarray, K: int) -> dict[str, float]:
    """Accuracy, and the averages over classes."""
    hits, support, given = counts = _counts(labels, predicted, K)
    occurs   = support + given > 0
    accuracy = hits.sum() / len(labels)
    numbers  = {"accuracy": float(accuracy)}
    for name, each in zip(SCORES, _of_each_class(*counts), strict=True):
        numbers |= {f"{name}_macro": float(each[occurs].mean()), f"{name}_micro": float(accuracy),
                    f"{name}_weighted": float(each @ support / len(labels))}
    return numbers


def probabilities(model: Classifier, texts: Sequence[Sequence[int]], batch_size: int | None = None,
                  progress: Progress | None = None) -> np.ndarray:
    """The probability of each label for each text: (N, K), float64

    texts: ids, at least one each. Those of about the same length share a batch, filled up on the right.
    progress: is told how many texts are done. Raises CheckpointError where the model gives no finite number.
    """
    result = np.empty((len(texts), len(model.labels)))
    order  = sorted(range(len(texts)), key=lambda n: -len(texts[n]))
    first  = 0
    while first < len(order):
        T     = len(texts[order[first]])
        batch = order[first:first + (batch_size or max(1, TOKENS_AT_ONCE // T))]
        first += len(batch)
        tokens, mask = np.zeros((2, len(batch), T), np.int64)
        for row, n in enumerate(batch):
            tokens[row, :len(texts[n])] = texts[n]
            mask[row, :len(texts[n])]   = 1
        z = to_numpy(model.forward(tokens, attention_mask=mask)[0]).astype(np.float64)       # (B, K)
        if not np.isfinite(z).all():
            raise CheckpointError("the model gives a class a probability that is no number: its weights are "
                                  "damaged, or too large for their type")
        p = np.exp(z - z.max(-1, keepdims=True))
        result[batch] = p / p.sum(-1, keepdims=True)
        if progress is not None:
            progress(first, len(order))
    return result


def _counts(labels: np.ndarray, predicted: np.ndarray, K: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """hits, support, predicted: (K,) each"""
    return (np.bincount(labels[labels == predicted], minlength=K), np.bincount(labels, minlength=K),
            np.bincount(predicted, minlength=K))


def _of_each_class(hits: np.ndarray, support: np.ndarray, given: np.ndarray) -> tuple[np.ndarray, ...]:
    """precision, recall, F1: (K,) each. Where a denominator is 0 there are no hits."""
    return (hits / np.maximum(given, 1), hits / np.maximum(support, 1),
            2 * hits / np.maximum(support + given, 1))
