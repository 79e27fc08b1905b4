"""From logits to a distribution to a token, held against definitions written out one element at a time."""

import math

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from npgpt.errors import ConfigError
from npgpt.generation.sampling import FIRST_GUESS, draw, keep_top_p, narrowed, softmax
from npgpt.testing import seeds


def next_token_probabilities(logits, temperature=1.0, top_k=None, top_p=1.0, min_p=None):
    return softmax(narrowed(logits, temperature, top_k, top_p, min_p))


def by_definition(logits, temperature, top_k, top_p, min_p):
    """The distribution over one row's tokens, in plain Python."""
    weights = [math.exp((z - max(logits)) / temperature) for z in logits]
    if top_k is not None:
        kth = sorted(weights, reverse=True)[:top_k][-1]
        weights = [w if w >= kth else 0.0 for w in weights]
    p = [w / sum(weights) for w in weights]
    kept, reached = set(), 0.0
    for token in sorted(range(len(p)), key=lambda token: -p[token]):
        if reached >= top_p:
            break
        kept.add(token)
        reached += p[token]
    p = [value if token in kept else 0.0 for token, value in enumerate(p)]
    p = [value if value >= (min_p or 0) * max(p) else 0.0 for value in p]
    return [value / sum(p) for value in p]


@given(seed=seeds(), V=st.integers(1, 12), temperature=st.sampled_from([0.1, 0.7, 1.0, 2.5]),
       top_k=st.sampled_from([None, 0, 1, 2, 5, 100]), top_p=st.sampled_from([1e-9, 0.3, 0.5, 0.9, 1.0]),
       min_p=st.sampled_from([None, 0.0, 0.05, 0.3, 1.0]))
@example(seed=0, V=9, temperature=0.7, top_k=5, top_p=0.8, min_p=None)
@example(seed=1, V=9, temperature=1.0, top_k=None, top_p=0.5, min_p=0.05)
@example(seed=1, V=9, temperature=2.0, top_k=None, top_p=1.0, min_p=0.3)
def test_probabilities_are_those_of_the_definition(seed, V, temperature, top_k, top_p, min_p):
    logits = 3 * np.random.default_rng(seed).standard_normal((3, V))
    p = next_token_probabilities(logits, temperature, top_k, top_p, min_p)
    assert p.dtype == np.float64 and np.allclose(p.sum(-1), 1, rtol=0, atol=1e-14)
    for row, expected in zip(p, logits.tolist(), strict=True):
        expected = by_definition(expected, temperature, top_k or None, top_p, min_p)
        assert np.allclose(row, expected, rtol=1e-12, atol=0)


def test_without_settings_it_is_the_softmax():
    logits = np.array([[0.0, math.log(3), -np.inf]])
    assert np.allclose(next_token_probabilities(logits), [[0.25, 0.75, 0]], rtol=1e-15)


def test_all_that_tie_with_the_kth_stay():
    p = next_token_probabilities(np.array([[2.0, 1.0, 1.0, 0.0]]), top_k=2)
    assert (p > 0).tolist() == [[True, True, True, False]]


def test_the_nucleus_is_the_smallest_set_that_reaches_p():
    logits = np.log([[0.5, 0.25, 0.125, 0.125]])
    for top_p, size in ((0.01, 1), (0.5, 1), (0.51, 2), (0.75, 2), (0.8, 3), (0.99, 4)):
        assert (next_token_probabilities(logits, top_p=top_p) > 0).sum() == size, top_p


def test_the_nucleus_is_taken_of_what_top_k_left():
    logits = np.log([[0.4, 0.3, 0.2, 0.1]])                  # 4/7 and 3/7 remain
    assert (next_token_probabilities(logits, top_k=2, top_p=0.55) > 0).sum() == 1


def test_rows_are_cut_each_for_itself():
    p = next_token_probabilities(np.log([[0.9, 0.05, 0.05], [0.4, 0.35, 0.25]]), top_p=0.7)
    assert (p > 0).sum(-1).tolist() == [1, 2]


@pytest.mark.parametrize("scale", [1e4, 1e30])
def test_large_float32_logits_are_stable(scale):
    p = next_token_probabilities(np.array([[scale, -scale, scale]], "float32"), temperature=0.5)
    assert np.array_equal(p, [[0.5, 0, 0.5]]) and p.dtype == np.float64


def test_logits_are_only_read():
    logits = np.random.default_rng(0).standard_normal((2, 5))
    copy = logits.copy()
    logits.flags.writeable = False
    next_token_probabilities(logits, 0.5, 3, 0.5, 0.5)
    next_token_probabilities(logits, top_p=0.5)
    assert np.array_equal(logits, copy)


@pytest.mark.parametrize("top_p", [0.2, 0.9, 0.99999])
def test_a_nucleus_beyond_the_first_guess_is_found_and_not_by_sorting_all(top_p, monkeypatch):
    """As by sorting all, in rows of which one needs 2 tokens and another most of them."""
    V, lengths, argsort = 30 * FIRST_GUESS, [], np.argsort
    monkeypatch.setattr(np, "argsort", lambda x, *how: lengths.append(x.shape[-1]) or argsort(x, *how))
    logits = np.random.default_rng(0).standard_normal((2, V)) * [[30.0], [1.0]]
    kept = np.isfinite(keep_top_p(logits, top_p))
    assert max(lengths) < V / 3 or top_p > 0.2
    for row, stays in zip(softmax(logits), kept, strict=True):
        ranked = np.sort(row)[::-1]
        assert stays.sum() == (np.cumsum(ranked) - ranked < top_p).sum()
        assert row[stays].min() > row[~stays].max()


def test_what_must_stay_stays():
    logits = np.log([[0.9, 0.06, 0.03, 0.01]])
    for settings in ({"top_k": 1}, {"top_p": 0.1}, {"min_p": 0.9}):
        assert np.isfinite(narrowed(logits, **settings, least=3)).tolist() == [[True, True, True, False]]
        assert np.isfinite(narrowed(logits, **settings)).sum() == 1
        assert np.isfinite(narrowed(logits, **settings, least=9)).all()       # of more than there are, all
    many = FIRST_GUESS + 20
    assert np.isfinite(keep_top_p(np.arange(2.0 * many)[None], 1e-9, many)).sum() == many


def test_where_nothing_is_left_it_says_so():
    with pytest.raises(ConfigError, match="no token is left that may come next"):
        softmax(np.array([[0.0, 1.0], [-np.inf, -np.inf]]))


def test_draw_inverts_the_cumulative_distribution():
    p = np.array([[0.25, 0.0, 0.5, 0.25]])
    for uniform, token in ((0.0, 0), (0.2499, 0), (0.25, 2), (0.7499, 2), (0.75, 3), (1 - 2**-53, 3)):
        assert draw(p, [uniform]).tolist() == [token]


def test_a_token_of_probability_zero_is_never_drawn():
    p = np.array([[0.0, 1.0, 0.0], [1e-17, 1.0, 0.0], [0.1, 0.9 - 1e-16, 0.0]])
    for uniform in (0.0, 0.5, 1 - 2**-53):
        assert (p[range(3), draw(p, [uniform] * 3)] > 0).all()


def test_draw_takes_each_row_with_its_own_number():
    p = np.array([[0.5, 0.5], [0.5, 0.5]])
    assert draw(p, [0.1, 0.9]).tolist() == [0, 1]
