"""What must be true of single ops, whatever the numbers."""

import importlib
import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import example, given

from npgpt import ops
from npgpt.ops.gelu import erf
from npgpt.ops.linear_cross_entropy import LOGITS_AT_ONCE
from npgpt.tensor import Key
from npgpt.testing import arrays, axes, seeds


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


# ---- softmax, layernorm, activations ----

@given(arrays("B T C"))
def test_rows_of_softmax_are_positive_and_sum_to_one(inputs):
    y, _ = ops.softmax_forward(10 * inputs[0])
    assert (y > 0).all() and np.allclose(y.sum(-1), 1, rtol=0, atol=1e-14)


@given(arrays("T C", "T C"))
def test_the_gradient_of_softmax_sums_to_zero(inputs):
    x, dy = inputs
    assert np.allclose(ops.softmax_backward(dy, ops.softmax_forward(x)[1]).sum(-1), 0, rtol=0, atol=1e-14)


@pytest.mark.parametrize("size", [1e4, -1e4, 1e300])
def test_softmax_is_stable(size):
    y, _ = ops.softmax_forward(np.array([[size, size, -size]]))
    assert np.array_equal(y, [[0.5, 0.5, 0]] if size > 0 else [[0, 0, 1]])


def test_softmax_is_stable_row_by_row():
    y, _ = ops.softmax_forward(np.array([[1e4, 1e4], [-1e4, -1e4]]))
    assert np.array_equal(y, np.full((2, 2), 0.5))


@given(arrays("B T C", "C", "B T C"))
def test_dx_of_layernorm_is_orthogonal_to_one_and_to_x_hat(inputs):
    x, gamma, dy = inputs
    x_hat, _ = ops.layernorm_forward(x, np.ones(x.shape[-1]), eps=0.0 if x.shape[-1] > 1 else 1e-5)
    _, saved = ops.layernorm_forward(x, gamma, eps=0.0 if x.shape[-1] > 1 else 1e-5)
    dx, _, _ = ops.layernorm_backward(dy, saved)
    size = np.abs(dy * gamma).max() / (x.std(-1).min() + 1e-3) * x.shape[-1]
    assert np.abs(dx.sum(-1)).max() <= 1e-13 * size
    assert np.abs((dx * x_hat).sum(-1)).max() <= 1e-13 * size


@given(arrays("B T C"))
def test_layernorm_gives_rows_of_mean_zero_and_variance_one(inputs):
    x, = inputs
    y, _ = ops.layernorm_forward(x, np.ones(x.shape[-1]))
    variance = x.var(-1)
    assert np.allclose(y.mean(-1), 0, atol=1e-13)
    assert np.allclose(y.var(-1), variance / (variance + 1e-5), rtol=1e-12)


@pytest.mark.parametrize("function", [ops.layernorm_forward, ops.layernorm_forward.reference])
@pytest.mark.parametrize("value", [1, 3, 100, 1000])
@pytest.mark.parametrize("C", [4, 41, 49, 768])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_layernorm_of_a_constant_row_is_beta_and_finite(function, value, C, dtype):
    x, gamma, beta = np.full((2, C), value, dtype), normal(C).astype(dtype), normal(C, seed=1).astype(dtype)
    y, saved = function(x, gamma, beta)
    assert np.array_equal(y, np.broadcast_to(beta, y.shape))
    assert all(np.isfinite(gradient).all() for gradient in ops.layernorm_backward(np.ones_like(x), saved))


@pytest.mark.parametrize("function", [ops.layernorm_forward, ops.layernorm_forward.reference])
@pytest.mark.parametrize("C", [768, 16384])
def test_layernorm_of_a_row_far_from_zero_is_that_of_its_differences(function, C):
    """They are exact in float32, and the mean is not."""
    gamma, beta = normal(2, C).astype("f4")
    apart, dy   = normal(2, 3, C, seed=1).astype("f4")
    for value, spread, tolerance in ((1234.567, 0, 1e-6), (-0.1, 0, 1e-6), (1e4, 1, 2e-4), (100, 1, 4e-6)):
        x = (value + spread * apart).astype("f4")
        y, saved = function(x, gamma, beta)
        exact, exact_saved = ops.layernorm_forward.reference(*map(np.float64, (x, gamma, beta)))
        assert np.abs(y - exact).max() < tolerance * np.abs(exact).max()
        if spread == 0:
            gradients = ops.layernorm_backward(dy, saved)
            expected  = ops.layernorm_backward.reference(dy.astype("f8"), exact_saved)
            assert np.abs(gradients[0] - expected[0]).max() < 1e-5 * np.abs(expected[0]).max()
            assert np.abs(gradients[1]).max() < 1e-5


def test_erf_is_that_of_the_c_library_to_1e_14():
    x = np.concatenate([np.linspace(-8, 8, 40001), [0.0, -0.0, 1e-300, 1e300, -np.inf, np.inf]])
    assert np.abs(erf(x) - [math.erf(value) for value in x]).max() <= 1e-14


@pytest.mark.parametrize("gelu", [ops.gelu_tanh_forward, ops.gelu_erf_forward])
def test_gelu_is_the_identity_far_right_and_zero_far_left(gelu):
    y, (dy_dx,) = gelu(np.array([-40.0, 40.0]))
    assert np.allclose(y, [0, 40], atol=1e-300) and np.allclose(dy_dx, [0, 1], atol=1e-300)


def test_relu_of_minus_infinity_is_zero_and_of_nan_nan():
    y, _ = ops.relu_forward(np.array([-np.inf, -1, np.inf, np.nan]))
    assert np.array_equal(y, [0, 0, np.inf, np.nan], equal_nan=True)


def test_relu_has_gradient_zero_at_zero():
    _, saved = ops.relu_forward(np.array([-1.0, 0.0, 2.0]))
    assert np.array_equal(ops.relu_backward(np.ones(3), saved), [0, 0, 1])


def test_penalty_has_gradient_zero_at_zero():
    y, saved = ops.penalty_forward(np.array([0.0, -2.0]), 0.5, 0.25)
    assert y == 2 and np.array_equal(ops.penalty_backward(np.asarray(1.0), saved), [0, -1.5])


# ---- embedding ----

@given(axes("B T V C"), seeds())
def test_embedding_gathers_every_use_of_a_token(n, seed):
    rng = np.random.default_rng(seed)
    tokens, dy = rng.integers(0, n["V"], (n["B"], n["T"])), rng.standard_normal((n["B"], n["T"], n["C"]))
    _, saved = ops.embedding_forward(tokens, np.zeros((n["V"], n["C"])))
    expected = [dy[tokens == token].sum(0) for token in range(n["V"])]
    assert np.allclose(ops.embedding_backward(dy, saved), expected, rtol=0, atol=1e-13)


def test_embedding_of_no_tokens_has_gradient_zero():
    _, saved = ops.embedding_forward(np.zeros((0, 3), int), np.ones((4, 2)))
    assert np.array_equal(ops.embedding_backward(np.zeros((0, 3, 2)), saved), np.zeros((4, 2)))


# ---- attention ----

@given(arrays("B H T D", "B H T D", "B H T D"))
def test_a_future_key_or_value_never_changes_the_past(inputs):
    q, k, v = map(np.ascontiguousarray, inputs)          # BLAS rounds by layout
    before, _ = ops.attention_forward(q, k, v)
    for t in range(q.shape[2]):
        later_k, later_v = k.copy(), v.copy()
        later_k[:, :, t + 1:], later_v[:, :, t + 1:] = 1e3, -1e3
        after, _ = ops.attention_forward(q, later_k, later_v)
        assert np.array_equal(after[:, :, :t + 1], before[:, :, :t + 1])


@given(arrays("B H T D", "B H S D", "B H S D"))
def test_queries_are_the_last_of_the_positions(inputs):
    """With fewer queries than keys, each gets what it would get as one of the last of all positions."""
    q, k, v = inputs
    T, S = q.shape[2], k.shape[2]
    if T > S:
        return
    all_q = np.concatenate([normal(*k.shape[:2], S - T, k.shape[3]), q], 2)
    whole, _ = ops.attention_forward(all_q, k, v)
    assert np.allclose(ops.attention_forward(q, k, v)[0], whole[:, :, S - T:], rtol=0, atol=1e-13)


@given(arrays("B H T D", "B H S D", "B H S D", "B H T D"), seeds())
def test_a_hidden_key_never_matters(inputs, seed):
    q, k, v, dy = map(np.ascontiguousarray, inputs)
    mask = np.random.default_rng(seed).random((k.shape[0], k.shape[2])) < 0.6
    y, saved = ops.attention_forward(q, k, v, False, mask)
    hidden = ~np.broadcast_to(mask[:, None, :, None], k.shape)
    changed_k, changed_v = np.where(hidden, 1e3, k), np.where(hidden, -1e3, v)
    other, other_saved = ops.attention_forward(q, changed_k, changed_v, False, mask)
    assert np.array_equal(y, other)
    dq, dk, dv = ops.attention_backward(dy, saved)
    assert np.array_equal(dq, ops.attention_backward(dy, other_saved)[0])
    assert not dk[hidden].any() and not dv[hidden].any()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("causal", [True, False])
def test_a_row_that_may_look_at_nothing_gives_zero_and_no_nan(causal, dtype):
    q, k, v, dy = (normal(2, 3, 4, 5, seed=n).astype(dtype) for n in range(4))
    mask = np.array([[False, False, True, True], [False] * 4])
    y, saved = ops.attention_forward(q, k, v, causal, mask)
    dq, dk, dv = ops.attention_backward(dy, saved)
    blind = np.s_[0, :, :2] if causal else np.s_[1]
    assert not y[1].any() and not y[blind].any() and y[0, :, 2:].any()
    assert not dq[1].any() and not dq[blind].any() and not dk[1].any() and not dv[1].any()
    assert all(np.isfinite(array).all() for array in (y, dq, dk, dv))


def test_attention_over_one_key_is_its_value():
    q, k, v = normal(1, 1, 3, 2), normal(1, 1, 1, 2, seed=1), normal(1, 1, 1, 2, seed=2)
    y, _ = ops.attention_forward(q, k, v, False)
    assert np.array_equal(y, np.broadcast_to(v, y.shape))


def test_attention_is_stable_for_large_scores():
    q, k, v = (1e4 * normal(1, 2, 3, 4, seed=n) for n in range(3))
    y, saved = ops.attention_forward(q, k, v)
    assert np.isfinite(y).all() and all(np.isfinite(g).all() for g in ops.attention_backward(y, saved))


def test_attention_keeps_no_array_of_scores():
    T = 37
    q, k, v = (normal(1, 2, T, 3, seed=n) for n in range(3))
    _, saved = ops.attention_forward(q, k, v)
    assert all(array.size < T * T for array in saved if isinstance(array, np.ndarray))


# ---- dropout ----

def test_dropout_keeps_the_mean_and_the_chosen_share():
    x = np.ones((64, 4096))
    y, _ = ops.dropout_forward(x, 0.3, Key(1))
    keep = round(0.7 * 65536) / 65536
    assert set(np.unique(y)) == {0.0, 1 / keep}
    assert abs((y > 0).mean() - keep) < 5 * math.sqrt(keep * (1 - keep) / x.size)


def test_dropout_masks_depend_on_every_part_of_the_key_and_on_the_example_not_its_place():
    x, key = np.ones((4, 100)), Key(1, step=2, example=8, site=3)
    y, _ = ops.dropout_forward(x, 0.5, key)
    others = [key._replace(seed=2), key._replace(step=3), key._replace(example=12), key._replace(site=4)]
    assert not any(np.array_equal(y, ops.dropout_forward(x, 0.5, other)[0]) for other in others)
    assert not np.array_equal(y[0], y[1])
    assert np.array_equal(y[2:], ops.dropout_forward(x[2:], 0.5, key._replace(example=10))[0])


def test_dropout_drops_the_same_elements_in_backward():
    x = np.ones((3, 50))
    y, saved = ops.dropout_forward(x, 0.4, Key(5))
    assert np.array_equal(ops.dropout_backward(x, saved), y)


def test_nearly_total_dropout_divides_by_the_smallest_share_and_not_by_zero():
    y, _ = ops.dropout_forward(np.ones((2, 10)), 1 - 1e-9, Key(0))
    assert set(np.unique(y)) <= {0.0, 65536.0}


# ---- cross-entropy ----

@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_cross_entropy_is_stable(dtype):
    logits = np.array([[1e4, -1e4, 0], [-1e4, 1e4, 0], [1e4, 1e4, 1e4], [-1e4, -1e4, -1e4]], dtype)
    loss, saved = ops.cross_entropy_forward(logits, np.array([0, 0, 1, 2]))
    assert np.isclose(loss, (0 + 2e4 + 2 * math.log(3)) / 4, rtol=1e-6)
    dlogits = ops.cross_entropy_backward(np.asarray(1, dtype), saved)
    third = np.array([1, 1, 1]) / 3
    expected = [[0, 0, 0], [-1, 1, 0], third - [0, 1, 0], third - [0, 0, 1]]
    assert np.allclose(4 * dlogits, expected, rtol=0, atol=2 * np.finfo(dtype).eps)


@pytest.mark.parametrize("place", [0, 30, -100, 1e4])
@pytest.mark.parametrize("gap", [0.5, 5, 10])
@pytest.mark.parametrize("rows", [None, 1])
def test_a_loss_is_as_exact_in_float32_where_logits_are_large(place, gap, rows):
    """A small loss beside a large ℓ, in whose rounding it would be lost."""
    logits, targets = np.array([[gap, 0, 0], [0, gap, 0]], "f4") + np.float32(place), np.array([0, 1])
    exact = math.log1p(2 * math.exp(-gap))
    p     = np.array([[1, math.exp(-gap), math.exp(-gap)]]) / (1 + 2 * math.exp(-gap))
    loss, saved = ops.cross_entropy_forward(logits, targets)
    dlogits     = ops.cross_entropy_backward(np.float32(1), saved)
    assert abs(loss - exact) < 4e-7 * exact + 6e-8
    assert np.allclose(2 * dlogits[0], p - [1, 0, 0], rtol=4e-7, atol=6e-8)
    x, weight = np.eye(2, dtype="f4"), np.ascontiguousarray(logits.T)
    loss, saved = ops.linear_cross_entropy_forward(x, weight, targets, rows=rows)
    _, dweight  = ops.linear_cross_entropy_backward(np.float32(1), saved)
    assert abs(loss - exact) < 4e-7 * exact + 6e-8
    assert np.allclose(2 * dweight[:, 0], p - [1, 0, 0], rtol=4e-7, atol=6e-8)


@pytest.mark.parametrize("rows", [None, 1, 2])
def test_targets_that_are_all_ignored_give_loss_zero_and_gradient_zero(rows):
    x, weight, targets = normal(2, 3, 4), normal(5, 4, seed=1), np.full((2, 3), -100)
    loss, saved = ops.cross_entropy_forward(x, targets)
    assert loss == 0 and not ops.cross_entropy_backward(np.asarray(1.0), saved).any()
    loss, saved = ops.linear_cross_entropy_forward(x, weight, targets, rows=rows)
    assert loss == 0 and not any(g.any() for g in ops.linear_cross_entropy_backward(np.asarray(1.0), saved))


def test_an_ignored_row_does_not_matter():
    logits, targets = normal(4, 5), np.array([2, -100, 0, -100])
    loss, saved = ops.cross_entropy_forward(logits, targets)
    assert np.isclose(loss, ops.cross_entropy_forward(logits[::2], targets[::2])[0], rtol=1e-14)
    assert not ops.cross_entropy_backward(np.asarray(1.0), saved)[1::2].any()
    logits[1, 0], logits[3, 1] = -np.inf, np.nan              # whatever it holds: a vocabulary may be masked
    same, saved = ops.cross_entropy_forward(logits, targets)
    assert same == loss and not ops.cross_entropy_backward(np.asarray(1.0), saved)[1::2].any()


def test_dloss_and_the_number_of_items_may_be_plain_numbers():
    x, weight, targets = normal(2, 3, 4), normal(5, 4, seed=1), np.array([[0, 1, 2], [3, 4, 0]])
    for rows in (None, 2):
        _, saved = ops.linear_cross_entropy_forward(x, weight, targets, 3, rows=rows)
        plain  = ops.linear_cross_entropy_backward(1.0, saved)
        others = ops.linear_cross_entropy_backward(np.asarray(1.0), saved)
        assert all(np.array_equal(one, other) for one, other in zip(plain, others, strict=True))


def test_cross_entropy_of_uniform_logits_is_the_logarithm_of_the_vocabulary():
    loss, _ = ops.cross_entropy_forward(np.zeros((3, 7)), np.array([0, 3, 6]))
    assert np.isclose(loss, math.log(7), rtol=1e-15)


@pytest.mark.parametrize("op", [ops.cross_entropy_forward,
                                lambda x, *rest: ops.linear_cross_entropy_forward(x, np.eye(5), *rest)])
@pytest.mark.parametrize("n", [0, 1, 3, 100])
def test_the_loss_is_divided_by_the_number_of_items_given(op, n):
    logits, targets = normal(4, 5), np.array([2, -100, 0, 1])
    mean, _ = op(logits, targets)
    assert np.isclose(op(logits, targets, n)[0], mean * 3 / max(n, 1), rtol=1e-14)


@pytest.mark.parametrize("ignored", [-100, 0])
@given(inputs=arrays("B T C", "V C"), seed=seeds())
@example(inputs=(normal(2, 3, 4), normal(5, 4, seed=1)), seed=0)
def test_linear_cross_entropy_is_linear_then_cross_entropy_for_any_rows(ignored, inputs, seed):
    x, weight = inputs
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, weight.shape[0], x.shape[:2])
    targets[rng.random(targets.shape) < 0.3] = ignored
    dloss = np.asarray(1.7)
    logits, linear = ops.linear_forward(x, weight.T)
    expected, saved = ops.cross_entropy_forward(logits, targets, ignore_index=ignored)
    dx, dweight, _ = ops.linear_backward(ops.cross_entropy_backward(dloss, saved), linear)
    for rows in (None, 1, 2, 3, targets.size - 1, targets.size, targets.size + 1):
        loss, saved = ops.linear_cross_entropy_forward(x, weight, targets, None, ignored, rows or None)
        actual = ops.linear_cross_entropy_backward(dloss, saved)
        assert np.isclose(loss, expected, rtol=1e-13)
        assert np.allclose(actual[0], dx, rtol=0, atol=1e-13)
        assert np.allclose(actual[1], dweight.T, rtol=0, atol=1e-13)


def test_linear_cross_entropy_never_makes_all_logits():
    rows, N, V, C = 8, 256, 2000, 4
    x, weight = normal(N, C), normal(V, C, seed=1)
    targets = np.random.default_rng(2).integers(0, V, N)
    ops.linear_cross_entropy_forward(x[:2], weight, targets[:2])       # what is made once is made now
    tracemalloc.start()
    try:
        _, saved = ops.linear_cross_entropy_forward(x, weight, targets, rows=rows)
        ops.linear_cross_entropy_backward(np.asarray(1.0), saved)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 8 * rows * V * 8 < 8 * N * V / 3
    assert all(array.size < N * V / 4 for array in saved if isinstance(array, np.ndarray))


def test_linear_cross_entropy_bounds_the_logits_by_itself(monkeypatch):
    seen = []
    module = importlib.import_module("npgpt.ops.linear_cross_entropy")
    def forward(logits, *rest):
        seen.append(logits.shape)
        return ops.cross_entropy_forward(logits, *rest)
    monkeypatch.setattr(module, "cross_entropy_forward", forward)
    monkeypatch.setattr(module, "LOGITS_AT_ONCE", 20)
    ops.linear_cross_entropy_forward(normal(9, 2), normal(5, 2), np.zeros(9, int))
    assert seen == [(4, 5), (4, 5), (1, 5)]
    assert LOGITS_AT_ONCE * 4 == 128 * 2**20


@pytest.mark.parametrize(("rows", "again"), [(4, False), (3, True)])
def test_logits_that_all_exist_at_once_are_not_made_again(monkeypatch, rows, again):
    x, weight, targets = normal(4, 3), normal(5, 3, seed=1), np.array([0, 4, -100, 2])
    _, saved = ops.linear_cross_entropy_forward(x, weight, targets, None, -100, rows)
    made = []
    def backward(*arguments):
        made.append(arguments)
        return ops.cross_entropy_backward(*arguments)
    monkeypatch.setattr(importlib.import_module("npgpt.ops.linear_cross_entropy"), "cross_entropy_backward",
                        backward)
    ops.linear_cross_entropy_backward(np.asarray(1.0), saved)
    assert bool(made) is again
