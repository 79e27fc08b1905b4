import random
import re
from pathlib import Path
from pydoc_data.topics import topics

import bpe_reference
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lines_executed import lines_executed

from npgpt import errors
from npgpt.tokenizers import BPETokenizer, byte_pair

ENGLISH = topics["class"] + topics["exprlists"] + topics["types"]
MANY_SCRIPTS = ("naïve café — Zażółć gęślą jaźń · Привет, мир! · 你好,世界 · 🤖👩‍🚀 ½ ٣ "
                "a\u0301 \u2003\u3000x\x00\x1c\r\n")
GPT2_FILES = Path(__file__).parents[2].parent / "shared/data/gpt2"
EOT = "<|endoftext|>"


@pytest.fixture(scope="module")
def tokenizer():
    return BPETokenizer.train([ENGLISH, MANY_SCRIPTS * 20], 700)


# Ids

def test_ids_are_numbered_as_in_gpt2(tokenizer):
    assert [tokenizer.token_bytes(id) for id in (0, 64, 93, 94, 187, 188, 198, 220, 255)] == [
        b"!", b"a", b"~", b"\xa1", b"\xff", b"\x00", b"\n", b" ", b"\xad"]
    assert sorted(tokenizer.token_bytes(id) for id in range(256)) == [bytes([byte]) for byte in range(256)]
    assert tokenizer.vocab_size == 700
    assert tokenizer.special_tokens == {EOT: 699}
    assert tokenizer.eos_token_id == 699
    assert tokenizer.token_bytes(699) == EOT.encode()
    assert BPETokenizer((), special_tokens=("<a>", EOT)).eos_token_id == 257
    assert BPETokenizer((), special_tokens=("<a>",)).eos_token_id is None


@pytest.mark.parametrize("merges, reason", [
    ([(64, 65), (64, 257)], "merge 1 joins the tokens 64 and 257, but only the tokens 0 to 256"),
    ([(64, -1)], "merge 0 joins the tokens 64 and -1"),
    ([(64, 65), (64, 65)], "merge 1 makes the token b'ab' a second time"),
    ([(64, 65), (65, 66), (64, 257), (256, 66)], "merge 3 makes the token b'abc' a second time")])
def test_merges_that_make_no_tokenizer_are_refused(merges, reason):
    with pytest.raises(errors.TokenizerError, match=reason):
        BPETokenizer(merges)


# Encoding

dense_text = st.text(alphabet="aab ", max_size=60) | st.text(alphabet="ab!cdé'\n 1!", max_size=60)
mixed_text = st.text(alphabet=MANY_SCRIPTS + "'s't're the\t\n  ", max_size=60)
any_text = st.text(max_size=60) | mixed_text | dense_text


@settings(max_examples=200, deadline=None)
@given(st.lists(dense_text, min_size=1, max_size=3), st.integers(0, 30), dense_text)
def test_encoding_applies_the_merges_in_their_order(texts, number, text):
    tokenizer = BPETokenizer(bpe_reference.train(texts, number))
    assert tokenizer.encode(text) == bpe_reference.encode(text, tokenizer.merges)


def test_encoding_any_text_applies_the_merges_in_their_order(tokenizer):
    for text in (MANY_SCRIPTS, topics["assert"][:999], "aaa  bbb\n\n\n  ccc'll 12,345.67 ()[]\t\t.", "", " "):
        assert tokenizer.encode(text) == bpe_reference.encode(text, tokenizer.merges)


@settings(max_examples=60, deadline=None)
@given(any_text)
def test_ids_are_tiktokens(gpt2, text):
    ours, theirs = gpt2
    assert ours.encode_ordinary(text) == theirs.encode_ordinary(text)


def test_ids_of_whole_documents_and_of_many_characters_are_tiktokens(gpt2):
    ours, theirs = gpt2
    sample = random.Random(0).sample([c for c in range(0x30000) if not 0xD800 <= c < 0xE000], 3000)
    assigned_long_ago = "".join(f"a{chr(c)} {chr(c)}1" for c in sample if chr(c).isprintable())
    spaces = "".join(f"a{chr(c)}{chr(c)}b {chr(c)}" for c in range(0x3001) if not chr(c).isprintable())
    for text in (ENGLISH, MANY_SCRIPTS, assigned_long_ago, spaces.encode("utf-8", "ignore").decode()):
        ids = ours.encode_ordinary(text)
        assert ids == theirs.encode_ordinary(text)
        assert ours.decode(ids) == text


def test_ids_are_hugging_faces(gpt2):
    pytest.importorskip("tokenizers.models")                # this folder is called "tokenizers" too
    import tokenizers

    theirs = tokenizers.Tokenizer(tokenizers.models.BPE.from_file(
        str(GPT2_FILES / "encoder.json"), str(GPT2_FILES / "vocab.bpe")))
    theirs.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    for text in (ENGLISH, MANY_SCRIPTS):
        assert gpt2[0].encode_ordinary(text) == theirs.encode(text).ids


@pytest.mark.parametrize("text", ["a\ud83d\ude00b", "a\ud83db", "\ude00\ud83d", "\udc80 \udcff", "x\ud800"])
def test_surrogates_pair_up_or_become_the_replacement_character_as_in_tiktoken(text, tokenizer, request):
    repaired = re.sub("[\ud800-\udfff]", "\ufffd", text.replace("\ud83d\ude00", "😀"))
    assert tokenizer.encode(text) == tokenizer.encode_ordinary(text) == tokenizer.encode(repaired)
    assert tokenizer.decode(tokenizer.encode(text)) == repaired
    ours, theirs = request.getfixturevalue("gpt2")
    assert ours.encode(text) == theirs.encode(text)


@pytest.mark.parametrize("text", ["a" * 3000, "^" * 3000, " " * 3000, "\n" * 3000, "aab" * 1000])
def test_encoding_one_huge_piece_is_linear(text):
    tokenizer = BPETokenizer.train([text[:400], "ab cd " * 3], 280)

    def lines(n):
        return lines_executed(lambda: tokenizer.encode_ordinary(text[:n]))

    assert lines(3000) <= 2.5 * lines(1500)
    assert lines(3000) <= 30 * 3000


def test_short_and_long_pieces_are_merged_alike(tokenizer, monkeypatch):
    merges, draw = tokenizer.merges, random.Random(0)
    pieces = ["".join(draw.choices("aeinorst lé", k=draw.randrange(1, 51))) for _ in range(2000)]
    by_list, by_heap = BPETokenizer(merges), BPETokenizer(merges)
    ids = [by_list._encode_piece(piece) for piece in pieces]
    monkeypatch.setattr(byte_pair, "SHORT", 0)
    assert ids == [by_heap._encode_piece(piece) for piece in pieces]
    assert any(len(piece) > 45 for piece in pieces)


def test_the_token_of_id_0_is_kept_in_a_long_piece():
    assert BPETokenizer([(1, 1)]).encode("!" * 999) == [0] * 999


def test_the_cache_changes_nothing_and_stays_bounded(monkeypatch):
    monkeypatch.setattr(byte_pair.PieceCache, "LARGEST", 10)
    tokenizer = BPETokenizer.train([ENGLISH], 500)
    ids = tokenizer.encode(ENGLISH)
    assert len(tokenizer._ids_of_piece) <= 10 and len(tokenizer._ids_of_piece._old) <= 10
    assert tokenizer.encode(ENGLISH) == ids == bpe_reference_pieces(tokenizer, ENGLISH)
    tokenizer._ids_of_piece.clear()
    tokenizer.encode("x" * 65)
    assert not tokenizer._ids_of_piece


def bpe_reference_pieces(tokenizer, text):
    """Every piece encoded alone by a tokenizer that has seen nothing before."""
    pieces = bpe_reference.GPT2.findall(text)
    fresh = {piece: BPETokenizer(tokenizer.merges).encode(piece) for piece in sorted(set(pieces))[:50]}
    return [id for piece in pieces for id in fresh.get(piece) or tokenizer.encode(piece)]


def test_a_trained_tokenizer_takes_whole_pieces_first_and_gets_the_ids_of_the_merges(tokenizer):
    assert tokenizer.ignore_merges
    by_merges = BPETokenizer(tokenizer.merges)
    assert not by_merges.ignore_merges
    for piece in tokenizer.vocabulary.values():
        assert tokenizer.encode_bytes(piece) == by_merges.encode_bytes(piece)


LETTERS = dict(BPETokenizer(()).vocabulary)


@pytest.mark.parametrize("arguments, reason", [
    ({"special_tokens": {"<s>": 65}}, "special token '<s>' has the id 65, which is no whole number of its"),
    ({"special_tokens": {"<s>": -1}}, "special token '<s>' has the id -1"),
    ({"special_tokens": {"<s>": "7"}}, "special token '<s>' has the id '7'"),
    ({"special_tokens": {"<s>": 256, "<t>": 256}}, "special token '<t>' has the id 256"),
    ({"vocabulary": LETTERS | {300: b"a"}}, "the token b'a' has two ids"),
    ({"merges": [(64, 65)], "vocabulary": LETTERS}, "merge 0 joins the tokens 64 and 65 to b'ab'"),
    ({"merges": [(64, 999)], "vocabulary": LETTERS}, "merge 0 joins the tokens 64 and 999")])
def test_a_vocabulary_that_makes_no_tokenizer_is_refused(arguments, reason):
    with pytest.raises(errors.TokenizerError, match=re.escape(reason)):
        BPETokenizer(**{"merges": (), **arguments})


def test_special_tokens_are_not_each_held_against_all_before_it():
    compared = 0

    class Token(str):
        __hash__ = str.__hash__

        def __eq__(self, other):
            nonlocal compared
            compared += 1
            return str.__eq__(self, other)

    tokens = [Token(f"<|{n}|>") for n in range(300)]
    assert BPETokenizer((), tokens).special_tokens[tokens[-1]] == 256 + 299
    assert compared < 10 * len(tokens)


def test_special_tokens_come_after_the_largest_id():
    assert BPETokenizer((), ("<s>", "<t>"), vocabulary=LETTERS | {400: b"ab"}).special_tokens == {
        "<s>": 401, "<t>": 402}


def test_what_encode_returns_belongs_to_the_caller(tokenizer):
    ids = tokenizer.encode("hello")
    ids.append(-5)
    assert tokenizer.encode("hello") == ids[:-1]


def test_only_text_is_encoded(tokenizer):
    for encode in (tokenizer.encode, tokenizer.encode_ordinary):
        with pytest.raises(errors.TokenizerError, match="text as str, not bytes"):
            encode(b"bytes")


# Special tokens

@pytest.fixture(scope="module")
def special():
    return BPETokenizer((), special_tokens=("<a>", "<a>b", "<c.d>"))


def test_special_tokens_are_refused_unless_the_caller_decides(special):
    A, AB, CD = 256, 257, 258

    def ordinary(text):
        return special.encode_ordinary(text)

    text = "x<a> <c.d>"
    with pytest.raises(errors.TokenizerError, match=re.escape("special token '<a>' at position 1")) as error:
        special.encode(text)
    assert "allowed_special={'<a>'}" in str(error.value)
    assert "disallowed_special=()" in str(error.value)
    with pytest.raises(errors.TokenizerError, match=re.escape("'<c.d>' at position 5")):
        special.encode(text, allowed_special={"<a>"})
    assert special.encode(text, disallowed_special=()) == ordinary(text)
    assert len(ordinary(text)) == len(text)
    assert special.encode(text, allowed_special="all") == [*ordinary("x"), A, *ordinary(" "), CD]
    assert special.encode(text, {"<a>", "<c.d>"}) == special.encode(text, allowed_special="all")
    assert special.encode(text, {"<a>"}, disallowed_special=()) == [*ordinary("x"), A, *ordinary(" <c.d>")]
    assert special.encode(text, {"<a>"}, {"<a>b"}) == [*ordinary("x"), A, *ordinary(" <c.d>")]
    with pytest.raises(errors.TokenizerError, match="'<a>' at position 1"):
        special.encode(text, allowed_special="all", disallowed_special={"<a>"})     # as in tiktoken
    assert special.encode("<a>b<a>c", allowed_special="all") == [AB, A, *ordinary("c")]     # the longer one
    assert special.encode("<cxd>") == ordinary("<cxd>")                                     # "." is a dot
    assert special.encode("<a>", allowed_special={"<a>", "<other>"}) == [A]
    assert special.encode("", allowed_special="all") == []
    assert special.decode([AB, CD, A]) == "<a>b<c.d><a>"


def test_a_single_string_is_not_mistaken_for_a_set_of_letters(special):
    with pytest.raises(errors.TokenizerError, match=r"allowed_special must be .* write {'<a>'}"):
        special.encode("<a>", allowed_special="<a>")
    with pytest.raises(errors.TokenizerError, match="disallowed_special must be"):
        special.encode("<a>", disallowed_special="<a>")


@pytest.mark.parametrize("arguments", [
    {}, {"allowed_special": "all"}, {"allowed_special": {EOT}}, {"disallowed_special": ()},
    {"allowed_special": "all", "disallowed_special": {EOT}}, {"disallowed_special": {"hello"}},
    {"allowed_special": {"hello"}}, {"allowed_special": {"hello"}, "disallowed_special": ()}])
def test_the_rules_are_tiktokens(gpt2, arguments):
    ours, theirs = gpt2
    for text in (f"{EOT}hello {EOT}{EOT} x{EOT}", "hello", f"{EOT[:-1]}  {EOT}", ""):
        try:
            expected = theirs.encode(text, **arguments)
        except ValueError:
            with pytest.raises(errors.TokenizerError):
                ours.encode(text, **arguments)
        else:
            assert ours.encode(text, **arguments) == expected


def test_a_corpus_cannot_contain_a_special_id(tokenizer):
    ids = tokenizer.encode_ordinary(f"a{EOT}b")
    assert tokenizer.eos_token_id not in ids
    assert tokenizer.decode(ids) == f"a{EOT}b"


# Round trips and decoding

@settings(max_examples=150, deadline=None)
@given(any_text)
def test_any_text_round_trips(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=60) | any_text.map(str.encode))
def test_any_bytes_round_trip(tokenizer, data):
    ids = tokenizer.encode_bytes(data)
    assert tokenizer.decode_bytes(ids) == data
    assert tokenizer.decode(ids) == data.decode("utf-8", "replace")


def test_bytes_that_are_text_are_encoded_as_that_text(tokenizer):
    assert tokenizer.encode_bytes(MANY_SCRIPTS.encode()) == tokenizer.encode(MANY_SCRIPTS)
    every_byte = bytes(range(256)) * 2
    assert tokenizer.decode_bytes(tokenizer.encode_bytes(every_byte)) == every_byte


@pytest.mark.parametrize("ids", [[0, 700], [-1], [1 << 40], [None], ["0"], [[1, 2]], np.zeros((2, 2), int)])
def test_an_id_outside_the_vocabulary_is_refused(tokenizer, ids):
    with pytest.raises(errors.TokenizerError, match=r"at position \d is not in the vocabulary.* 0 to 699"):
        tokenizer.decode(ids)
    with pytest.raises(errors.TokenizerError, match=r"at position \d is not in the vocabulary"):
        tokenizer.decode_bytes(iter(ids))
    with pytest.raises(errors.TokenizerError, match="is not in the vocabulary"):
        list(tokenizer.decode_stream(ids))
    with pytest.raises(errors.TokenizerError, match="is not in the vocabulary"):
        tokenizer.token_bytes(ids[-1])


def test_ids_may_come_from_arrays_and_iterators(tokenizer):
    ids = tokenizer.encode(MANY_SCRIPTS)
    assert tokenizer.decode(np.array(ids, np.uint16)) == tokenizer.decode(iter(ids)) == MANY_SCRIPTS


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(0, 699), max_size=30) | any_text.map(str.encode))
def test_a_stream_yields_the_text_of_decode(tokenizer, ids):
    parts = list(tokenizer.decode_stream(ids))
    assert "".join(parts) == tokenizer.decode(ids)
    assert all(parts)


def test_a_stream_yields_each_character_once_it_is_complete_and_not_before():
    tokenizer = BPETokenizer(())
    data, arrived, shown = MANY_SCRIPTS.encode(), [], ""

    def ids():
        for id in tokenizer.encode(MANY_SCRIPTS):
            assert shown == data[:len(arrived)].decode("utf-8", "ignore")
            arrived.append(id)
            yield id

    for text in tokenizer.decode_stream(ids()):
        shown += text
    assert shown == MANY_SCRIPTS
    unfinished = tokenizer.encode_bytes("é".encode()[:1])
    assert list(tokenizer.decode_stream(unfinished)) == ["\ufffd"]
