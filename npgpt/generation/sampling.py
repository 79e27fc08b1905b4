"""From logits to a distribution to a token. On the host, in NumPy, one row a sequence.

A distribution is narrowed by taking tokens out, that is by scores of −∞. Each way to do so leaves at least
the `least` most likely tokens in.
"""

import numpy as np

from npgpt.errors import CheckpointError, ConfigError

FIRST_GUESS = 256       # of how many tokens reach top_p


def narrowed(logits, temperature: float = 1.0, top_k: int | None = None, top_p: float = 1.0,
             min_p: float | None = None, least: int = 1) -> np.ndarray:
    """logits: (B, V)  →  the logits of the distribution to draw from: (B, V)

    temperature: logits are divided by it; below 1 sharpens. The others follow in this order, as in
    transformers: keep_top_k, keep_top_p, keep_min_p.
    """
    scores = logits / temperature if temperature != 1 else logits
    if top_k:
        scores = keep_top_k(scores, max(top_k, least))
    if top_p < 1:
        scores = keep_top_p(scores, top_p, least)
    if min_p:
        scores = keep_min_p(scores, min_p, least)
    return scores


def keep_top_k(scores, k: int) -> np.ndarray:
    """Only the k most likely tokens stay, and all that tie with the k-th.   scores, result: (B, V)"""
    return np.where(scores < _kth(scores, k), -np.inf, scores) if k < scores.shape[-1] else scores


def keep_top_p(scores, p: float, least: int = 1) -> np.ndarray:
    """Only the smallest set of the most likely tokens stays whose probabilities reach p.

    Nucleus sampling, Holtzman et al. 2020.   scores, result: (B, V)
    The set is looked for among the most likely few, then eight times as many, and so on: sorting all of a
    vocabulary would be most of a small model's time.
    """
    V, k = scores.shape[-1], max(FIRST_GUESS, least)
    probabilities = softmax(scores)
    while True:
        k = min(k, V)
        likely = np.argpartition(scores, -k, -1)[:, -k:]
        likely = np.take_along_axis(likely, np.argsort(-np.take_along_axis(scores, likely, -1), -1), -1)
        ranked = np.take_along_axis(probabilities, likely, -1)                # most likely first
        before = np.cumsum(ranked, -1) - ranked
        if k == V or (before[:, -1] >= p).all():
            break
        k *= 8
    stays = before < p                                                        # the set had not reached p yet
    stays[:, :least] = True
    kept  = np.full_like(scores, -np.inf)
    np.put_along_axis(kept, likely, np.where(stays, np.take_along_axis(scores, likely, -1), -np.inf), -1)
    return kept


def keep_min_p(scores, p: float, least: int = 1) -> np.ndarray:
    """Only tokens stay that are at least p times as likely as the most likely.   scores, result: (B, V)"""
    lowest = scores.max(-1, keepdims=True) + float(np.log(p))
    if least > 1:
        lowest = np.minimum(lowest, _kth(scores, least))
    return np.where(scores < lowest, -np.inf, scores)


def softmax(scores) -> np.ndarray:
    """scores: (B, V)  →  (B, V), float64, rows that sum to 1.  Raises as check_largest does."""
    largest = scores.max(-1, keepdims=True)
    check_largest(largest)
    p = np.exp(np.subtract(scores, largest, dtype=np.float64))
    p /= p.sum(-1, keepdims=True)
    return p


def check_largest(largest) -> None:
    """largest: the largest score of each row.  Raises CheckpointError where one is NaN, ConfigError where it
    is −∞.
    """
    if np.isnan(largest).any():
        raise CheckpointError("the model gives a token a score that is no number: its weights are damaged, "
                              "or too large for their type")
    if (largest == -np.inf).any():
        raise ConfigError("no token is left that may come next: raise no_repeat_ngram_size, or take away "
                          "from bad_words_ids or from min_new_tokens")


def draw(probabilities, uniform) -> np.ndarray:
    """probabilities: (B, V)  uniform: (B,) in [0, 1)  →  tokens: (B,), by inverting the distribution"""
    cumulative = np.cumsum(probabilities, -1)
    tokens = (cumulative <= np.asarray(uniform)[:, None] * cumulative[:, -1:]).sum(-1)
    return np.minimum(tokens, probabilities.shape[-1] - 1)


def _kth(scores, k: int):
    """The k-th largest of each row, (B, 1); the smallest, where there are fewer."""
    k = min(k, scores.shape[-1])
    return np.partition(scores, -k, axis=-1)[:, -k, None]
