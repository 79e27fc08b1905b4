import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from npgpt import errors
from npgpt.tokenizers import CharacterTokenizer


def test_ids_are_places_in_the_sorted_set_of_characters():
    tokenizer = CharacterTokenizer.train(["ba\n", "éb", "😀"])
    assert tokenizer.encode("\nabé😀") == [0, 1, 2, 3, 4]
    assert tokenizer.vocab_size == 5
    assert tokenizer.eos_token_id is None
    assert tokenizer.special_tokens == {}
    assert CharacterTokenizer.train("cab").encode("abc") == [0, 1, 2]


@given(st.text(min_size=1))
def test_any_text_round_trips(text):
    tokenizer = CharacterTokenizer.train([text])
    ids = tokenizer.encode(text, allowed_special="all")
    assert ids == tokenizer.encode_ordinary(text)
    assert len(ids) == len(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode(np.array(ids)) == text
    assert list(tokenizer.decode_stream(iter(ids))) == list(text)


def test_an_unknown_character_is_named_with_its_place():
    tokenizer = CharacterTokenizer.train(["hello world"])
    with pytest.raises(errors.TokenizerError, match=r"'é' \(U\+00E9\) at position 7 .* 8 "):
        tokenizer.encode("hello wé")
    with pytest.raises(errors.TokenizerError, match=r"'\\t' \(U\+0009\) at position 0"):
        tokenizer.encode("\t")


def test_surrogates_are_read_as_the_other_tokenizer_reads_them():
    tokenizer = CharacterTokenizer.train(["a\ud83d\ude00\ud83d"])
    assert tokenizer.vocab_size == 3
    assert tokenizer.decode(tokenizer.encode("\ud83d\ude00\udcffa")) == "😀\ufffda"


@pytest.mark.parametrize("ids", [[0, 2], [-1], [None], [[0]]])
def test_an_id_outside_the_vocabulary_is_refused(ids):
    tokenizer = CharacterTokenizer.train(["ab"])
    with pytest.raises(errors.TokenizerError, match=r"is not in the vocabulary: .* 0 to 1"):
        tokenizer.decode(ids)
    with pytest.raises(errors.TokenizerError, match="is not in the vocabulary"):
        list(tokenizer.decode_stream(ids))


def test_what_makes_no_tokenizer_is_refused():
    with pytest.raises(errors.TokenizerError, match="the text is empty"):
        CharacterTokenizer.train(["", ""])
    with pytest.raises(errors.TokenizerError, match="twice"):
        CharacterTokenizer("aba")
    with pytest.raises(errors.TokenizerError, match="text as str, not bytes"):
        CharacterTokenizer.train([b"bytes"])
    for odd in ("ab", "", 1):
        with pytest.raises(errors.TokenizerError, match=f"made of single characters, not {odd!r}: its train"):
            CharacterTokenizer(["c", odd])
