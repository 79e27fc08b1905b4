"""Near-duplicates: the estimate against the definition, the bands against all pairs, a planted set."""

import random

import numpy as np
import pytest

from npgpt.data import deduplication
from npgpt.data.deduplication import MINIMA, SHINGLE, near_duplicates, rows_of_a_band, signature


def jaccard(a, b):
    """By the definition in the module's docstring."""
    a, b = (" ".join(text.lower().split()) for text in (a, b))
    a, b = ({text[i:i + SHINGLE] for i in range(len(text) - SHINGLE + 1)} for text in (a, b))
    return len(a & b) / len(a | b)


def changed(text, share, words, draw):
    """The text with that share of its words replaced by others."""
    return " ".join(draw.choice(words) if draw.random() < share else word for word in text.split())


@pytest.fixture(scope="module")
def planted():
    """300 texts, most of them with copies that differ a little and with copies that differ too much to be
    duplicates, in a random order."""
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyzäé", k=draw.randint(2, 9))) for _ in range(3000)]
    texts = []
    for _ in range(300):
        text = " ".join(draw.choices(words, k=draw.randint(40, 400)))
        texts.append(text)
        for shares in ((0.005, 0.01, 0.02), (0.12, 0.2)):
            texts += [changed(text, draw.choice(shares), words, draw)] * (draw.random() < 0.7)
    draw.shuffle(texts)
    return texts


def greedy(texts, similar):
    goes = []
    for n in range(len(texts)):
        goes.append(any(not goes[m] and similar(m, n) for m in range(n)))
    return np.array(goes)


def test_planted_near_duplicates_are_found_and_others_kept(planted):
    sets = {}

    def similar(m, n):
        key = (m, n)
        if key not in sets:
            sets[key] = jaccard(planted[m], planted[n]) >= 0.8 if shares_words(m, n) else False
        return sets[key]

    bags = [set(text.split()) for text in planted]

    def shares_words(m, n):
        return 2 * len(bags[m] & bags[n]) > min(len(bags[m]), len(bags[n]))

    truth = greedy(planted, similar)
    found = near_duplicates([np.array([signature(text) for text in planted])], 0.8)
    both  = np.count_nonzero(truth & found)
    assert truth.sum() > 150 and np.count_nonzero(~truth) > 300
    assert both >= 0.97 * truth.sum() and both >= 0.97 * found.sum()


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.8, 0.95, 1.0])
def test_the_bands_find_what_comparing_all_pairs_finds(planted, threshold):
    signatures = np.array([signature(text) for text in planted[:300]])
    agree = (signatures[:, None] == signatures[None]).sum(-1)
    expected = greedy(planted[:300], lambda m, n: agree[m, n] >= threshold * MINIMA)
    assert np.count_nonzero(near_duplicates([signatures], threshold) != expected) <= 1
    for cuts in ([0], [1, 1, 7, 299], [300]):                               # however they lie in files
        parts = np.split(signatures, cuts)
        assert np.array_equal(near_duplicates(parts, threshold), near_duplicates([signatures], threshold))


def test_the_first_stays_and_only_what_stays_counts():
    base = np.arange(MINIMA, dtype=np.uint32)
    one, two = base.copy(), base.copy()
    one[:16] += 1000                                                        # 0.875 like base
    two[:32] += 1000                                                        # 0.75 like base, 0.875 like one
    assert near_duplicates([np.array([base, one, two])], 0.8).tolist() == [False, True, False]
    assert near_duplicates([np.array([one, base, two])], 0.8).tolist() == [False, True, True]
    assert near_duplicates([np.array([two, one, base])], 0.8).tolist() == [False, True, False]
    assert near_duplicates([np.empty((0, MINIMA), np.uint32)], 0.8).tolist() == []


@pytest.mark.parametrize(("largest", "goes"), [(1, False), (2, True)])
def test_a_document_is_compared_with_the_first_so_many_of_a_band(monkeypatch, largest, goes):
    monkeypatch.setattr(deduplication, "LARGEST_BUCKET", largest)
    first, second = np.random.default_rng(0).integers(2**32, size=(2, MINIMA), dtype=np.uint32)
    second[:6] = first[:6]                                                  # one band of 0.8
    copy = second.copy()
    copy[6::6] += 1                                                         # and no other band
    assert near_duplicates([np.array([first, second, copy])], 0.8).tolist() == [False, False, goes]


def test_a_signature_estimates_the_similarity():
    draw, errors = random.Random(1), []
    words = ["".join(draw.choices("abcdefghij ", k=6)) for _ in range(500)]
    for _ in range(150):
        text  = " ".join(draw.choices(words, k=draw.randint(10, 500)))
        other = changed(text, draw.random() * 0.3, words, draw)
        true  = jaccard(text, other)
        errors.append((np.mean(signature(text) == signature(other)) - true)
                      / max(true * (1 - true) / MINIMA, 1e-6) ** 0.5)
    assert abs(np.mean(errors)) < 0.25 and 0.8 < np.std(errors) < 1.2       # no bias, the right spread


def test_a_signature_disregards_capitals_and_blanks_alone():
    text = "To be, or not to be: that is the question"
    assert np.array_equal(signature(text), signature("  to BE, or\tnot\r\n to be: that is the question\n"))
    assert not np.array_equal(signature(text), signature(text.replace(",", "")))
    for short in ("", "a", "ab", "b", "日", "日本", "\ud800"):
        assert signature(short).shape == (MINIMA,) and signature(short).dtype == np.uint32
    assert not np.array_equal(signature("a"), signature("b"))
    order = np.mean(signature("".join(map(chr, range(1000, 3000)))) == signature(
        "".join(map(chr, range(2999, 999, -1)))))
    assert order < 0.1                                                      # shingles, not characters
    long = "".join(random.Random(2).choices("abcdefgh", k=5000))            # over several blocks
    assert np.mean(signature(long) == signature(long[:2500])) == pytest.approx(0.5, abs=0.15)


def test_the_signature_stays_what_it_was():
    """A preparation that goes on under another machine or version must decide as it began."""
    assert signature("to be or not to be").tolist()[:4] == PINNED


def test_the_number_of_rows():
    assert [rows_of_a_band(threshold) for threshold in (0.01, 0.5, 0.8, 0.9, 1.0)] == [1, 3, 6, 10, 128]


PINNED = [506052995, 3346369336, 68175494, 3309071307]
