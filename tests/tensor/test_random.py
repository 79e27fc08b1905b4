"""Keyed randomness: the layout of Philox's words, held to a Philox written out by hand; and its promises."""

import hashlib
import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from npgpt import GPT, GPTConfig
from npgpt.data import batches, corpora, examples
from npgpt.ops import dropout_backward, dropout_forward
from npgpt.tensor import Key
from npgpt.tensor.random import (
    BATCH_ORDER,
    BOOTSTRAP,
    CHILDREN,
    DOCUMENT_SPLIT,
    DROPOUT,
    INITIAL_VALUES,
    RECORD_SPLIT,
    ROUNDING,
    SAMPLING,
    initial_normal,
    keep_mask,
    uniform,
)

WORD = 2**64
words = st.integers(0, WORD - 1)


def philox(counter, key):
    """Philox 4×64-10 of Salmon et al. 2011: four words from a counter of four and a key of two."""
    (a, b, c, d), (k, l) = counter, key
    for _ in range(10):
        high_a, low_a = divmod(0xD2E7470EE14C6C93 * a, WORD)
        high_c, low_c = divmod(0xCA5A826395121157 * c, WORD)
        a, b, c, d = high_c ^ b ^ k, low_c, high_a ^ d ^ l, low_a
        k, l = (k + 0x9E3779B97F4A7C15) % WORD, (l + 0xBB67AE8584CAA73B) % WORD
    return a, b, c, d


def stretch(key, example, count):
    """The first `count` words of an example. NumPy counts up before it enciphers, so the first block is 1."""
    blocks = (philox((block, key.step, key.example + example, key.site), (key.seed, key.stream))
              for block in itertools.count(1))
    return list(itertools.islice(itertools.chain.from_iterable(blocks), count))


@given(key=st.tuples(words, words), counter=st.tuples(words, words, words, words))
def test_the_philox_by_hand_is_numpys(key, counter):
    number = sum(word << 64 * n for n, word in enumerate(counter)) + 1        # one counter of 256 bits
    after = [(number >> 64 * n) % WORD for n in range(4)]
    # as uint64: a list of these becomes floats where one of them is 2⁶³ or more, others being less
    numpys = np.random.Philox(key=np.array(key, np.uint64), counter=np.array(counter, np.uint64))
    assert tuple(numpys.random_raw(4).tolist()) == philox(after, key)


@given(key=st.builds(Key, words, words, words, st.integers(0, WORD - 9), words), count=st.integers(1, 11))
def test_words_of_a_key_are_laid_out_as_documented(key, count):
    for example in (0, 3):
        assert key.philox(example).random_raw(count).tolist() == stretch(key, example, count)


KEYS = [Key(0), Key(1337, step=7, example=40, site=1 + 5 * CHILDREN),
        Key(WORD - 1, SAMPLING, WORD - 1, 2**63, 2**63 + 9)]


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("shape, keep", [((3, 5, 2), 0.9), ((1, 1), 0.5), ((2, 16), 1 / 65536), ((2,), 0.25),
                                         ((4, 3, 7), 0.3), ((0, 3), 0.5), ((2, 0), 0.5)])
def test_a_mask_bit_for_bit(key, shape, keep):
    """Element i takes bits 16·(i mod 4) and up of word ⌊i/4⌋; kept if they are below keep·2¹⁶."""
    size = math.prod(shape[1:])
    expected = [[(word >> shift) % 65536 < round(keep * 65536)
                 for word in stretch(key, example, -(-size // 4)) for shift in (0, 16, 32, 48)][:size]
                for example in range(shape[0])]
    mask = keep_mask(key, shape, keep)
    assert mask.dtype == bool and mask.shape == shape
    if size:                                                                  # "below", not "at most"
        bits = stretch(key, 0, 1)[0] % 65536
        assert [keep_mask(key, (1, size), (bits + more) / 65536)[0, 0] for more in (0, 1)] == [False, True]
    np.testing.assert_array_equal(mask, np.reshape(np.array(expected, bool), shape))


def test_the_streams_are_told_apart():
    streams = (INITIAL_VALUES, DROPOUT, BATCH_ORDER, SAMPLING, DOCUMENT_SPLIT, BOOTSTRAP, RECORD_SPLIT,
               ROUNDING)
    assert streams == (*range(8),)                                            # stored runs depend on it
    assert (BATCH_ORDER, DOCUMENT_SPLIT, RECORD_SPLIT) == (batches.STREAM, corpora.STREAM, examples.STREAM)
    assert Key(5) == Key(5, DROPOUT, 0, 0, 0)


@pytest.mark.parametrize("part", Key._fields)
def test_every_part_of_a_key_changes_the_bits(part):
    key, other = Key(3), {part: 9}
    masks = [keep_mask(k, (1, 4000), 0.5) for k in (key, key._replace(**other))]
    assert 0.45 < (masks[0] == masks[1]).mean() < 0.55                        # as unlike as two coins
    assert uniform(key) != uniform(key._replace(**other))
    np.testing.assert_array_equal(keep_mask(key, (1, 4000), 0.5), masks[0])   # and nothing else does


def test_an_example_has_its_mask_in_whatever_batch_it_is():
    whole = keep_mask(Key(2, step=9, example=100), (6, 5, 3), 0.7)
    for start, stop in ((0, 2), (2, 6), (3, 4)):
        part = keep_mask(Key(2, step=9, example=100 + start), (stop - start, 5, 3), 0.7)
        np.testing.assert_array_equal(part, whole[start:stop])
    assert len({row.tobytes() for row in whole}) == 6


def test_dropout_of_a_batch_is_dropout_of_its_parts():
    x = np.random.default_rng(0).standard_normal((4, 3, 5))
    key = Key(1, example=8)
    y, saved = dropout_forward(x, 0.3, key)
    halves = [dropout_forward(x[part], 0.3, key._replace(example=8 + part.start))[0]
              for part in (slice(0, 1), slice(1, 4))]
    np.testing.assert_array_equal(np.concatenate(halves), y)
    np.testing.assert_array_equal(dropout_backward(x, saved), y)              # the same mask, made again


@pytest.mark.parametrize("keep", [0.1, 0.5, 0.9, 65535 / 65536, 1.0])
def test_the_share_that_is_kept(keep):
    """Within five standard deviations, in all and at each of the four places of a word."""
    mask = keep_mask(Key(11), (8, 25000), keep)
    allowed = 5 * math.sqrt(keep * (1 - keep) / mask.size) + 1e-12
    assert abs(mask.mean() - keep) <= allowed
    for place in range(4):
        assert abs(mask[:, place::4].mean() - keep) <= 2 * allowed


def test_children_of_a_key_are_unique():
    """Over paths of up to three calls; and the deepest path still fits in a word."""
    numbers, level = (*range(18), 255, 256, 511, 512, CHILDREN - 2), [Key(1)]
    seen = set()
    for _ in range(4):
        seen |= {key.site for key in level}
        level = [key.child(n) for key in level for n in numbers]
    assert len(seen) == sum(len(numbers) ** depth for depth in range(4))
    deepest = Key(1)
    for _ in range(6):
        deepest = deepest.child(CHILDREN - 2)
    assert deepest.site < WORD and deepest._replace(site=0) == Key(1)
    deepest.philox()


def test_initial_values_depend_on_seed_and_name_alone():
    values = initial_normal(1, "h.0.attn.c_attn.weight", (40, 50), 0.02)
    assert values.dtype == np.float64
    np.testing.assert_array_equal(initial_normal(1, "h.0.attn.c_attn.weight", (40, 50), 0.02), values)
    np.testing.assert_array_equal(initial_normal(1, "h.0.attn.c_attn.weight", (40, 50), 0.04), 2 * values)
    site = int.from_bytes(hashlib.blake2b(b"wte.weight", digest_size=8).digest(), "little")
    bits = np.random.Generator(Key(1, INITIAL_VALUES, 0, 0, site).philox())
    np.testing.assert_array_equal(initial_normal(1, "wte.weight", (2, 3), 1.0), bits.standard_normal((2, 3)))
    for seed, name in ((2, "h.0.attn.c_attn.weight"), (1, "h.1.attn.c_attn.weight"), (1, "")):
        other = initial_normal(seed, name, (40, 50), 0.02)
        assert abs(np.corrcoef(other.ravel(), values.ravel())[0, 1]) < 0.1
    assert abs(values.mean()) < 0.02 * 5 / math.sqrt(2000) and 0.019 < values.std() < 0.021


def test_models_of_one_seed_start_alike():
    """In both types, and where another layer is added or left out."""
    config = GPTConfig(vocab_size=7, block_size=4, n_layer=2, n_head=2, n_embd=8)
    small, double = GPT(config).parameters, GPT(config, dtype="float64").parameters
    other = GPT(GPTConfig(**vars(config) | {"n_layer": 3, "position": "sinusoidal"})).parameters
    for name, parameter in small.items():
        np.testing.assert_array_equal(parameter.data, double[name].data.astype("float32"))
    for name in ("wte.weight", "h.0.attn.c_attn.weight", "h.1.mlp.c_fc.weight"):
        np.testing.assert_array_equal(small[name].data, other[name].data)
    again = GPT(config, seed=2).parameters["wte.weight"].data
    assert abs(np.corrcoef(again.ravel(), small["wte.weight"].data.ravel())[0, 1]) < 0.5


def test_uniform_is_the_first_53_bits():
    for key in KEYS:
        for example in (0, 3):
            assert uniform(key, example) == (stretch(key, example, 1)[0] >> 11) * 2.0**-53
    numbers = np.array([uniform(Key(0, SAMPLING, step=n)) for n in range(2000)])
    assert numbers.min() >= 0 and numbers.max() < 1 and type(uniform(Key(0))) is float
    assert abs(numbers.mean() - 0.5) < 5 * math.sqrt(1 / 12 / 2000)
    assert len(set(numbers.tolist())) == 2000
