"""Long texts, encoded on arrays, get the ids that they get piece by piece."""

import copy
import itertools
import pickle
import random
import sys
from concurrent.futures import ThreadPoolExecutor
from pydoc_data.topics import topics

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from npgpt.tokenizers import BPETokenizer, array_encoding, array_split, byte_pair
from npgpt.tokenizers.array_split import piece_starts
from npgpt.tokenizers.array_table import ArrayTable
from npgpt.tokenizers.patterns import SPLIT_PATTERNS, splitter

ENGLISH = "\n".join(topics[name] for name in ("class", "exprlists", "types", "specialnames", "import"))
AWKWARD = (" \n\t\r\x0b\x1c\x1f\x85\xa0\u3000'’sdmtlvreST.,-09²½٣éǅ中文😀\u0301\u200b"
           "\x00\x7f\x80\u07ff\u0800\uffff\U00010000")


@pytest.fixture(scope="module")
def tokenizer():
    return BPETokenizer.train([ENGLISH, AWKWARD * 9, "don't we've you'll " * 9], 900)


@pytest.fixture
def always(monkeypatch):
    """However short a text is, it is encoded on arrays."""
    monkeypatch.setattr(byte_pair, "LONG_TEXT", 1)


def pieces(text, pattern):
    starts = piece_starts(text, pattern).tolist()
    return [text[start:end] for start, end in zip(starts, [*starts[1:], len(text)], strict=True)]


# Pieces

@settings(max_examples=1000)
@given(st.text(AWKWARD, min_size=1, max_size=30) | st.text(min_size=1, max_size=30)
       | st.text(" 'sdmtlLvrea\n", min_size=1, max_size=12)
       | st.text(" \n\r\t/.aA1", min_size=1, max_size=14)
       | st.text("aAbB'sS中ǅ", min_size=1, max_size=12))
def test_a_text_is_cut_as_by_the_pattern(text):
    for pattern in SPLIT_PATTERNS:
        assert pieces(text, pattern) == splitter(pattern)(text), pattern


@pytest.mark.parametrize("pattern", SPLIT_PATTERNS)
@pytest.mark.parametrize("ending", ["s", "d", "m", "t", "ll", "ve", "re", "l", "v", "S", "lL", "ſ", "é", "sé",
                                    "l\u6c6c", "R\u6c65"])
def test_an_ending_is_cut_off_where_the_pattern_does(pattern, ending):
    texts = [f"{before}'{ending}{after}"
             for before in ("", "it", "it ", "1", "é", "'", ".", "\n", " ", "\xa0")
             for after in ("", "x", " x", "'s", "1", ".", "\n\n", "é", "X", "'ll'd", "'re'vex")]
    for text in [*texts, "".join(texts)]:
        assert pieces(text, pattern) == splitter(pattern)(text)


@pytest.mark.parametrize("pattern", SPLIT_PATTERNS)
def test_every_short_text_is_cut_as_by_the_pattern(pattern):
    """Every one there is of a few characters."""
    for alphabet, longest in ((" \n.a", 5), ("/\n.a", 5), ("'sAa", 5), ("1 a", 7), ("\u0301.aA", 4),
                              ("\t/.'1sA", 3)):
        for size in range(1, longest + 1):
            for characters in itertools.product(alphabet, repeat=size):
                text = "".join(characters)
                assert pieces(text, pattern) == splitter(pattern)(text)


@pytest.mark.parametrize("pattern", SPLIT_PATTERNS)
def test_every_character_is_of_its_kind(pattern, monkeypatch):
    """Beyond plane 1 every 97th: it is all ideographs and private use."""
    points = [*range(0xD800), *range(0xE000, 0x20000), *range(0x20000, sys.maxunicode + 1, 97)]
    random.Random(0).shuffle(points)
    text   = "".join(map(chr, points))
    assert pieces(text, pattern) == splitter(pattern)(text)
    monkeypatch.delattr(array_split, "_cut_in_stretches")                     # in these words none is rare
    text   = "".join(f"A{chr(point)}b " for point in points)
    assert pieces(text, pattern) == splitter(pattern)(text)


@pytest.mark.parametrize("rare", ["中A", "中aA", "a\u0301A", "A\u0301", "\u0301", ".\u0301A", " \u0301a",
                                  "1\u0301"])
def test_rare_words_are_cut_by_the_pattern_itself(rare, monkeypatch):
    monkeypatch.setattr(array_split, "RARE_STRETCH", 500)
    for text in (rare, rare * 3, rare + ENGLISH[:2000], ENGLISH[:2000] + rare,
                 f"{rare}\n".join(ENGLISH[:5000:50])):
        assert pieces(text, "o200k") == splitter("o200k")(text)


# The table

@pytest.mark.parametrize("values", [3, 40, 2**64])
def test_a_table_numbers_its_keys(values):
    """Few values: the same key comes often. Many: they fall all over the table."""
    draw = np.random.default_rng(0)
    for capacity in (1, 2, 5, 100, 1000):
        table, known = ArrayTable(capacity), {}
        for _ in range(8):
            first  = draw.integers(0, values, capacity, np.uint64, endpoint=values < 2**64)
            second = draw.integers(1, values, capacity, np.uint64)
            keys   = list(zip(first.tolist(), second.tolist(), strict=True))
            assert table.find(first, second).tolist() == [known.get(key, -1) for key in keys]
            new = [n for n, key in enumerate(keys) if key not in known]
            if len(known) + len({keys[n] for n in new}) > capacity:
                break
            added = table.add(first[new], second[new])
            for number, place in enumerate(added.tolist(), len(known)):
                assert known.setdefault(keys[new[place]], number) == number
            assert table.count == len(known)
            assert table.find(first, second).tolist() == [known[key] for key in keys]


def test_keys_that_fall_on_one_slot_are_all_found(monkeypatch):
    monkeypatch.setattr("npgpt.tokenizers.array_table.MIX", np.uint64(0))
    table = ArrayTable(40)
    first, second = np.arange(20, dtype=np.uint64), np.full(20, 7, np.uint64)
    for part in (slice(0, 12), slice(12, 20)):
        table.add(first[part], second[part])
    numbers = table.find(np.array([*range(20), 20, 0], np.uint64), np.array([7] * 21 + [8], np.uint64))
    assert sorted(numbers[:20].tolist()) == list(range(20)) and numbers[20:].tolist() == [-1, -1]


# Merges

@pytest.mark.parametrize("alphabet", ["ab", "aeinorst lé", AWKWARD])
def test_pieces_are_merged_together_as_each_alone(tokenizer, alphabet):
    draw  = random.Random(1)
    words = [draw.choice(ENGLISH.split()).encode()[:15] if n % 2 else
             "".join(draw.choices(alphabet, k=draw.randrange(1, 16))).encode()[:15] for n in range(2000)]
    sizes = list(map(len, words))
    data  = np.frombuffer(b"".join(word.ljust(15, b"e") for word in words), np.uint8)
    ids, counts = tokenizer._arrays._merger.merge(data.reshape(-1, 15).T, np.array(sizes))
    expected = [tokenizer._merge([tokenizer._byte_ids[byte] for byte in word]) for word in words]
    assert counts.tolist() == list(map(len, expected))
    assert ids.tolist() == [id for part in expected for id in part]
    assert {1, 15} <= set(sizes) and 1 in counts and max(counts) > 9


# Texts

@settings(max_examples=300)
@given(st.text(AWKWARD, min_size=1, max_size=60) | st.text(min_size=1)
       | st.lists(st.text("ab\x00é", min_size=5, max_size=20), min_size=1).map(" ".join))
def test_a_text_gets_the_ids_of_its_pieces(tokenizer, text):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(byte_pair, "LONG_TEXT", 1)
        assert tokenizer.encode_ordinary(text) == tokenizer._encode_pieces(text)


@pytest.mark.parametrize("size", [1, 7, 8, 9, 14, 15, 16, 17, 24, 40])
def test_pieces_of_any_size_are_told_apart(tokenizer, always, size):
    """Also by a last byte of 0, of which there is none in a shorter one."""
    words = [word[:size - 1] + end for word in ("abstract" * 5, "abstracz" * 5, "zzzzzzzz" * 5, "\x00" * 40)
             for end in "ab\x00"]
    text  = "".join(f"{word}1" for word in words * 2)
    assert tokenizer.encode_ordinary(text) == tokenizer._encode_pieces(text)


@pytest.mark.parametrize("at_once", [1, 50, 1 << 16])
def test_a_full_table_starts_anew_and_nothing_changes(tokenizer, monkeypatch, at_once):
    monkeypatch.setattr(array_encoding, "CAPACITY", 60)
    monkeypatch.setattr(array_encoding, "AT_ONCE", min(at_once, 60))
    for merges_first in (True, False):
        other = BPETokenizer(tokenizer.merges, ignore_merges=not merges_first)
        text  = ENGLISH[:20_000]
        assert other.encode_ordinary(text) == other._encode_pieces(text)
        table = other._arrays._table
        assert 0 < table.count <= table.capacity == 60 + len(other._arrays._token_ids)
        assert len(other._arrays._ends) == table.count + 1


def test_a_long_document_is_encoded_on_arrays_and_in_stretches(tokenizer, monkeypatch):
    seen   = []
    encode = array_encoding.ArrayEncoder.encode
    monkeypatch.setattr(array_encoding.ArrayEncoder, "encode", lambda self, text: seen.append(text)
                        or encode(self, text))
    monkeypatch.setattr(byte_pair, "STRETCH", 3000)
    text = ENGLISH + "x1" * 15_000 + "\nIt is \udcff no text\n" + "It is.\n" * 2000
    ids  = tokenizer._encode_clean(text)
    assert ids == tokenizer._encode_pieces(text)
    assert len(seen) > 5 and all(3000 <= len(part) <= 12_000 for part in seen[:-1])
    assert 10_000 < len("".join(seen)) < len(text) - 30_000                   # the others go piece by piece
    assert not any("\udcff" in part or "x1x1" in part for part in seen)
    seen.clear()
    tokenizer.encode(ENGLISH[:5999])
    assert not seen


@pytest.mark.parametrize("pattern", SPLIT_PATTERNS)
def test_every_pattern_gives_its_ids(tokenizer, pattern):
    other = BPETokenizer(tokenizer.merges, pattern=pattern)
    for text in (ENGLISH, AWKWARD * 300, (ENGLISH[:3000] + AWKWARD) * 5):
        assert other.encode_ordinary(text) == other._encode_pieces(text)


def test_a_token_is_taken_whole_only_where_merges_are_ignored(always):
    """To most of these tokens no merges lead."""
    letters    = BPETokenizer(()).vocabulary
    a, b       = (next(id for id, data in letters.items() if data == letter) for letter in (b"a", b"b"))
    vocabulary = letters | {256: b"ab", 257: b"abc", 258: b"abc" * 5, 259: b"abc" * 5 + b"d", 260: b"abca"}
    for token in range(257, 261):
        whole, merged = (BPETokenizer([(a, b)], vocabulary=vocabulary, ignore_merges=ignore)
                         .encode(vocabulary[token].decode()) for ignore in (True, False))
        assert whole == [token] and token not in merged and merged[0] == 256


def test_bytes_without_a_token_are_left_out(always):
    vocabulary = {id: data for id, data in BPETokenizer(()).vocabulary.items() if data != b"\x00"}
    tokenizer  = BPETokenizer((), vocabulary=vocabulary)
    assert tokenizer.decode(tokenizer.encode("a\x00b\x00")) == "ab"


def test_threads_share_a_tokenizer(tokenizer, always):
    other = BPETokenizer(tokenizer.merges)
    texts = [ENGLISH[start:start + 2000] for start in range(0, 40_000, 1000)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(other.encode_ordinary, texts)) == list(map(tokenizer._encode_pieces, texts))


def test_a_tokenizer_that_has_encoded_a_long_text_can_be_copied_and_pickled(tokenizer):
    ids = tokenizer.encode(ENGLISH)
    for other in (copy.copy(tokenizer), copy.deepcopy(tokenizer), pickle.loads(pickle.dumps(tokenizer))):
        assert other.encode(ENGLISH) == ids and other._arrays is not tokenizer._arrays
        assert vars(other).keys() == vars(tokenizer).keys()


def test_all_that_a_tokenizer_is_made_of_is_copied():
    one = BPETokenizer([(220, 83)], {"<s>": 400}, "qwen2", ignore_merges=True, prefix_token="<s>",
                       normalizer="NFC", added_tokens={"<think>": 401})
    other = pickle.loads(pickle.dumps(one))
    assert other._parts() == one._parts() and other.prefix == (400,)
    assert other.encode(" t<think>e\u0301") == one.encode(" t<think>e\u0301")
