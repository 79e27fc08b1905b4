"""A batch of prompts of different lengths is its members alone; and a cache changes nothing but the time."""

import functools

import gpt_options
import numpy as np
import pytest
from generating import Hashed, random_gpt

from npgpt.generation.decoding import generate
from npgpt.generation.kv_cache import KVCache
from npgpt.generation.sequences import as_one_array

PAD = 10
PROMPTS = [[3], [1, 2, 4, 5, 7], [9, 3, 3]]
OPTIONS = pytest.mark.parametrize(
    "options", [{}, *gpt_options.ALONE, *gpt_options.together(12)], ids=gpt_options.label)
RULES = {"repetition_penalty": 1.5, "no_repeat_ngram_size": 2, "bad_words_ids": [[PAD, 3], [PAD, 1], [6]]}
SETTINGS = pytest.mark.parametrize("settings", [
    {}, {"eos_token_id": [0, 7]}, RULES, {"num_beams": 3, "num_return_sequences": 2, "eos_token_id": [0, 7]},
    {"num_beams": 3, **RULES, "early_stopping": True, "eos_token_id": 2}], ids=repr)


def alone_and_together(generate, prompts, **settings):
    """What comes of each prompt, without padding: alone, and in a batch of all."""
    for prompt in prompts:
        output = generate([prompt], **settings)
        yield [(row[len(prompt):].tolist(), prompt) for row in output]
    T = max(map(len, prompts))
    output = generate(prompts, **settings)
    several = len(output) // len(prompts)
    for r, row in enumerate(output):
        prompt = prompts[r // several]
        assert row[:T].tolist() == [PAD] * (T - len(prompt)) + prompt
    yield [(row[T:].tolist(), prompts[r // several]) for r, row in enumerate(output)]


def are_the_same(generate, prompts, **settings):
    *alone, together = alone_and_together(generate, prompts, pad_token_id=PAD, **settings)
    alone = [pair for rows in alone for pair in rows]
    for (one, prompt), (other, same) in zip(alone, together, strict=True):
        shorter = min(len(one), len(other))
        assert prompt == same and one[:shorter] == other[:shorter]
        assert not set(one[shorter:] + other[shorter:]) - {PAD}          # each is filled up for its batch
    return together


@SETTINGS
@pytest.mark.parametrize("use_cache", [True, False])
def test_of_a_model_that_sees_every_token(settings, use_cache):
    model = Hashed(11, seed=2)
    together = are_the_same(functools.partial(generate, model), PROMPTS, **settings, max_new_tokens=12,
                            use_cache=use_cache)
    assert len({tuple(new) for new, _ in together}) == len(together)


@pytest.mark.parametrize("settings", [{}, {"num_beams": 3}], ids=repr)
@OPTIONS
def test_of_every_gpt_past_its_block_too(options, settings):
    model = random_gpt(**gpt_options.SHAPE | {"block_size": 9} | options)
    are_the_same(model.generate, PROMPTS, max_new_tokens=7, **settings)
    are_the_same(model.generate, [[*range(10), 2, 3], [4, 4]], max_new_tokens=3, **settings)


@OPTIONS
def test_logits_with_a_cache_are_those_without_at_every_step(options):
    model = random_gpt(**gpt_options.SHAPE | {"block_size": 12} | options)
    for how in ({}, {"num_beams": 3}, {"do_sample": True, "num_return_sequences": 2}):
        cached, uncached = (model.generate(
            PROMPTS, 9, **how, pad_token_id=PAD, use_cache=use_cache, return_dict_in_generate=True,
            output_logits=True) for use_cache in (True, False))
        assert np.array_equal(cached.sequences, uncached.sequences) and len(cached.logits) == 9
        for one, other in zip(cached.logits, uncached.logits, strict=True):
            assert np.allclose(one, other, rtol=0, atol=1e-10)


def test_a_mask_says_what_lists_say_and_what_stands_in_the_padding_does_not_matter():
    model = random_gpt(**gpt_options.SHAPE)
    expected = model.generate(PROMPTS, 3, pad_token_id=PAD)
    mask   = np.array([[0, 0, 0, 0, 1], [1, 1, 1, 1, 1], [0, 0, 1, 1, 1]])
    tokens = np.where(mask, expected[:, :5], 777)                             # no token of the vocabulary
    for kind in (int, bool, float):
        result = model.generate(tokens, 3, attention_mask=mask.astype(kind), no_repeat_ngram_size=5)
        assert np.array_equal(result[:, 5:], expected[:, 5:]) and np.array_equal(result[:, :5], tokens)
    assert not np.array_equal(model.generate(np.where(mask, tokens, 0), 3)[:, 5:], expected[:, 5:])


def test_lists_are_filled_up_by_the_end_where_nothing_else_is_said():
    for prompts in (PROMPTS, tuple(map(np.array, PROMPTS))):
        result = generate(Hashed(11), prompts, eos_token_id=[8, 2], max_new_tokens=2)
        assert result[0, :4].tolist() == [8, 8, 8, 8]
    assert as_one_array([[3, 1]], [[1, 1]])[1] is None


def test_a_drawn_row_is_drawn_by_its_place_in_the_batch_and_not_by_its_padding():
    model = Hashed(11)
    together = generate(model, [[3], [1, 2]], pad_token_id=PAD, max_new_tokens=6, do_sample=True, seed=4)
    alone = generate(model, [[3]], max_new_tokens=6, do_sample=True, seed=4)
    assert np.array_equal(together[:1, 2:], alone[:, 1:])
    end   = together[0, 2]                                 # the first ends at once, the second goes on
    ended = generate(model, [[3], [1, 2]], pad_token_id=PAD, max_new_tokens=6, do_sample=True, seed=4,
                     eos_token_id=int(end))
    assert end not in together[1] and np.array_equal(ended[1], together[1])


# ---- rows of a cache ----

@pytest.mark.parametrize("rows", [[2, 0, 0], [0, 1, 2], [1, 1], [0], [2, 1, 0, 0, 2], [1, 0, 2]], ids=repr)
@pytest.mark.parametrize("options", [{}, {"n_kv_head": 2, "position": "rotary"}], ids=gpt_options.label)
def test_selected_rows_of_a_cache_go_on_as_those_sequences(rows, options):
    model = random_gpt(**gpt_options.SHAPE | options)
    x, y = np.random.default_rng(0).integers(0, 11, (3, 5)), np.random.default_rng(1).integers(0, 11, (5, 3))
    cache = model.new_cache(8)
    model.forward(x, kv_cache=cache)
    cache.select(rows)
    logits, _ = model.forward(y[:len(rows)], kv_cache=cache)
    expected, _ = model.forward(np.concatenate([x[rows], y[:len(rows)]], 1))
    assert np.allclose(logits, expected[:, 5:], rtol=0, atol=1e-10) and cache.length == 8


def test_rows_that_stay_are_not_copied_and_an_empty_cache_has_none():
    model = random_gpt(**gpt_options.SHAPE)
    cache = model.new_cache(8)
    cache.select([0, 0])
    assert cache.length == 0 and isinstance(cache, KVCache)
    model.forward(np.array([[1, 2], [3, 4]]), kv_cache=cache)
    keys, before = cache.layers[0].keys, cache.layers[0].keys.copy()
    cache.select([0, 1])
    assert cache.layers[0].keys is keys
    cache.select(np.array([0, 0]))
    assert cache.layers[0].keys is keys and np.array_equal(keys[1, :, :2], before[0, :, :2])


def test_a_cache_has_room_for_a_sequence_and_not_more_than_a_block():
    model = random_gpt(**gpt_options.SHAPE)
    assert [model.new_cache(n).layers[0].max_length for n in (3, 8, 100)] == [3, 8, 8]
