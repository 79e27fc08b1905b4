"""Logits processors: rules on which token may come next, given those before it.

Each is a function of (sequences, scores) and gives new scores, of which −∞ means never:
sequences: (R, T), PADDING on the left of short ones.  scores: (R, V), logits or log-probabilities.
Their order is transformers'.
"""

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import numpy as np

from npgpt.generation.settings import GenerationSettings

Processor = Callable[[np.ndarray, np.ndarray], np.ndarray]


def processors(settings: GenerationSettings, prompt_length: int, tokenizer: Any = None) -> list[Processor]:
    """Those that the settings ask for; and only what the tokenizer, if one is given, has a token for."""
    s = settings
    rules: list[Processor] = [] if tokenizer is None else [only_tokens_of(tokenizer)]
    least, _ = s.new_tokens(prompt_length)
    if s.repetition_penalty != 1:
        rules.append(partial(penalise_repetition, penalty=s.repetition_penalty))
    if s.no_repeat_ngram_size:
        rules.append(partial(forbid_repeated_ngrams, n=s.no_repeat_ngram_size))
    if s.bad_words:
        rules.append(partial(forbid_words, words=s.bad_words))
    if least and s.eos_token_ids:
        rules.append(partial(forbid_before, ids=s.eos_token_ids, length=prompt_length + least))
    return [*rules, *s.own_rules]


def process(rules: list[Processor], sequences, scores) -> np.ndarray:
    """All of them, one after the other."""
    for rule in rules:
        scores = rule(sequences, scores)
    return scores


def only_tokens_of(tokenizer: Any) -> Processor:
    """No id without a token: a model's vocabulary may be filled up, and a tokenizer's may have gaps"""
    @cache
    def absent(V: int) -> np.ndarray:
        return np.array([id for id in range(V) if id not in tokenizer], np.int64)

    def rule(sequences, scores):
        if absent(scores.shape[1]).size:
            scores = scores.copy()
            scores[:, absent(scores.shape[1])] = -np.inf
        return scores

    return rule


def penalise_repetition(sequences, scores, penalty: float) -> np.ndarray:
    """The score of every token that is in its sequence: divided by the penalty, or multiplied if below 0

    Keskar et al. 2019, section 4.1. Once a token, however often it is there.
    """
    there  = np.where(sequences < 0, sequences[:, -1:], sequences)            # instead of padding one that is
    score  = np.take_along_axis(scores, there, 1)
    scores = scores.copy()
    np.put_along_axis(scores, there, np.where(score < 0, score * penalty, score / penalty), 1)
    return scores


def forbid_repeated_ngrams(sequences, scores, n: int) -> np.ndarray:
    """No token that would complete n tokens in a row that are in its sequence already"""
    T = sequences.shape[1]
    if n > T:
        return scores
    ngrams = np.lib.stride_tricks.sliding_window_view(sequences, n, axis=1)   # (R, T − n + 1, n)
    begun  = sequences[:, None, T + 1 - n:]                                   # the last n − 1 tokens
    rows, places = np.nonzero((ngrams[..., :-1] == begun).all(-1))
    ids    = ngrams[rows, places, -1]
    scores = scores.copy()
    scores[rows[ids >= 0], ids[ids >= 0]] = -np.inf                           # padding is a 1-gram
    return scores


def forbid_words(sequences, scores, words) -> np.ndarray:
    """No token that would complete one of the words, which are sequences of ids"""
    T, scores = sequences.shape[1], scores.copy()
    scores[:, [last for *begun, last in words if not begun]] = -np.inf
    for *begun, last in words:
        if begun and len(begun) <= T:
            scores[(sequences[:, T - len(begun):] == begun).all(1), last] = -np.inf
    return scores


def forbid_before(sequences, scores, ids, length: int) -> np.ndarray:
    """None of the ids until the sequence is so long"""
    if sequences.shape[1] >= length:
        return scores
    scores = scores.copy()
    scores[:, list(ids)] = -np.inf
    return scores
