"""Each rule on what may come next, against its definition in plain Python."""

import math

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from npgpt import GPT, GPTConfig
from npgpt.generation.processors import (
    forbid_before,
    forbid_repeated_ngrams,
    forbid_words,
    only_tokens_of,
    penalise_repetition,
    process,
    processors,
)
from npgpt.generation.sequences import PADDING
from npgpt.generation.settings import GenerationSettings
from npgpt.testing import seeds
from npgpt.tokenizers import BPETokenizer, CharacterTokenizer

V = 4


def drawn(seed, T=9):
    """Two sequences of a small vocabulary, the second with padding, and scores of both signs."""
    rng = np.random.default_rng(seed)
    sequences = rng.integers(0, V, (2, T))
    sequences[1, :rng.integers(0, T)] = PADDING
    return sequences, rng.standard_normal((2, V))


def real(row):
    return [int(id) for id in row if id != PADDING]


def held_to(definition, rule, seed, T=9):
    """definition: (tokens, scores of one row) → scores"""
    sequences, scores = drawn(seed, T)
    scores.flags.writeable = False
    result = rule(sequences, scores)
    for row, given_scores, new in zip(sequences, scores, result, strict=True):
        assert new.tolist() == definition(real(row), given_scores.tolist())


@given(seed=seeds(), penalty=st.sampled_from([0.5, 1.3]))
def test_a_repeated_token_is_penalised_once(seed, penalty):
    def definition(tokens, scores):
        return [score if id not in tokens else score * penalty if score < 0 else score / penalty
                for id, score in enumerate(scores)]
    held_to(definition, lambda *given: penalise_repetition(*given, penalty), seed)


@given(seed=seeds(), n=st.integers(1, 4), T=st.integers(1, 12))
@example(seed=0, n=1, T=3)
@example(seed=1, n=1, T=3)
@example(seed=2, n=1, T=3)
def test_no_ngram_comes_twice(seed, n, T):
    def definition(tokens, scores):
        there = {tuple(tokens[i:i + n]) for i in range(len(tokens) - n + 1)}
        begun = tuple(tokens[len(tokens) - n + 1:]) if n > 1 else ()
        whole = len(tokens) >= n - 1
        return [-math.inf if whole and (*begun, id) in there else score for id, score in enumerate(scores)]
    held_to(definition, lambda *given: forbid_repeated_ngrams(*given, n), seed, T)


@given(seed=seeds(), T=st.integers(1, 4))
def test_no_bad_word_comes(seed, T):
    words = ((1,), (0, 2), (3, 3), (2, 1, 0), (0, 1, 2, 3, 0))
    def definition(tokens, scores):
        return [-math.inf if any(tuple([*tokens, id][-len(word):]) == word for word in words) else score
                for id, score in enumerate(scores)]
    held_to(definition, lambda *given: forbid_words(*given, words), seed, T)


def test_some_do_not_come_before_a_length():
    for T in (3, 4, 5):
        held_to(lambda tokens, scores, T=T: [-math.inf if id in (0, 3) and T < 4 else score
                                             for id, score in enumerate(scores)],
                lambda *given: forbid_before(*given, (0, 3), 4), seed=1, T=T)


def test_only_the_settings_that_say_something_make_rules_and_in_transformers_order():
    assert processors(GenerationSettings(), 3) == []
    assert processors(GenerationSettings(min_new_tokens=4), 3) == []          # there is no end to forbid
    every = GenerationSettings(repetition_penalty=2.0, no_repeat_ngram_size=2, bad_words_ids=[[0]],
                               eos_token_id=1, min_new_tokens=4)
    assert [rule.func for rule in processors(every, 3)] == [
        penalise_repetition, forbid_repeated_ngrams, forbid_words, forbid_before]


def test_all_rules_are_applied():
    settings = GenerationSettings(no_repeat_ngram_size=1, bad_words_ids=[[0]], eos_token_id=1,
                                  min_new_tokens=4)
    scores = process(processors(settings, 1), np.array([[2]]), np.zeros((1, V)))
    assert scores.tolist() == [[-math.inf, -math.inf, -math.inf, 0]]


def test_an_id_without_a_token_never_comes():
    """Of a vocabulary that is filled up, or has gaps, as cl100k_base's."""
    gaps = BPETokenizer((), {"<|endoftext|>": 300}, vocabulary={id: bytes([id]) for id in range(200)})
    sequences, scores = np.zeros((2, 3), int), np.zeros((2, 304))
    scores.flags.writeable = False
    allowed = only_tokens_of(gaps)(sequences, scores)
    assert (allowed[:, [*range(200), 300]] == 0).all() and (allowed[:, 200:300] == -np.inf).all()
    assert (allowed[:, 301:] == -np.inf).all()
    letters = CharacterTokenizer.train(["abcd"])
    assert only_tokens_of(letters)(sequences, scores[:, :4]) is not None and 3 in letters and 4 not in letters
    model = GPT(GPTConfig(vocab_size=9, block_size=8, n_layer=1, n_head=1, n_embd=8), seed=1)
    model.parameters["wte.weight"].data[4:] *= 50                              # those would come
    for settings in ({"do_sample": True, "seed": 3}, {}, {"num_beams": 3}):
        new = model.generate(np.zeros((1, 1), int), 7, tokenizer=letters, **settings)
        assert new.max() < 4 and letters.decode(new[0])


@pytest.mark.parametrize("beams", [1, 2])
def test_rules_of_ones_own_come_after_all_others(beams):
    """Where the built-in ones have been: what they forbid is −∞ already. And before one is chosen."""
    model = GPT(GPTConfig(vocab_size=9, block_size=16, n_layer=1, n_head=1, n_embd=4), seed=2)
    seen  = []

    def odd_only(sequences, scores):
        seen.append((sequences.shape[1], np.isneginf(scores[:, 3]).all()))
        return np.where(np.arange(9) % 2, scores, -np.inf)

    new = model.generate(np.array([[1, 2]]), max_new_tokens=6, num_beams=beams, bad_words_ids=[[3]],
                         logits_processor=[odd_only])[0, 2:]
    plain = model.generate(np.array([[1, 2]]), 6, num_beams=beams, logits_processor=None)[0, 2:]
    alone = model.generate(np.array([[1, 2]]), 6, num_beams=beams, logits_processor=(
        lambda _, scores: np.where(np.arange(9) == plain[0], -np.inf, scores)))[0, 2:]
    assert plain[0] not in alone
    assert (new % 2 == 1).all() and 3 not in new
    assert [length for length, _ in seen] == [2, 3, 4, 5, 6, 7] and all(forbidden for _, forbidden in seen)
