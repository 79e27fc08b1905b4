"""One token after another: greedy, sampled, ended by a token, alone and in a batch."""

import numpy as np
import pytest
from generating import Function, Hashed

from npgpt import GPT, CharacterTokenizer, GPTConfig
from npgpt.errors import CheckpointError, ConfigError, DataError
from npgpt.generation.decoding import generate, stream
from npgpt.tensor.random import SAMPLING, Key, uniform

V = 11


@Function
def counting(tokens):
    """Logits by which the token after t most likely is t + 1."""
    return 5.0 * np.eye(V)[(tokens[:, -1] + 1) % V]


def fixed(*logits):
    """The same logits whatever came before."""
    return Function(lambda tokens: np.tile(np.asarray(logits, float), (len(tokens), 1)))


def small_gpt():
    """With weights large enough that what is generated varies."""
    model = GPT(GPTConfig(vocab_size=V, block_size=6, n_layer=2, n_head=2, n_embd=8), seed=3, dtype="float64")
    model.flat.data[...] += np.random.default_rng(0).standard_normal(model.flat.size)
    return model


def test_without_sampling_the_most_likely_token_is_taken():
    assert generate(counting, [[3], [9]], max_new_tokens=4).tolist() == [[3, 4, 5, 6, 7], [9, 10, 0, 1, 2]]


def test_greedy_generation_is_the_argmax_of_the_model_at_every_step():
    model, tokens = small_gpt(), np.array([[1, 2, 3], [4, 5, 6]])
    result = model.generate(tokens, 5)
    assert np.array_equal(result[:, :3], tokens) and result.dtype == tokens.dtype
    assert len(np.unique(result[:, 3:])) > 2
    for n in range(3, 8):
        logits, _ = model.forward(result[:, max(0, n - 6):n])
        assert np.array_equal(result[:, n], logits[:, -1].argmax(-1))


def test_a_prompt_longer_than_the_block_is_read_from_its_end_and_kept_whole():
    model, tokens = small_gpt(), np.random.default_rng(0).integers(0, V, (2, 15))
    result = model.generate(tokens, 4)
    assert np.array_equal(result[:, :15], tokens)
    assert np.array_equal(result[:, 15:], model.generate(tokens[:, -6:], 4)[:, 6:])


def test_a_batch_is_its_members_alone():
    model, tokens = small_gpt(), np.random.default_rng(0).integers(0, V, (4, 3))
    together = model.generate(tokens, 6)
    alone = [model.generate(tokens[b:b + 1], 6) for b in range(4)]
    assert np.array_equal(together, np.concatenate(alone))


def test_sampling_is_a_function_of_the_seed():
    model, tokens = small_gpt(), np.zeros((2, 1), int)
    first = model.generate(tokens, 12, do_sample=True, temperature=2.0, seed=1)
    assert np.array_equal(first, model.generate(tokens, 12, do_sample=True, temperature=2.0, seed=1))
    assert not np.array_equal(first, model.generate(tokens, 12, do_sample=True, temperature=2.0, seed=2))


def test_the_nth_token_of_sequence_b_is_a_function_of_seed_n_and_b():
    logits = fixed(*np.zeros(1000))
    result = generate(logits, np.zeros((3, 2), int), max_new_tokens=4, do_sample=True, seed=7)[:, 2:]
    for n in range(4):
        for b in range(3):
            assert result[b, n] == int(1000 * uniform(Key(7, SAMPLING, step=n), b))
    assert len(np.unique(result)) == 12
    alone = generate(logits, np.zeros((1, 5), int), max_new_tokens=4, do_sample=True, seed=7)[:, 5:]
    assert np.array_equal(alone, result[:1])


def test_sampled_frequencies_are_the_probabilities():
    """Pearson's χ²: with 3 degrees of freedom above 16.3 once in 1000 seeds; this seed is fixed."""
    p, count = np.array([0.1, 0.2, 0.3, 0.4]), 4000
    drawn = generate(fixed(*np.log(p)), [[0]], max_new_tokens=count, do_sample=True, seed=5)[0, 1:]
    expected = p * count
    assert ((np.bincount(drawn, minlength=4) - expected) ** 2 / expected).sum() < 16.3


def test_top_k_top_p_and_temperature_reach_the_sampling():
    few = fixed(0.0, 1.0, 2.0, 3.0, 4.0)
    for settings, tokens in (({"top_k": 2}, {3, 4}), ({"top_p": 0.7}, {3, 4}), ({"min_p": 0.1}, {2, 3, 4}),
                             ({"temperature": 0.01}, {4}), ({"temperature": 100.0}, {0, 1, 2, 3, 4})):
        assert set(generate(few, [[0]], max_new_tokens=200, do_sample=True, **settings)[0, 1:]) == tokens


def test_top_k_one_is_greedy():
    model, tokens = small_gpt(), np.array([[1, 2]])
    assert np.array_equal(model.generate(tokens, 6, do_sample=True, top_k=1), model.generate(tokens, 6))


def test_a_sequence_ends_with_its_end_and_is_filled_up_with_it():
    result = generate(counting, [[3], [6]], max_new_tokens=6, eos_token_id=8)
    assert result.tolist() == [[3, 4, 5, 6, 7, 8], [6, 7, 8, 8, 8, 8]]


def test_an_end_in_the_prompt_does_not_end_and_an_end_at_the_limit_does_not_lengthen():
    assert generate(counting, [[8]], max_new_tokens=2, eos_token_id=8).tolist() == [[8, 9, 10]]
    assert generate(counting, [[7]], max_new_tokens=1, eos_token_id=8).tolist() == [[7, 8]]


def test_token_zero_can_be_the_end():
    assert generate(counting, [[9]], max_new_tokens=5, eos_token_id=0).tolist() == [[9, 10, 0]]


def test_no_new_tokens_is_the_prompt():
    assert generate(counting, [[3, 4]], max_new_tokens=0).tolist() == [[3, 4]]


def test_the_stream_is_what_generate_gathers_and_asks_no_further_than_it_is_read():
    calls = []
    def logits(tokens):
        calls.append(tokens.copy())
        return counting.function(tokens)
    tokens = stream(Function(logits), [[3]], max_new_tokens=5)
    assert [next(tokens).tolist(), next(tokens).tolist()] == [[4], [5]]
    assert [call.tolist() for call in calls] == [[[3]], [[3, 4]]]


@pytest.mark.parametrize(("prompts", "mask"), [
    ([[3], [1, 2]], None), (np.ones((2, 3), int), [[0, 1, 1]] * 2)])
def test_the_stream_of_several_prompts_is_what_generate_gathers(prompts, mask):
    settings = {"do_sample": True, "num_return_sequences": 2, "eos_token_id": 7, "max_new_tokens": 5}
    gathered = generate(Hashed(V), prompts, mask, **settings)
    told     = np.stack(list(stream(Hashed(V), prompts, mask, **settings)), 1)
    assert np.array_equal(told, gathered[:, max(map(len, prompts)):])
    with pytest.raises(ConfigError, match="sequences that stop_strings end at different times"):
        stream(Hashed(V), prompts[:1], do_sample=True, num_return_sequences=2, stop_strings="a",
               tokenizer=CharacterTokenizer("ab"))


def test_the_prompt_is_only_read():
    prompt = np.array([[3]])
    prompt.flags.writeable = False
    generate(counting, prompt, max_new_tokens=3, do_sample=True, eos_token_id=5)
    assert prompt.tolist() == [[3]]


def test_frequencies_are_those_of_all_settings_together():
    """χ² with 2 degrees of freedom is above 13.8 once in 1000 seeds; this seed is fixed. The penalty makes
    the prompt's 5.0 a 2.5, the temperature divides by 1.25; top_k takes out the token 0, top_p 1, min_p 2.
    """
    count, weights = 4000, np.exp(np.array([3.0, 4.0, 2.5]) / 1.25)
    drawn = generate(fixed(0.0, 1.0, 2.0, 3.0, 4.0, 5.0), np.full((count, 1), 5), max_new_tokens=1,
                     do_sample=True, temperature=1.25, top_k=5, top_p=0.9, min_p=0.25, repetition_penalty=2.0,
                     seed=5)[:, 1]
    expected = weights * count / weights.sum()
    assert set(drawn) == {3, 4, 5}
    assert ((np.bincount(drawn)[3:] - expected) ** 2 / expected).sum() < 13.8


def test_several_continuations_of_a_prompt_are_drawn_each_for_itself_and_stand_side_by_side():
    model = Hashed(V)
    several = generate(model, [[1, 2], [3, 4]], max_new_tokens=5, do_sample=True, num_return_sequences=3,
                       seed=2)
    prompts = np.repeat([[1, 2], [3, 4]], 3, 0)
    assert np.array_equal(several, generate(model, prompts, max_new_tokens=5, do_sample=True, seed=2))
    assert np.array_equal(several[:, :2], prompts) and len(np.unique(several, axis=0)) == 6
    assert model.read[0] == (2, 2) and model.read[1] == (6, 1)                # a prompt is read once


def test_a_cache_has_room_for_all_that_will_be_read_and_each_position_is_read_once():
    model = Hashed(V)
    generate(model, [[1, 2, 3]], max_new_tokens=4)
    assert model.room == [7] and model.read == [(1, 3), (1, 1), (1, 1), (1, 1)]
    generate(model, [[1, 2, 3]], max_new_tokens=4, use_cache=False)
    assert model.room == [7] and len(model.read) == 4


def test_several_tokens_may_end_and_padding_is_of_its_own():
    result = generate(counting, [[3], [6], [8]], max_new_tokens=5, eos_token_id=[8, 5], pad_token_id=2)
    assert result.tolist() == [[3, 4, 5, 2, 2, 2], [6, 7, 8, 2, 2, 2], [8, 9, 10, 0, 1, 2]]


def test_until_the_least_length_no_end_is_chosen():
    """Forbidden, the end's neighbour at logit 0 with the smallest id comes instead: 0."""
    assert generate(counting, [[6]], max_new_tokens=8, eos_token_id=8).tolist() == [[6, 7, 8]]
    late = [[6, 7, 0, 1, 2, 3, 4, 5, 6]]
    assert generate(counting, [[6]], max_new_tokens=8, min_new_tokens=8, eos_token_id=8).tolist() == late
    for settings in ({"min_new_tokens": 2}, {"min_length": 3}, {"min_length": 2},
                     {"min_length": 9, "min_new_tokens": 2}):
        result = generate(counting, [[7]], max_new_tokens=9, eos_token_id=[8, 2], **settings).tolist()
        assert result == [[7, 0, 1, 2]], settings
    result = generate(counting, [[7]], max_new_tokens=9, eos_token_id=[8, 2], min_new_tokens=4).tolist()
    assert result == [[7, 0, 1, 0, 1, 2]]


@pytest.mark.parametrize(("settings", "new"), [
    ({}, 20), ({"max_new_tokens": 3}, 3), ({"max_length": 9}, 7),
    ({"max_length": 3}, 1), ({"max_length": 5, "max_new_tokens": 6}, 6)])
def test_how_much_comes_at_most(settings, new):
    assert generate(counting, [[3, 4]], **settings).shape == (1, 2 + new)


def test_scores_and_logits_come_on_request():
    output = generate(counting, [[3], [6]], max_new_tokens=3, eos_token_id=8, pad_token_id=1,
                      do_sample=True, temperature=0.5, top_k=1, return_dict_in_generate=True,
                      output_scores=True, output_logits=True)
    assert output.sequences.tolist() == [[3, 4, 5, 6], [6, 7, 8, 1]] and output.beam_indices is None
    assert len(output.scores) == len(output.logits) == 3
    for n, (scores, logits) in enumerate(zip(output.scores, output.logits, strict=True)):
        assert np.array_equal(logits, counting.function(output.sequences[:, :n + 1]))
        assert np.array_equal(np.isfinite(scores).sum(-1), [1, 1] if n < 2 else [1, V])
        assert scores[0].max() == 10
    plain = generate(counting, [[3]], max_new_tokens=1, return_dict_in_generate=True)
    assert plain.scores is plain.logits is None and plain.sequences.tolist() == [[3, 4]]
    for dtype, given in (("float16", "float32"), ("float32", "float32"), ("float64", "float64")):
        output = generate(Hashed(V, dtype=dtype), [[3]], max_new_tokens=1, return_dict_in_generate=True,
                          output_logits=True)
        assert output.logits[0].dtype == given


@pytest.mark.parametrize("how", [
    {}, {"do_sample": True}, {"do_sample": True, "top_p": 0.5}, {"num_beams": 2}])
def test_where_all_are_forbidden_it_says_so(how):
    with pytest.raises(ConfigError, match=r"no token is left|found only 0 different continuations"):
        generate(Hashed(4), [[1, 2]], no_repeat_ngram_size=1, max_new_tokens=20, **how)


@pytest.mark.parametrize("how", [
    {}, {"do_sample": True}, {"do_sample": True, "top_p": 0.5}, {"num_beams": 2}])
def test_a_model_that_gives_no_numbers_is_told_and_not_taken_for_one_that_says_token_0(how):
    with pytest.raises(CheckpointError, match="a score that is no number"):
        generate(fixed(0, 1, np.nan, 2, -np.inf, 0), [[1, 2]], max_new_tokens=2, **how)


def test_a_streamer_gets_the_prompts_then_each_steps_tokens_then_the_end():
    class Recorder(list):
        def put(self, value):
            self.append(value.tolist())

        def end(self):
            self.append("end")

    told = Recorder()
    generate(counting, [[3], [6]], max_new_tokens=3, eos_token_id=8, pad_token_id=1, streamer=told)
    assert told == [[[3], [6]], [4, 7], [5, 8], [6, 1], "end"]
    told.clear()
    generate(counting, [[3]], max_new_tokens=1, do_sample=True, top_k=1, num_return_sequences=2,
             streamer=told)
    assert told == [[[3], [3]], [4, 4], "end"]


@pytest.mark.parametrize("settings", [{}, {"num_beams": 2}, {"attention_mask": [[0, 1]]}], ids=repr)
def test_after_unsigned_and_narrow_ids_may_come_any(settings):
    downwards = Function(lambda tokens, kv_cache=None, mask=None: 5.0 * np.eye(300)[tokens[:, -1] - 2])
    downwards.next_logits = downwards.function             # padding or none
    for dtype in ("uint8", "int8", "uint16"):
        result = generate(downwards, np.array([[9, 1]], dtype), max_new_tokens=2, **settings)
        assert result.dtype == np.int64 and result.tolist() == [[9, 1, 299, 297]]


@pytest.mark.parametrize("prompt", [[], [[]], [3], np.zeros((0, 2), int), np.zeros((1, 2, 3), int)])
def test_a_prompt_without_a_token_or_a_batch_is_refused(prompt):
    with pytest.raises(ConfigError, match="at least one token"):
        generate(counting, prompt, max_new_tokens=3)


def test_a_negative_number_of_tokens_is_refused():
    with pytest.raises(ConfigError, match="max_new_tokens must be at least 0, .* not -1"):
        generate(counting, [[1]], max_new_tokens=-1)


def test_sampling_settings_are_checked():
    with pytest.raises(ConfigError, match="temperature"):
        generate(counting, [[1]], max_new_tokens=1, do_sample=True, temperature=0.0)


def test_a_prompt_outside_the_vocabulary_is_refused():
    with pytest.raises(DataError, match="token 11 is not in the vocabulary of 11"):
        small_gpt().generate(np.array([[11]]), 1)
