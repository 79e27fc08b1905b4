import json
import random
from pydoc_data.topics import topics

import bpe_reference
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lines_executed import lines_executed

from npgpt import errors
from npgpt.tokenizers import BPETokenizer, byte_pair_training
from npgpt.tokenizers.byte_pair_training import count_pieces, learn_merges

ENGLISH = topics["class"] + topics["exprlists"]

# Few different letters: many ties, overlapping pairs (aaa), pairs that vanish, pairs of a token with itself.
dense_text = st.text(alphabet="aab ", max_size=60) | st.text(alphabet="ab!cdé'\n 1!", max_size=60)


@settings(max_examples=300, deadline=None)
@given(st.lists(dense_text, max_size=4), st.integers(0, 40))
def test_merges_are_those_of_the_definition(texts, number):
    assert learn_merges(count_pieces(texts, "gpt2"), number) == bpe_reference.train(texts, number)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.text(max_size=20), max_size=3))
def test_merges_of_any_text_are_those_of_the_definition(texts):
    clean = [text.encode("utf-8", "ignore").decode() for text in texts]
    assert learn_merges(count_pieces(clean, "gpt2"), 30) == bpe_reference.train(clean, 30)


def test_merges_of_english_are_those_of_the_definition():
    text = topics["assert"] + topics["break"] + topics["in"]
    assert learn_merges(count_pieces([text], "gpt2"), 80) == bpe_reference.train([text], 80)


def test_a_tie_goes_to_the_smaller_left_id_then_to_the_smaller_right_id():
    def first_merge(text):
        tokenizer = BPETokenizer.train([text], 258)
        return tokenizer.token_bytes(256)

    assert first_merge("zy\nab") == b"ab"
    assert first_merge("az\nab") == b"ab"
    assert first_merge("\t\t\nab") == b"ab"                 # ids decide, not bytes: tab is 197, "a" is 64,
    assert first_merge("\x00\x00\nÿ") == "ÿ".encode()       # byte 0x00 is 188, the first byte of "ÿ" 127


def test_merges_agree_with_hugging_face():
    pytest.importorskip("tokenizers.models")                # this folder is called "tokenizers" too
    import tokenizers

    text = "".join(topics[name] for name in sorted(topics)[:25])
    theirs = tokenizers.Tokenizer(tokenizers.models.BPE())
    theirs.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    theirs.train_from_iterator([text], tokenizers.trainers.BpeTrainer(
        vocab_size=1500, special_tokens=["<|endoftext|>"], show_progress=False,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet()))
    pairs = [tuple(merge) for merge in json.loads(theirs.to_str())["model"]["merges"]]
    ours = BPETokenizer.train([text], 1500)
    symbol = {id: byte_symbol(byte) for id, byte in enumerate(bpe_reference.BYTES)}
    for new, (left, right) in enumerate(ours.merges, start=256):
        symbol[new] = symbol[left] + symbol[right]
    assert len(pairs) == 1500 - 257
    assert [(symbol[left], symbol[right]) for left, right in ours.merges] == pairs


def byte_symbol(byte):
    hidden = bpe_reference.BYTES[188:]
    return chr(0x100 + hidden.index(byte)) if byte in hidden else chr(byte)


def test_the_order_of_the_texts_does_not_matter():
    lines = topics["class"].splitlines(keepends=True)
    pieces = count_pieces(lines, "gpt2")
    expected = learn_merges(pieces, 200)
    shuffled = list(pieces.items())
    for seed in range(3):
        random.Random(seed).shuffle(shuffled)
        assert learn_merges(dict(shuffled), 200) == expected


def test_pieces_are_counted_over_all_texts_and_never_joined():
    assert count_pieces(["ab ab", "ab"], "gpt2") == {b"ab": 2, b" ab": 1}
    assert count_pieces("ab ab", "gpt2") == {b"ab": 1, b" ab": 1}           # a str is one text, not five
    assert count_pieces(["\ud83d\ude00"], "gpt2") == {"😀".encode(): 1}       # two halves of a character
    assert count_pieces(["\ud83d"], "gpt2") == {"\ufffd".encode(): 1}


@pytest.mark.parametrize("workers", [1, 2])
def test_texts_are_counted_alike_in_batches_and_by_several_processes(workers, monkeypatch):
    texts = [ENGLISH + "\n" + ENGLISH, "short", "", ENGLISH[:5000], "é\nx" * 3000]
    whole = count_pieces(texts, "gpt2")
    monkeypatch.setattr(byte_pair_training, "BATCH", 2000)
    assert len(list(byte_pair_training._batches(texts))) > 10
    assert max(len(batch) for batch in byte_pair_training._batches(["a", "b"] * 1500)) == 2000
    assert count_pieces(texts, "gpt2", workers) == whole
    assert count_pieces(iter(["a b"]), "gpt2", workers) == {b"a": 1, b" b": 1}
    assert BPETokenizer.train(texts, 400, workers=workers).merges == BPETokenizer.train(texts, 400).merges


def test_an_error_in_the_texts_comes_out_of_several_processes(monkeypatch):
    def texts():
        yield from ["x" * 100] * 50
        raise ValueError("the disk is gone")
    monkeypatch.setattr(byte_pair_training, "BATCH", 100)
    with pytest.raises(ValueError, match="the disk is gone"):
        count_pieces(texts(), "gpt2", workers=2)


def test_training_stops_where_the_text_gives_out():
    tokenizer = BPETokenizer.train(["abc"], 1000)
    assert [tokenizer.token_bytes(id) for id in range(256, 258)] == [b"ab", b"abc"]
    assert tokenizer.vocab_size == 259
    assert BPETokenizer.train([], 1000).vocab_size == 257


def test_progress_counts_the_merges():
    calls = []
    BPETokenizer.train(["abcd"], 259, progress=lambda done, wanted: calls.append((done, wanted)))
    assert calls == [(1, 2), (2, 2)]


def test_vocab_size_counts_bytes_merges_and_special_tokens():
    text = topics["class"]
    assert BPETokenizer.train([text], 300).vocab_size == 300
    assert len(BPETokenizer.train([text], 300, special_tokens=("<a>", "<b>")).merges) == 42
    assert BPETokenizer.train([text], 256, special_tokens=()).vocab_size == 256
    with pytest.raises(errors.TokenizerError, match=r"vocab_size 257 is too small.* at least 258"):
        BPETokenizer.train([text], 257, special_tokens=("<a>", "<b>"))


@pytest.mark.parametrize("letters", ["a", "ab", "abcdefghijklmnop"])
def test_training_on_one_huge_piece_is_linear(letters):
    def lines(n):
        piece = bytes(random.Random(0).choices(letters.encode(), k=n))
        return lines_executed(lambda: learn_merges({piece: 1}, 300))

    assert lines(6000) <= 2.5 * lines(3000)
    assert lines(6000) <= 60 * 6000


def test_bad_arguments_are_refused_before_the_texts_are_read():
    def unread():
        raise AssertionError("the texts were read")
        yield

    for arguments, reason in [({"pattern": "gpt5"}, "unknown split pattern 'gpt5'"),
                              ({"special_tokens": ("<a>", "<a>")}, "'<a>' is given twice"),
                              ({"special_tokens": ("",)}, "'' is not a non-empty"),
                              ({"special_tokens": ("\ud800",)}, "is not a non-empty piece of text"),
                              ({"special_tokens": "<a>"}, "single string '<a>'"),
                              ({"special_tokens": ("Ġ",)}, "also how vocab.json writes"),
                              ({"vocab_size": 100}, "vocab_size 100 is too small"),
                              ({"vocab_size": "300"}, "vocab_size must be a whole number, not '300'"),
                              ({"vocab_size": 300.5}, "vocab_size must be a whole number, not 300.5")]:
        with pytest.raises(errors.TokenizerError, match=reason):
            BPETokenizer.train(unread(), **{"vocab_size": 300, **arguments})
    with pytest.raises(errors.TokenizerError, match="text as str, not bytes"):
        BPETokenizer.train([b"bytes"], 300)
