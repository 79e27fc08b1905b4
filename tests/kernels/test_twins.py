"""Every twin gives what its formula gives: values, `saved`, gradients, types; any sizes and strides."""

import contextlib
import importlib
import pkgutil
from inspect import signature
from unittest import mock

import numpy as np
import pytest
from hypothesis import example, given

import npgpt.kernels.cpu
from npgpt import Key, ops
from npgpt.inspection.examples import OPS, Sizes, as_type, map_arrays
from npgpt.kernels.cpu.tiles import flat_tiles, row_tiles
from npgpt.tensor.twins import find_twin
from npgpt.testing import LAYOUTS, axes, seeds

TOLERANCE = {"float64": 1e-13, "float32": 1e-5}
SIZES = axes("B T S H D C V").map(lambda sizes: Sizes(**sizes))
MANY_TILES = Sizes(B=5, T=9, S=8, H=2, D=7, C=6, V=4)

TWINS = {name: find_twin(getattr(ops, name).reference, "cpu") for name in ops.__all__}
TWINS = {name: twin for name, twin in TWINS.items() if twin}
WITH_TWIN = [label for label, build in OPS.items()
             for case in [build(Sizes(), np.random.default_rng(0), "cpu")]
             if {case.forward.__name__, case.backward.__name__} & set(TWINS)]


@contextlib.contextmanager
def tiles_of(size):
    """Tiles of so few bytes, and blocks of so few queries, that small arrays take several."""
    with mock.patch("npgpt.kernels.cpu.tiles.TILE_BYTES", size), \
            mock.patch("npgpt.kernels.cpu.attention.QUERIES", 2):
        yield


def arrays_in(value):
    """Every array and number in a nest of tuples and lists, in order."""
    if isinstance(value, (np.ndarray, np.generic)):
        return [value]
    return [array for part in value for array in arrays_in(part)] if isinstance(value, (tuple, list)) else []


def largest(array):
    return np.abs(array.astype("f8")).max(initial=0)


def assert_same(actual, expected, tolerance):
    """Relative to the largest number of each array, or to 1: the data are of order 1, and a sum of them that
    happens to cancel is as exact as its terms are.
    """
    for a, b in zip(arrays_in([actual]), arrays_in([expected]), strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        infinite = np.isinf(b)                                                # lse of a row that sees nothing
        assert np.array_equal(a[infinite], b[infinite])
        a, b = (np.where(infinite, 0, array.astype("f8")) for array in (a, b))
        assert largest(a - b) <= tolerance * max(largest(b), 1)


def of_parameters(label):
    """Which of an op's gradients are those of weights, biases and gains, sums over all rows."""
    op    = label.split(",")[0]
    first = 2 if op.startswith("residual_") else 1
    some  = op.startswith(("linear", "lora")) or op.endswith("norm")
    return slice(first, None if some else first)


def case_in(label, dtype, n, seed, layout="C"):
    case = OPS[label](n, np.random.default_rng(seed), "cpu")
    return case._replace(inputs=map_arrays(LAYOUTS[layout], as_type(dtype, case.inputs)))


def test_the_costly_ops_have_twins():
    assert {"attention_forward", "attention_backward", "gelu_tanh_forward", "layernorm_forward",
            "layernorm_backward", "embedding_backward", "rmsnorm_forward", "rmsnorm_backward",
            "swiglu_forward", "swiglu_backward", "adamw"} <= set(TWINS)


def test_every_function_of_the_kernels_is_the_twin_of_an_op():
    for module in pkgutil.iter_modules(npgpt.kernels.cpu.__path__):
        if module.name != "tiles":
            place = importlib.import_module(f"npgpt.kernels.cpu.{module.name}")
            own = [name for name, value in vars(place).items()
                   if getattr(value, "__module__", "") == place.__name__ and not name.startswith("_")]
            assert own, f"no function of {place.__name__} has a name without _"
            for name in own:
                assert TWINS.get(name) is getattr(place, name), f"no formula in ops/{module.name}.py: {name}"


@pytest.mark.parametrize("name", TWINS)
def test_what_a_twin_is_not_told_is_what_it_is_for_the_formula(name):
    """It may take more, from another twin, behind that."""
    formula, twin = ([(one.name, one.default) for one in signature(function).parameters.values()]
                     for function in (getattr(ops, name).reference, TWINS[name]))
    assert twin[:len(formula)] == formula


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("label", WITH_TWIN)
@given(n=SIZES, seed=seeds())
@example(n=MANY_TILES, seed=0)
@example(n=Sizes(*[1] * 7), seed=0)
def test_a_twin_gives_what_its_formula_gives(label, dtype, n, seed):
    case = case_in(label, dtype, n, seed)
    with tiles_of(64):
        y, saved = case.forward(*case.inputs)
        expected_y, expected_saved = case.forward.reference(*case.inputs)
        assert_same((y, saved[:len(expected_saved)]), (expected_y, expected_saved), TOLERANCE[dtype])
        dy = np.asarray(np.random.default_rng(seed).standard_normal(y.shape).astype(dtype))
        expected = case.backward.reference(dy, expected_saved)
        assert_same(case.backward(dy, saved), expected, TOLERANCE[dtype])
        assert_same(case.backward(dy, expected_saved), expected, TOLERANCE[dtype])
        assert_same(case.backward.reference(dy, saved), expected, TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("label", WITH_TWIN)
def test_a_twin_covers_what_training_gives_it(label, dtype):
    """Were it left to the formula, every result would be as right, and slower."""
    if label == "linear_cross_entropy, by 3 rows":
        pytest.skip("is for logits that do not fit at once")
    case = case_in(label, dtype, Sizes(), 0)
    y, saved = case.forward(*case.inputs)
    dy = np.ones_like(y) if isinstance(y, np.ndarray) else np.asarray(1, dtype)
    for function, arguments in ((case.forward, case.inputs), (case.backward, (dy, saved))):
        if twin := TWINS.get(function.__name__):
            assert twin(*arguments) is not NotImplemented


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("label", WITH_TWIN)
def test_a_twin_takes_any_memory_layout(label, dtype, layout):
    case = case_in(label, dtype, Sizes(), 0, layout)
    plain = case_in(label, dtype, Sizes(), 0)
    with tiles_of(64):
        y, saved = case.forward(*case.inputs)
        expected_y, expected_saved = plain.forward.reference(*plain.inputs)
        assert_same(y, expected_y, TOLERANCE[dtype])
        dy = np.random.default_rng(0).standard_normal(y.shape).astype(dtype)
        expected = case.backward.reference(dy, expected_saved)
        for either in (saved, expected_saved):
            assert_same(case.backward(LAYOUTS[layout](dy), either), expected, TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", TOLERANCE)
@given(n=axes("N C", max_size=9), seed=seeds())
def test_the_twin_of_adamw_gives_what_its_formula_gives(dtype, n, seed):
    rng = np.random.default_rng(seed)
    w, g, m, v = (rng.standard_normal((n["N"], n["C"])).astype(dtype) for _ in range(4))
    v = v * v
    settings = {"beta1": 0.8, "beta2": 0.95, "eps": 1e-3, "weight_decay": 0.3, "grad_scale": 0.7}
    expected = ops.adamw.reference(w, g, m, v, 3, 0.1, **settings)
    assert_same(ops.adamw(w, g, m, v, 3, 0.1, **settings), expected, 0)           # no out: the formula
    with tiles_of(64):
        assert_same(ops.adamw(w, g, m, v, 3, 0.1, **settings, out=(w, m, v)), expected, TOLERANCE[dtype])


@pytest.mark.parametrize("function", [ops.embedding_backward, ops.embedding_backward.reference])
def test_an_embeddings_gradient_is_added_to_what_is_there(function):
    rng = np.random.default_rng(0)
    tokens, dy, there = np.array([[3, 1, 3], [0, 3, 1]]), rng.standard_normal((2, 3, 4)), np.ones((5, 4))
    alone = function(dy, (tokens, (5, 4)))
    assert function(dy, (tokens, (5, 4)), add_to=there) is there
    np.testing.assert_allclose(there, alone + 1, rtol=1e-14)
    np.testing.assert_allclose(alone[3], dy[0, 0] + dy[0, 2] + dy[1, 1], rtol=1e-14)


@pytest.mark.parametrize("norm", ["layernorm", "rmsnorm"])
def test_both_gradients_of_a_residual_sum_are_one_array(norm):
    forward, backward = (getattr(ops, f"residual_{norm}_{way}") for way in ("forward", "backward"))
    for each in (backward, backward.reference):
        dx, dh, *_ = each(FLOAT32[None].repeat(2, 0), forward(FLOAT32, FLOAT32, FLOAT32[0])[1])
        assert dx is dh


def test_logits_that_do_not_fit_at_once_are_left_to_the_formula():
    x, weight, targets = np.ones((4, 3)), np.ones((5, 3)), np.array([0, 1, -100, 4])
    twin = TWINS["linear_cross_entropy_forward"]
    assert twin(x, weight, targets, rows=3) is NotImplemented is twin(x[:0], weight, targets[:0])
    loss, saved = twin(x, weight, targets, rows=4)
    assert abs(loss - np.log(5)) < 1e-12 and not saved[3][2].any()


def test_gelu_far_from_zero_is_exact_and_does_not_warn():
    x = np.array([-1e4, -50, -12, 12, 50, 1e4, 1e18], np.float32)
    y, (slope,) = ops.gelu_tanh_forward(x)
    assert np.array_equal(y, np.where(x > 0, x, 0)) and np.array_equal(slope, x > 0)


@pytest.mark.parametrize("backward", [ops.swiglu_backward, ops.swiglu_backward.reference])
def test_swiglu_far_to_the_left_has_gradient_zero_and_not_nan(backward):
    x, dy = np.array([[-1e20, -2e38, 1e20, 3e38]], np.float32), np.ones((1, 2), np.float32)
    _, saved = ops.swiglu_forward(x)
    assert not backward(dy, saved).any()


def test_the_twin_of_adamw_leaves_other_places_to_the_formula():
    w, g, m, v = (np.abs(np.random.default_rng(n).standard_normal((3, 4))) for n in range(4))
    expected = ops.adamw.reference(w, g, m, v, 1, 0.1)
    elsewhere = tuple(np.empty((3, 4)) for _ in range(3))
    assert TWINS["adamw"](w, g, m, v, 1, 0.1, out=elsewhere) is NotImplemented
    assert TWINS["adamw"](w, g.T.copy().T, m, v, 1, 0.1, out=(w, m, v)) is NotImplemented
    assert_same(ops.adamw(w, g, m, v, 1, 0.1, out=elsewhere), expected, 0)
    assert_same(ops.adamw(w, g.T.copy().T, m, v, 1, 0.1, out=(w, m, v)), expected, 0)


FLOAT32 = np.linspace(-1, 2, 12, dtype=np.float32).reshape(4, 3)
WHOLE   = np.arange(12).reshape(4, 3), np.arange(1, 4)


@pytest.mark.parametrize(("name", "arguments"), [
    ("gelu_tanh_forward", (np.ones((3, 4)).T,)),
    ("attention_forward", (np.ones((1, 1, 3, 2)), np.ones((1, 1, 2, 2)), np.ones((1, 1, 2, 2)))),    # blind
    ("rmsnorm_forward", (np.ones((3, 4)).T, np.ones(3))),
    ("rmsnorm_backward", (np.ones((3, 4)).T, ops.rmsnorm_forward(np.ones((4, 3)), np.ones(3))[1])),
    ("swiglu_forward", (np.ones((4, 6)).T,)),
    ("swiglu_backward", (np.ones((3, 4)).T, ops.swiglu_forward(np.ones((4, 6)))[1])),
    ("layernorm_forward", (np.ones((3, 4)).T, np.ones(3))),
    ("layernorm_forward", (np.ones((0, 4)), np.ones(4))),
    ("layernorm_forward", (FLOAT32, np.linspace(0.1, 2, 3))),
    ("layernorm_forward", WHOLE),
    ("layernorm_forward", (FLOAT32, FLOAT32[0], np.linspace(0.1, 2, 3))),
    ("residual_layernorm_forward", (FLOAT32, FLOAT32, FLOAT32[0], np.linspace(0.1, 2, 3))),
    ("rmsnorm_forward", (FLOAT32, np.linspace(0.1, 2, 3))),
    ("rmsnorm_forward", WHOLE),
    ("gelu_tanh_forward", WHOLE[:1]),
    ("linear_cross_entropy_forward", (FLOAT32, np.linspace(0, 1, 6).reshape(2, 3), np.array([0, 1, 1, 0]))),
    ("linear_cross_entropy_forward", (WHOLE[0], FLOAT32, np.arange(4))),
    ("swiglu_forward", (np.arange(24).reshape(3, 8),)),
    ("swiglu_backward", (np.ones((3, 2)) / 3, ops.swiglu_forward(np.ones((3, 4), np.float32))[1])),
    ("attention_forward", (FLOAT32[None, None], FLOAT32[None, None], np.ones((1, 1, 4, 3)) / 3)),
    ("attention_forward", (np.arange(12).reshape(1, 1, 4, 3) % 5,) * 3),
    ("attention_backward", (np.linspace(0, 1, 12).reshape(1, 1, 4, 3),
                            ops.attention_forward(*[FLOAT32[None, None]] * 3)[1])),
    ("layernorm_backward", (np.ones((3, 4)).T, ops.layernorm_forward(np.ones((4, 3)), np.ones(3))[1])),
])
def test_what_a_twin_does_not_cover_it_leaves_to_the_formula(name, arguments):
    op = getattr(ops, name)
    assert TWINS[name](*arguments) is NotImplemented
    assert_same(op(*arguments), op.reference(*arguments), 0)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_large_inputs_take_several_tiles_of_the_real_size(dtype):
    x = np.random.default_rng(0).standard_normal((700, 300)).astype(dtype)
    gamma = np.linspace(0.5, 2, 300, dtype=dtype)
    assert sum(1 for _ in flat_tiles(x)) > 1 and sum(1 for _ in row_tiles(x)) > 1
    assert_same(ops.gelu_tanh_forward(x), ops.gelu_tanh_forward.reference(x), TOLERANCE[dtype])
    y, saved = ops.layernorm_forward(x, gamma, gamma)
    assert_same((y, saved), ops.layernorm_forward.reference(x, gamma, gamma), TOLERANCE[dtype])
    expected = ops.layernorm_backward.reference(y, saved)
    assert_same(ops.layernorm_backward(y, saved), expected, TOLERANCE[dtype])


@pytest.mark.parametrize("T, S, D", [(200, 200, 8), (130, 190, 8), (64, 64, 8), (65, 70, 8), (200, 200, 100),
                                     (130, 190, 100)])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_long_attention_takes_several_blocks_of_queries(T, S, D, causal, dropout):
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((3, 2, length, D)) for length in (T, S, S))
    options = causal, None, None, dropout, Key(seed=5)
    y, saved = ops.attention_forward(q, k, v, *options)
    expected_y, expected_saved = ops.attention_forward.reference(q, k, v, *options)
    assert_same((y, saved[:10]), (expected_y, expected_saved), TOLERANCE["float64"])
    assert (len(saved) > 10) is (D == 100)         # kept: what is no larger than queries and keys
    dy = rng.standard_normal(y.shape)
    expected = ops.attention_backward.reference(dy, expected_saved)
    for _ in range(2):                             # the second finds what the first found
        assert_same(ops.attention_backward(dy, saved), expected, TOLERANCE["float64"])


@pytest.mark.parametrize("function", [ops.attention_forward, ops.attention_forward.reference])
def test_attention_without_a_key_drops_nothing(function):
    """As where a model that learns with dropout is evaluated."""
    q, k, v = np.random.default_rng(0).standard_normal((3, 2, 2, 5, 4))
    (y, saved), (plain, plain_saved) = function(q, k, v, True, None, None, 0.3, None), function(q, k, v)
    assert np.array_equal(y, plain)
    for backward in (ops.attention_backward, ops.attention_backward.reference):
        assert_same(backward(v, saved), backward(v, plain_saved), 0)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("away", [1, 10, 29, 31, 90, 300, 1e4])
@pytest.mark.parametrize("first", [0, 50])
@pytest.mark.parametrize("sign", [1, -1])
def test_attention_is_as_exact_for_a_row_whose_scores_are_far_from_the_others(dtype, away, first, sign):
    """e^A of a row would vanish or overflow, and so would e^(A − top) were there one top for all rows."""
    rng = np.random.default_rng(0)
    q, k, v  = rng.standard_normal((3, 2, 2, 12, 8)) / 10
    k[..., 0] = 1
    q[..., 0] = 8 ** 0.5 * np.where(np.arange(12) % 3 == 1, sign * away, 0)       # in every third row
    k[..., 0, 1], q[..., 1] = 1, -first * 8 ** 0.5                                # of the first key, in all
    q, k, v  = as_type(dtype, (q, k, v))
    y, saved = ops.attention_forward(q, k, v)
    exact    = as_type("float64", (q, k, v))
    expected_y, expected_saved = ops.attention_forward.reference(*exact)
    tolerance = TOLERANCE[dtype] * max(1, away / 10)              # of scores of this size
    assert_same(as_type("float64", (y, saved[9])), (expected_y, expected_saved[9]), tolerance)
    dy = rng.standard_normal(y.shape).astype(dtype)
    expected = ops.attention_backward.reference(dy.astype("float64"), expected_saved)
    assert_same(as_type("float64", ops.attention_backward(dy, saved)), expected, tolerance)


@pytest.mark.parametrize("causal", [True, False])
def test_long_packed_attention_leaves_out_keys_that_none_of_a_block_may_see(causal):
    rng = np.random.default_rng(0)
    q, k, v  = rng.standard_normal((3, 2, 3, 300, 8))
    segments = np.repeat([[1, 2, 3], [4, 9, 2]], [130, 100, 70], 1)
    y, saved = ops.attention_forward(q, k, v, causal, None, segments)
    expected_y, expected_saved = ops.attention_forward.reference(q, k, v, causal, None, segments)
    assert_same((y, saved[:10]), (expected_y, expected_saved), TOLERANCE["float64"])
    dy = rng.standard_normal(y.shape)
    assert_same(ops.attention_backward(dy, saved), ops.attention_backward.reference(dy, expected_saved),
                TOLERANCE["float64"])


@pytest.mark.parametrize("tile", [8, 24, 40, 1000])
def test_tiles_cover_every_element_once(tile):
    with tiles_of(tile):
        x, y = np.zeros((5, 3)), np.zeros((5, 3))
        for x_, y_ in flat_tiles(x, y):
            assert x_.size == y_.size <= max(tile // 8, 1)
            x_ += 1
        for x_, y_ in row_tiles(x, y):
            assert x_.shape == y_.shape and (len(x_) == 1 or x_.nbytes <= tile)
            y_ += 1
        assert (x == 1).all() and (y == 1).all()


@pytest.mark.parametrize("function", [ops.attention_forward, ops.attention_forward.reference])
def test_a_row_whose_scores_are_all_far_below_zero_still_sees_what_it_may(function):
    q, k, v = 60 * np.ones((1, 1, 2, 4)), -60 * np.ones((1, 1, 3, 4)), np.arange(12.0).reshape(1, 1, 3, 4)
    y, _ = function(q, k, v, False, np.array([[True, False, True]]))
    seen = v[:, :, [0, 2]].mean(2, keepdims=True)
    np.testing.assert_allclose(y, np.broadcast_to(seen, y.shape), rtol=1e-13)
