"""What holds for every op, shown on the examples of npgpt.inspection.examples: the gradients are right, the
types stay, the memory layout does not matter, and nothing that was handed in is changed."""

import inspect

import numpy as np
import pytest
from hypothesis import example, given

from npgpt import check_gradients, ops
from npgpt.inspection.examples import EXAMPLES, OPS, Sizes, as_type, map_arrays
from npgpt.testing import LAYOUTS, axes, seeds

SIZES = axes("B T S H D C V").map(lambda sizes: Sizes(**sizes))
ALL_ONE = Sizes(*[1] * 7)
SQUARE = Sizes(B=3, T=4, S=4, H=3, D=4, C=4, V=4)
LONGER_THAN_ITS_KEYS = Sizes(T=5, S=3)                    # causal: the first two queries may look at nothing


def case_of(name, n=None, seed=0):
    return EXAMPLES[name](n or Sizes(), np.random.default_rng(seed), "cpu")


def arrays_in(value):
    """Every array in a nest of tuples and lists, in order."""
    if isinstance(value, np.ndarray):
        return [value]
    return [array for part in value for array in arrays_in(part)] if isinstance(value, (tuple, list)) else []


def run(case, inputs, layout=np.asarray, seed=0):
    """y, saved, dy and the gradients of one call; `layout` is applied to dy."""
    y, saved = case.forward(*inputs)
    dy = layout(np.asarray(np.random.default_rng(seed).standard_normal(y.shape).astype(y.dtype)))
    gradients = case.backward(dy, saved)
    return y, saved, dy, gradients if isinstance(gradients, tuple) else (gradients,)


def close(actual, expected, tolerance):
    """The largest error, relative to the largest expected number, is at most the tolerance."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    return actual.shape == expected.shape and \
        np.abs(actual - expected).max(initial=0) <= tolerance * np.abs(expected).max(initial=0)


def test_every_pair_of_functions_has_an_example():
    pairs = {name.rsplit("_", 1)[0] for name in ops.__all__ if name.endswith(("_forward", "_backward"))}
    shown = {(getattr(case.forward, "op", case.forward), case.backward) for case in map(case_of, OPS)}
    for pair in pairs:
        assert (getattr(ops, f"{pair}_forward"), getattr(ops, f"{pair}_backward")) in shown, pair


@pytest.mark.parametrize("name", OPS)
@given(n=SIZES, seed=seeds())
@example(n=Sizes(), seed=0)
@example(n=ALL_ONE, seed=0)
@example(n=SQUARE, seed=1)
@example(n=LONGER_THAN_ITS_KEYS, seed=2)
def test_gradients_are_right_as_called(name, n, seed):
    case = case_of(name, n, seed)
    check_gradients(case.forward, case.backward, *case.inputs)


@pytest.mark.parametrize("name", OPS)
@given(n=SIZES, seed=seeds())
@example(n=Sizes(), seed=0)
@example(n=ALL_ONE, seed=0)
@example(n=SQUARE, seed=1)
@example(n=LONGER_THAN_ITS_KEYS, seed=2)
def test_gradients_of_the_formulas_alone_are_right(name, n, seed):
    case = case_of(name, n, seed)
    check_gradients(case.forward.reference, case.backward.reference, *case.inputs)


# The others take |x|, a sign or a variance, which are not analytic.
ANALYTIC = [name for name in OPS if name.split(",")[0] in
            ("linear", "lora", "gelu_tanh", "softmax", "attention", "cross_entropy", "linear_cross_entropy",
             "dropout", "residual", "embedding", "rmsnorm", "rotary", "softcap", "swiglu")]


@pytest.mark.parametrize("name", ANALYTIC)
@given(n=SIZES, seed=seeds())
@example(n=Sizes(), seed=0)
@example(n=LONGER_THAN_ITS_KEYS, seed=2)
def test_complex_step_agrees_to_1e_12(name, n, seed):
    """An imaginary step h v cancels nothing: Im⟨dy, forward(x + i h v)⟩/h is ⟨dy, J v⟩ in all digits.

    Relative to the largest gradient of the op, or of dy: that of a query which sees a single key is truly 0,
    and that of gelu far left a small difference of numbers of order dy.
    """
    case, h = case_of(name, n, seed), 1e-30
    _, _, dy, gradients = run(case, case.inputs, seed=seed)
    largest = max(np.abs(array).max() for array in arrays_in([dy, gradients]))
    floats = [k for k, x in enumerate(case.inputs) if getattr(x, "dtype", None) == np.float64]
    for place, gradient in zip(floats, [g for g in gradients if g is not None], strict=True):
        v = np.random.default_rng(seed + 1).standard_normal(gradient.shape)
        inputs = [x.astype(complex) if k in floats else x for k, x in enumerate(case.inputs)]
        inputs[place] = inputs[place] + 1j * h * v
        y, _ = case.forward.reference(*inputs)
        measured, claimed = (dy * y.imag).sum() / h, (gradient * v).sum()
        assert abs(measured - claimed) <= 1e-12 * largest * np.abs(v).sum()


@pytest.mark.parametrize("name", OPS)
def test_float32_stays_float32(name):
    case = case_of(name)
    inputs = as_type("f4", case.inputs)
    y, saved, _, gradients = run(case, inputs)
    made = [y, *arrays_in(saved), *arrays_in(gradients)]
    assert {array.dtype for array in made if array.dtype.kind == "f"} == {np.dtype("f4")}
    scalars = [value for value in saved if isinstance(value, np.generic)]
    assert all(value.dtype == "f4" for value in scalars if value.dtype.kind == "f")


@pytest.mark.parametrize("name", OPS)
def test_float32_results_are_the_float64_results_rounded(name):
    case = case_of(name)
    rounded = as_type("f4", case.inputs)
    exact = as_type("f8", rounded)
    y, saved = case.forward(*rounded)
    y_exact, saved_exact = case.forward(*exact)
    assert close(y, y_exact, 1e-5)
    dy = np.asarray(np.random.default_rng(0).standard_normal(y.shape).astype("f4"))
    for gradient, expected in zip(arrays_in([case.backward(dy, saved)]),
                                  arrays_in([case.backward(dy.astype("f8"), saved_exact)]), strict=True):
        assert close(gradient, expected, 1e-5)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", OPS)
def test_memory_layout_does_not_change_the_result(name, layout):
    case = case_of(name)
    expected = run(case, case.inputs)
    inputs = map_arrays(LAYOUTS[layout], case.inputs)
    actual = run(case, inputs, LAYOUTS[layout])
    assert close(actual[0], expected[0], 1e-13)
    for gradient, wanted in zip(actual[3], expected[3], strict=True):
        assert gradient is wanted is None or close(gradient, wanted, 1e-13)


@pytest.mark.parametrize("way", ["as called", "the formula"])
@pytest.mark.parametrize("name", OPS)
def test_inputs_saved_and_dy_are_only_read(name, way):
    case = case_of(name)
    if way == "the formula":
        case = case._replace(forward=case.forward.reference, backward=case.backward.reference)
    given_arrays = arrays_in(case.inputs)
    copies = [array.copy() for array in given_arrays]
    for array in given_arrays:
        array.flags.writeable = False
    y, saved = case.forward(*case.inputs)
    dy = np.ones_like(y)
    guarded = arrays_in([y, dy, saved])
    before = [array.copy() for array in guarded]
    for array in guarded:
        array.flags.writeable = False
    case.backward(dy, saved)
    for array, copy in zip(given_arrays + guarded, copies + before, strict=True):
        assert np.array_equal(array, copy)


@pytest.mark.parametrize("name", OPS)
def test_backward_can_be_run_again_on_the_same_saved(name):
    case = case_of(name)
    _, saved, dy, first = run(case, case.inputs)
    first = [array.copy() for array in arrays_in(first)]
    second = arrays_in([case.backward(dy, saved)])
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("name", OPS)
def test_backward_is_linear_in_dy(name):
    case = case_of(name)
    _, saved, dy, gradients = run(case, case.inputs)
    tripled = arrays_in([case.backward(-3 * dy, saved)])
    assert all(close(a, -3 * b, 1e-13) for a, b in zip(tripled, arrays_in(gradients), strict=True))


@pytest.mark.parametrize("name", OPS)
def test_gradients_come_in_the_order_and_shape_of_the_inputs(name):
    case = case_of(name)
    _, _, _, gradients = run(case, case.inputs)
    floats = [x for x in case.inputs if getattr(x, "dtype", None) == np.float64]
    assert [g.shape for g in gradients if g is not None] == [x.shape for x in floats]


@pytest.mark.parametrize("name", sorted({name for name in ops.__all__ if name.endswith("_backward")}))
def test_backward_takes_dy_then_saved(name):
    dy, saved, *rest = inspect.signature(getattr(ops, name)).parameters
    assert dy in ("dy", "dloss") and saved == "saved" and rest in ([], ["out", "learned"], ["add_to"])


@pytest.mark.parametrize("name", ["linear", "linear, no bias", "lora", "linear_cross_entropy",
                                  "linear_cross_entropy, by 3 rows"])
def test_a_weight_gradient_is_written_where_out_says(name):
    case = case_of(name)
    _, saved, dy, gradients = run(case, case.inputs)
    memory = np.full(gradients[1].shape, np.nan)
    into = case.backward(dy, saved, out=memory)
    assert into[1] is memory and np.array_equal(memory, gradients[1])
    assert all(np.array_equal(a, b) for a, b in zip(arrays_in(into), arrays_in(gradients), strict=True))
