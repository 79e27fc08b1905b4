"""What cannot be is refused, in one sentence, before the model is asked anything."""

import numpy as np
import pytest
from generating import Hashed

from npgpt.errors import ConfigError
from npgpt.generation.decoding import generate, stream
from npgpt.generation.settings import GenerationSettings


class Never:
    """A model that must not be asked."""

    def new_cache(self, max_length):
        return None

    def next_logits(self, *_):
        raise AssertionError


@pytest.mark.parametrize(("settings", "words"), [
    ({"temperature": 0}, "temperature must be above 0.*do_sample=False"),
    ({"temperature": -1.0}, "temperature must be above 0"),
    ({"temperature": 1e-40}, "temperature must be above 0"),
    ({"temperature": float("nan")}, "temperature must be a number, not nan"),
    ({"top_k": -1}, "top_k must be at least 0"),
    ({"top_k": 1.5}, "top_k must be at least 0, a whole number, not 1.5"),
    ({"top_p": 0.0}, "top_p must be above 0"),
    ({"top_p": 1.1}, "at most 1"),
    ({"top_p": None}, "top_p must be a number, not None"),
    ({"min_p": -0.1}, "min_p must be at least 0 and at most 1"),
    ({"min_p": 1.1}, "min_p must be at least 0 and at most 1"),
    ({"logits_processor": [3]}, "logits_processor must be functions"),
    ({"repetition_penalty": 0.0}, "repetition_penalty must be above 0"),
    ({"temperature": 1e39}, "temperature must be at most 1e30, not 1e\\+39"),
    ({"temperature": 10**400}, "temperature must be at most 1e30, not 1000"),
    ({"repetition_penalty": 1e39}, "repetition_penalty must be at most 1e30"),
    ({"repetition_penalty": 1e-40}, "repetition_penalty must be above 0, at least 1e-30"),
    ({"length_penalty": 50.5}, "length_penalty must be from -50 to 50, not 50.5"),
    ({"length_penalty": -50.5}, "length_penalty must be from -50 to 50"),
    ({"length_penalty": "long"}, "length_penalty must be a number, not 'long'"),
    ({"no_repeat_ngram_size": -1}, "no_repeat_ngram_size must be at least 0"),
    ({"no_repeat_ngram_size": None}, "no_repeat_ngram_size must be at least 0"),
    ({"num_beams": 0}, "num_beams must be at least 1"),
    ({"num_beams": True}, "num_beams must be at least 1"),
    ({"num_beams": 999_999_999}, "num_beams must be at most 1000000, not 999999999"),
    ({"num_return_sequences": 10**30, "do_sample": True}, "num_return_sequences must be at most 1000000"),
    ({"early_stopping": "always"}, "early_stopping must be True, False or 'never'"),
    ({"do_sample": "yes"}, "do_sample must be True or False"),
    ({"seed": -1}, "seed must be at least 0"),
    ({"seed": 2**64}, "seed must be .* below 2⁶⁴"),
    ({"eos_token_id": -1}, "eos_token_id must be a token's id or several"),
    ({"eos_token_id": [1, "2"]}, "eos_token_id must be a token's id or several"),
    ({"pad_token_id": -1}, "pad_token_id must be at least 0"),
    ({"stop_strings": ["a", ""]}, "stop_strings must be a text or several, none empty"),
    ({"stop_strings": [3]}, "stop_strings must be a text"),
    ({"stop_strings": "a"}, "stop_strings need the tokenizer"),
    ({"bad_words_ids": [1, 2]}, "bad_words_ids must be a list of lists of ids"),
    ({"bad_words_ids": [[1], []]}, "bad_words_ids must be a list of lists of ids, none empty"),
    ({"bad_words_ids": [[-1]]}, "bad_words_ids must be a list of lists of ids"),
    ({"bad_words_ids": ["ab"]}, "bad_words_ids must be a list of lists of ids"),
    ({"max_new_tokens": -1}, "max_new_tokens must be at least 0"),
    ({"max_length": 2}, "max_length = 2 leaves no room after a prompt of 2 tokens"),
    ({"min_new_tokens": 3, "max_new_tokens": 2}, "min_new_tokens = 3 asks for 3 new tokens, but at most 2"),
    ({"min_length": 9, "max_length": 8}, "min_length = 9 asks for 7 new tokens, but at most 6"),
    ({"num_return_sequences": 2}, "the same text every time: set do_sample=True, or num_beams"),
    ({"num_return_sequences": 3, "num_beams": 2}, "must be at most num_beams = 2, not 3"),
    ({"output_scores": True}, "need return_dict_in_generate=True"),
    ({"output_logits": True}, "need return_dict_in_generate=True"),
    ({"num_beams": 2, "streamer": object()}, "beam search has no token to stream"),
    ({"temprature": 1.0}, "no setting 'temprature'; did you mean 'temperature'"),
    ({"xyz": 1.0}, "no setting 'xyz'$"),
])
def test_what_cannot_be_is_refused_before_the_model_is_asked(settings, words):
    with pytest.raises(ConfigError, match=words) as caught:
        generate(Never(), [[1, 2]], **settings)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("settings", [
    {"temperature": 1e-30}, {"temperature": 1e30}, {"repetition_penalty": 1e-30},
    {"repetition_penalty": 1e30}, {"length_penalty": -50}, {"length_penalty": 50}, {"top_p": 1},
    {"min_p": 0}, {"min_p": 1}, {"seed": 2**64 - 1}, {"num_beams": 10**6, "num_return_sequences": 10**6}])
def test_the_least_and_the_most_of_a_number_may_be(settings):
    GenerationSettings(**settings)


@pytest.mark.parametrize(("settings", "words"), [
    ({"num_beams": 2}, "beam search has no token to stream"), ({"temperature": 0}, "temperature"),
    ({"stop_strings": "a"}, "need the tokenizer")])
def test_a_stream_is_refused_when_it_is_asked_for(settings, words):
    with pytest.raises(ConfigError, match=words):
        stream(Never(), [[1, 2]], **settings)


@pytest.mark.parametrize(("name", "value"), [
    ("eos_token_id", 5), ("eos_token_id", [1, 5]), ("pad_token_id", 5), ("bad_words_ids", [[1], [2, 5, 1]])])
@pytest.mark.parametrize("num_beams", [1, 2])
def test_tokens_that_the_model_does_not_have_are_refused(name, value, num_beams):
    with pytest.raises(ConfigError, match=f"{name}: token 5 is not in the vocabulary of 5"):
        generate(Hashed(5), [[1, 2]], **{name: value}, num_beams=num_beams)


def test_rows_that_end_at_different_times_need_something_to_be_filled_up_with():
    with pytest.raises(ConfigError, match="filled up: say with what by pad_token_id"):
        generate(Never(), [[1], [2]], stop_strings="a", tokenizer=object())
    with pytest.raises(ConfigError, match="filled up: say with what by pad_token_id"):
        generate(Never(), [[1]], num_beams=2, num_return_sequences=2, stop_strings="a", tokenizer=object())


@pytest.mark.parametrize(("prompts", "mask", "words"), [
    ([[1, 2], [3]], None, "different lengths are filled up: say with what by pad_token_id"),
    ([[1.5]], None, "must be integers"),
    ([[1, 2], [3, 4]], [[1, 1]], r"ones of the shape of the tokens, \(2, 2\), not int64 of shape \(1, 2\)"),
    ([[1, 2]], [[1, 2]], "zeros and ones"),
    ([[1, 2]], [[1, 0]], "on the left of every prompt"),
    ([[1, 2, 3]], [[1, 0, 1]], "on the left of every prompt"),
    ([[1, 2], [3, 4]], [[0, 0], [0, 1]], "no prompt may be padding alone"),
    ([[3, -7]], [[0, 1]], "must be ids, not -7"),
])
def test_prompts_and_masks_that_cannot_be_are_refused(prompts, mask, words):
    with pytest.raises(ConfigError, match=words):
        generate(Never(), prompts, attention_mask=mask)


def test_what_lies_under_a_mask_may_be_anything():
    new = [generate(Hashed(11), [[padding, 3]], attention_mask=[[0, 1]], max_new_tokens=3)[:, 2:].tolist()
           for padding in (-100, 0)]
    assert new[0] == new[1]


def test_an_end_may_come_though_it_is_a_bad_word_but_not_at_the_end_of_one():
    settings = GenerationSettings(bad_words_ids=[[5], [2, 5], [5, 2]], eos_token_id=5)
    assert settings.bad_words == ((2, 5), (5, 2))


def test_an_empty_prompt_among_others_is_refused():
    with pytest.raises(ConfigError, match="every prompt must have at least one token"):
        generate(Never(), [[1, 2], []], pad_token_id=0)


def test_numpy_numbers_are_numbers():
    settings = GenerationSettings(max_new_tokens=np.int64(3), temperature=np.float32(0.5),
                                  eos_token_id=np.int32(2), do_sample=np.bool_(True),
                                  bad_words_ids=np.array([[2], [3]]))
    assert settings.eos_token_ids == (2,) and settings.bad_words == ((3,),) and settings.pad == 2
