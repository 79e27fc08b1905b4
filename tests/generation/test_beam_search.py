"""Beam search, against a search through all continuations, and against what it says of itself."""

import itertools

import numpy as np
import pytest
from generating import Hashed

from npgpt.errors import ConfigError
from npgpt.generation.beam_search import Ended, could_improve, followers
from npgpt.generation.decoding import generate
from npgpt.generation.settings import GenerationSettings
from npgpt.tensor.random import SAMPLING, Key

PROMPTS = [[2, 1], [0, 2]]


def log_p(model, tokens):
    logits = model.logits(tokens)
    return logits - np.log(np.exp(logits).sum())


def all_continuations(model, prompt, most, eos, length_penalty, least=0):
    """Of one prompt, best first: (score, tokens)"""
    found = []
    for length in range(1, most + 1):
        for tokens in itertools.product(range(model.V), repeat=length):
            ends = np.isin(tokens, eos)
            if ends[:-1].any() or ends[:least].any() or (length < most and not ends[-1]):
                continue
            score = sum(log_p(model, [*prompt, *tokens[:n]])[token] for n, token in enumerate(tokens))
            found.append((score / length ** length_penalty, tokens))
    return sorted(found, reverse=True)


@pytest.mark.parametrize("length_penalty", [-1.0, 0.0, 1.0, 2.0])
@pytest.mark.parametrize(("V", "most", "eos", "least"), [
    (3, 4, [0], 0), (3, 3, [0, 1], 0), (3, 4, [1], 2), (4, 3, [3], 0), (3, 3, [], 0), (2, 5, [1], 1),
    (5, 1, [2], 0)])
@pytest.mark.parametrize("use_cache", [True, False])
def test_with_enough_beams_it_finds_the_best_of_all(V, most, eos, least, length_penalty, use_cache):
    model, prompts = Hashed(V, seed=1), [[token % V for token in prompt] for prompt in PROMPTS]
    expected = [all_continuations(model, prompt, most, eos, length_penalty, least) for prompt in prompts]
    count = min(9, *map(len, expected))
    output = generate(model, prompts, max_new_tokens=most, num_beams=V ** most, num_return_sequences=count,
                      eos_token_id=eos or None, pad_token_id=0, min_new_tokens=least, use_cache=use_cache,
                      length_penalty=length_penalty, return_dict_in_generate=True, output_scores=True)
    flat = [one for those in expected for one in those[:count]]
    for row, score, (best, tokens) in zip(output.sequences, output.sequences_scores, flat, strict=True):
        assert row[2:2 + len(tokens)].tolist() == list(tokens) and not row[2 + len(tokens):].any()
        assert abs(score - best) < 1e-12


@pytest.mark.parametrize("early_stopping", [True, False, "never"])
def test_scores_and_beams_are_those_of_the_tokens(early_stopping):
    """Whatever was searched: a result's score is what the model says of it, by the rows it says it was in."""
    model, eos = Hashed(7, seed=2), 4
    output = generate(model, PROMPTS, num_beams=4, num_return_sequences=3, eos_token_id=eos, max_new_tokens=9,
                      length_penalty=0.7, early_stopping=early_stopping, return_dict_in_generate=True,
                      output_scores=True, output_logits=True)
    lengths, last = set(), set()
    for r, (row, beams) in enumerate(zip(output.sequences, output.beam_indices, strict=True)):
        prompt, new = row[:2].tolist(), row[2:].tolist()
        length = new.index(eos) + 1 if eos in new else len(new)
        assert prompt == PROMPTS[r // 3] and set(new[length:]) <= {eos}
        assert (beams >= 0).tolist() == [n < length for n in range(len(new))]
        assert set(beams[:length] // 4) == {r // 3}
        score = sum(output.scores[n][beams[n], new[n]] for n in range(length)) / length ** 0.7
        by_model = sum(log_p(model, prompt + new[:n])[new[n]] for n in range(length)) / length ** 0.7
        assert abs(score - output.sequences_scores[r]) < 1e-12 and abs(score - by_model) < 1e-12
        lengths.add(length)
        last.add(beams[length - 1] % 4)
    assert (np.diff(output.sequences_scores.reshape(2, 3)) < 0).all() and len(lengths) > 1 < len(last)


def test_one_position_a_beam_is_read_at_each_step_and_a_prompt_once():
    model = Hashed(9)
    generate(model, [[1, 2, 3], [4, 5, 6]], num_beams=4, max_new_tokens=4)
    assert model.read == [(2, 3), (8, 1), (8, 1), (8, 1)] and model.room == [7]
    generate(model, [[1, 2, 3], [4, 5, 6]], num_beams=4, max_new_tokens=4, use_cache=False)
    assert len(model.read) == 4 and model.room == [7]


def test_early_stopping_ends_with_as_many_results_as_beams():
    """The likeliest follower is an end, log p = −0.7, the next one goes on, −0.9: two have ended after two
    steps, the worse at −1.6/2ᵖ or −0.7. A third step makes −2.5/3ᵖ at most: worth it for p = 3, which is
    seen, and not for p = 1. But in twelve steps −0.9 each becomes −1.8/12, as it would seem, and that is.
    """
    class Ending(Hashed):
        def logits(self, tokens):
            return np.array([2.8, 0, 0, 0, 3.0])

    def steps(early_stopping, length_penalty):
        model = Ending(5)
        generate(model, [[1, 2]], num_beams=2, eos_token_id=4, max_new_tokens=12,
                 length_penalty=length_penalty, early_stopping=early_stopping)
        return len(model.read)

    assert steps(True, 1.0) == steps(True, 3.0) == 2
    assert steps(False, 1.0) == 2 and steps(False, 3.0) == 12
    assert 2 < steps("never", 1.0) < 12


@pytest.mark.parametrize(("early_stopping", "length_penalty", "worst", "goes_on"), [
    (False, 1.0, -0.76, True), (False, 1.0, -0.75, False), ("never", 1.0, -0.25, True),
    ("never", 1.0, -0.125, False), ("never", -1.0, -3.5, True), ("never", -1.0, -3.0, False),
    (True, 1.0, -9.0, False)])
def test_a_prompt_is_gone_on_with_while_a_beam_may_be_worth_more(early_stopping, length_penalty, worst,
                                                                 goes_on):
    """The best beam has −1.5 after 2 tokens of 12; below 0, a length_penalty makes longer ones worth less."""
    s     = GenerationSettings(num_beams=3, early_stopping=early_stopping, length_penalty=length_penalty)
    ended = [Ended(score, np.zeros(1), np.zeros(1)) for score in (0.0, -0.0625, worst)]
    assert could_improve(ended, -1.5, 2, 12, s) is goes_on
    assert not could_improve([], -np.inf, 2, 12, s)        # nothing may follow any beam


@pytest.mark.parametrize("kept", ["output_scores", "output_logits"])
def test_scores_and_logits_are_given_each_without_the_other(kept):
    output = generate(Hashed(7), PROMPTS, num_beams=2, max_new_tokens=3, return_dict_in_generate=True,
                      **{kept: True})
    given = {"output_scores": output.scores, "output_logits": output.logits}
    assert len(given.pop(kept)) == 3 and given.popitem()[1] is None
    assert (output.sequences_scores is None) == (output.scores is None)
    assert output.beam_indices.shape == (2, 3)


def test_no_new_tokens_is_the_prompt():
    result = generate(Hashed(5), PROMPTS, num_beams=3, num_return_sequences=2, max_new_tokens=0)
    assert result.tolist() == [PROMPTS[0], PROMPTS[0], PROMPTS[1], PROMPTS[1]]


def test_fewer_continuations_than_asked_for_are_told():
    with pytest.raises(ConfigError, match="found only 3 different continuations .* num_return_sequences = 4"):
        generate(Hashed(3), [[1, 2]], num_beams=4, num_return_sequences=4, max_new_tokens=1)
    with pytest.raises(ConfigError, match="found only 1 different continuations of a prompt"):   # the first
        generate(Hashed(3), [[1, 2], [2, 2]], num_beams=2, num_return_sequences=2, max_new_tokens=1,
                 no_repeat_ngram_size=1)


def test_drawn_beams_are_drawn_without_replacement_each_with_its_probability():
    """Of 5 tokens 4 are drawn, and the likelier 2 of them come back: how often which, by all orders to draw.

    χ² with 5 degrees of freedom is above 20.5 once in 1000 seeds; this seed is fixed.
    """
    p, count = np.array([0.35, 0.05, 0.3, 0.2, 0.1]), 3000
    expected: dict = {}
    for order in itertools.permutations(range(5), 4):
        left, chance = 1.0, 1.0
        for token in order:
            chance, left = chance * p[token] / left, left - p[token]
        pair = tuple(sorted(order, key=lambda token: -p[token])[:2])
        expected[pair] = expected.get(pair, 0) + chance * count

    class Given(Hashed):
        def logits(self, tokens):
            return np.log(p)

    drawn = generate(Given(5), np.zeros((count, 1), int), do_sample=True, num_beams=2, num_return_sequences=2,
                     max_new_tokens=1, seed=3)[:, 1].reshape(count, 2)
    seen = {pair: int((drawn == pair).all(1).sum()) for pair in expected}
    assert sum(seen.values()) == count
    assert sum((seen[pair] - times) ** 2 / times for pair, times in expected.items()) < 20.5


def test_drawn_beams_are_a_function_of_the_seed():
    def texts(seed):
        return generate(Hashed(9), PROMPTS, do_sample=True, num_beams=3, max_new_tokens=6, seed=seed).tolist()
    assert texts(1) == texts(1) != texts(2)


def test_the_temperature_divides_the_log_probabilities_that_are_drawn_by():
    settings = {"num_beams": 2, "max_new_tokens": 1, "return_dict_in_generate": True, "output_scores": True}
    cold, plain = (generate(Hashed(9), PROMPTS, do_sample=True, temperature=temperature, **settings).scores[0]
                   for temperature in (0.5, 1.0))
    np.testing.assert_allclose(cold, 2 * plain, rtol=1e-12)


@pytest.mark.parametrize(("eos", "V", "count"), [
    (None, 9, 4), (1, 9, 4), ([1, 2, 3], 9, 8), ([1, 2, 3], 3, 6)])
def test_so_many_follow_that_as_many_as_beams_go_on_whatever_ends(eos, V, count):
    s = GenerationSettings(num_beams=2, eos_token_id=eos)
    assert [array.shape for array in followers(np.zeros((2, V)), np.zeros((1, 2)), s, 0)] == [(1, count)] * 3


def test_what_is_drawn_is_drawn_by_the_seed_the_step_and_the_prompt():
    """All followers are as likely: those with the largest of these numbers stay."""
    settings = GenerationSettings(do_sample=True, num_beams=2, seed=7)
    parents, new, _ = followers(np.full((4, 9), -np.log(9)), np.zeros((2, 2)), settings, 3)
    for b in range(2):
        numbers = np.random.Generator(Key(7, SAMPLING, step=3).philox(b)).gumbel(size=18)
        beams, tokens = np.divmod(np.argsort(numbers)[-4:], 9)
        assert set(zip(parents[b], new[b], strict=True)) == set(zip(beams + 2 * b, tokens, strict=True))


@pytest.mark.parametrize(("ends", "left"), [(None, 2), ([3], 2), ([3, 4, 5], 4)])
@pytest.mark.parametrize("rule", [{"top_k": 1}, {"top_p": 0.01}, {"min_p": 1.0}], ids=str)
def test_each_beam_is_left_one_more_token_than_may_end_it(rule, ends, left):
    """As in transformers: however narrow the rule, there are followers that have not ended."""
    output = generate(Hashed(9), PROMPTS, num_beams=2, do_sample=True, eos_token_id=ends, pad_token_id=0,
                      max_new_tokens=1, return_dict_in_generate=True, output_scores=True, **rule)
    assert (np.isfinite(output.scores[0]).sum(-1) == left).all()
