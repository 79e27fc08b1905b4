"""A text ends with the first token that completes a stop string, wherever tokens begin and end."""

import numpy as np
import pytest
from generating import Function, Hashed

from npgpt import BPETokenizer, CharacterTokenizer
from npgpt.generation.decoding import generate, stream
from npgpt.generation.settings import GenerationSettings
from npgpt.generation.stopping import Ending

TEXTS = ["the last stopper stops the stop top", "naïve café, 日本語 – ≥ 日本"]
TOKENIZER = BPETokenizer.train(TEXTS, 268)


def saying(tokens):
    """A model that says these tokens, whatever comes before, and then token 0 for ever."""
    def logits(sequences):
        n = sequences.shape[1] - 1
        return np.tile(np.eye(TOKENIZER.vocab_size)[tokens[n] if n < len(tokens) else 0], (len(sequences), 1))
    return Function(logits)


def first_completion(tokens, stops, prompt=b""):
    """By definition: after how many tokens a stop string ends in the newest, told of their bytes alone."""
    text = prompt
    for n, token in enumerate(tokens):
        before, text = len(text), text + TOKENIZER.token_bytes(token)
        if any(text.startswith(stop.encode(), i) and i + len(stop.encode()) > before
               for stop in stops for i in range(len(text))):
            return n + 1
    return len(tokens)


@pytest.mark.parametrize("stops", [
    ["stop"], ["stops"], ["op t"], [" "], ["日本語"], ["é, 日"], ["≥"], ["never"], ["top", "ast"],
    ["the last stopper stops the"], ["p"], ["語 –", "top"]])
@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("whole", [True, False], ids=["merged", "bytes"])
def test_a_text_ends_with_the_first_token_that_completes_a_stop_string(text, stops, whole):
    tokens = TOKENIZER.encode(text)
    if not whole:
        tokens = [TOKENIZER.encode_bytes(bytes([byte]))[0] for byte in text.encode()]
    assert len(tokens) > 10
    result = generate(saying(tokens), [[TOKENIZER.eos_token_id]], stop_strings=stops, tokenizer=TOKENIZER,
                      max_new_tokens=len(tokens))[0, 1:].tolist()
    assert result == tokens[:first_completion(tokens, stops)]


def test_a_stop_string_begun_in_the_prompt_ends_and_one_that_is_in_it_does_not():
    tokens = [TOKENIZER.encode_bytes(letter)[0] for letter in (b"y", b"x", b"y", b"z")]
    for prompt, length in ((b"<", 3), (b"<x", 1), (b"xy", 3), (b"x<", 3)):
        ids = TOKENIZER.encode_bytes(prompt)
        model = Function(lambda s, ids=ids: np.eye(300)[[tokens[s.shape[1] - len(ids)]]])
        result = generate(model, [ids], stop_strings="xy", tokenizer=TOKENIZER, max_new_tokens=4)
        assert result.shape[1] - len(ids) == length, prompt


def test_a_stop_string_inside_the_token_before_does_not_end():
    ids = TOKENIZER.encode(" stop")
    inside = TOKENIZER.token_bytes(ids[-1]).decode()[:-1]
    assert len(inside) > 1
    result = generate(saying([0, 0, 5, 6, 7]), [ids], stop_strings=inside, tokenizer=TOKENIZER,
                      max_new_tokens=3)
    assert result.shape == (1, len(ids) + 3)


def test_characters_stop_as_well():
    tokenizer = CharacterTokenizer("abé")
    ending = Ending(GenerationSettings(stop_strings=["éa", "ab"]), tokenizer)
    sequences = np.array([[0, 2], [2, 1], [-1, 2], [2, -1], [2, 0]])
    new = np.array([0, 0, 0, 0, 1, 1])
    assert ending(sequences, [0, 1, 2, 3, 0, 4], new).tolist() == [True, False, True, False, False, True]


def test_each_row_ends_for_itself_and_by_its_end_or_a_string():
    tokenizer = CharacterTokenizer("abcdefghijk")
    counting = Function(lambda tokens: 5.0 * np.eye(11)[(tokens[:, -1] + 1) % 11])
    settings = {"stop_strings": ["de", "jk"], "tokenizer": tokenizer, "eos_token_id": 7, "max_new_tokens": 6}
    assert generate(counting, [[1], [5], [8]], pad_token_id=0, **settings).tolist() == [
        [1, 2, 3, 4], [5, 6, 7, 0], [8, 9, 10, 0]]
    assert generate(counting, [[1], [8]], **settings).tolist() == [[1, 2, 3, 4], [8, 9, 10, 7]]
    assert [new.tolist() for new in stream(counting, [[1]], **settings)] == [[2], [3], [4]]


def test_beams_end_with_stop_strings():
    """A search over all continuations of one letter or two: those with an a end there."""
    tokenizer, model = CharacterTokenizer("abc"), Hashed(3)
    output = generate(model, [[1]], num_beams=12, num_return_sequences=7, max_new_tokens=2, stop_strings="a",
                      tokenizer=tokenizer, pad_token_id=2, length_penalty=0.0)
    several = {(i, j) for i in (1, 2) for j in (0, 1, 2)}
    assert {tuple(row) for row in output[:, 1:].tolist()} == {(0, 2), *several}


def test_beams_that_have_all_ended_do_not_go_on():
    tokenizer, model = CharacterTokenizer("ab"), Hashed(2)
    result = generate(model, [[1]], num_beams=2, num_return_sequences=2, max_new_tokens=3,
                      stop_strings=["a", "b"], tokenizer=tokenizer, pad_token_id=0, length_penalty=5.0)
    assert sorted(result.tolist()) == [[1, 0], [1, 1]] and len(model.read) == 1
