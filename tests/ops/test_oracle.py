"""Every op agrees with PyTorch, and with numbers that PyTorch once gave for those who do not have it."""

import json

import numpy as np
import pytest
from pytorch_ops import (
    ADAMW,
    ADAMW_STEPS,
    NUMBERS,
    STORED,
    adamw_gradient,
    pytorch_adamw,
    pytorch_results,
    stored_dy,
    waves,
)

from npgpt import ops
from npgpt.inspection.examples import OPS, Sizes, as_type

STORED_NUMBERS = json.loads(NUMBERS.read_text(encoding="utf-8"))


def error(actual, expected):
    """The largest error, relative to the largest expected number."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape
    return np.abs(actual - expected).max() / np.abs(expected).max()


def results(name, inputs, dy, formula=False):
    """Value and gradients of an op."""
    forward, backward = getattr(ops, f"{name}_forward"), getattr(ops, f"{name}_backward")
    if formula:
        forward, backward = forward.reference, backward.reference
    y, saved = forward(*inputs)
    y = np.stack(y) if isinstance(y, tuple) else y
    gradients = backward(dy(y.shape).astype(y.dtype), saved)
    return y, [g for g in (gradients if isinstance(gradients, tuple) else (gradients,)) if g is not None]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-12), ("float32", 1e-5)])
@pytest.mark.parametrize("label", OPS)
def test_values_and_gradients_are_those_of_pytorch(label, dtype, tolerance, seed):
    pytest.importorskip("torch")
    sizes = [Sizes(), Sizes(T=4, S=4, D=4, C=4), Sizes(B=1, T=3, S=5, C=9, V=5)][seed]
    case = OPS[label](sizes, np.random.default_rng(seed), "cpu")
    inputs = as_type(dtype, case.inputs)
    name = case.forward.__name__.removesuffix("_forward")
    def dy(shape):
        return np.asarray(np.random.default_rng(9).standard_normal(shape)).astype(dtype).astype("float64")
    y, gradients = results(name, inputs, dy)
    expected_y, expected_gradients = pytorch_results(name, inputs, dy)
    assert error(y, expected_y) <= tolerance
    for gradient, expected in zip(gradients, expected_gradients, strict=True):
        assert error(gradient, expected) <= tolerance


@pytest.mark.parametrize("causal", [True, False])
def test_attention_is_that_of_pytorch_itself(causal):
    torch = pytest.importorskip("torch")
    q, k, v = (np.random.default_rng(n).standard_normal((2, 3, 5, 4)) for n in range(3))
    attention = torch.nn.functional.scaled_dot_product_attention
    expected = attention(*map(torch.from_numpy, (q, k, v)), is_causal=causal).numpy()
    assert error(ops.attention_forward(q, k, v, causal)[0], expected) <= 1e-12


def test_every_op_has_stored_numbers():
    stored = {name for name, _ in STORED.values()}
    assert stored == {name.removesuffix("_forward") for name in ops.__all__ if name.endswith("_forward")}
    assert set(STORED_NUMBERS) == {*STORED, "adamw"}


@pytest.mark.parametrize("formula", [False, True], ids=["as called", "the formula"])
@pytest.mark.parametrize("label", STORED)
def test_values_and_gradients_are_the_stored_ones(label, formula):
    y, gradients = results(*STORED[label], stored_dy, formula)
    numbers = STORED_NUMBERS[label]
    assert error(y.ravel(), numbers["y"]) <= 1e-12
    for gradient, expected in zip(gradients, numbers["gradients"], strict=True):
        assert error(gradient.ravel(), expected) <= 1e-12


@pytest.mark.parametrize("label", STORED)
def test_the_recipe_of_the_stored_numbers_still_gives_them(label):
    pytest.importorskip("torch")
    y, gradients = pytorch_results(*STORED[label], stored_dy)
    assert error(y.ravel(), STORED_NUMBERS[label]["y"]) <= 1e-12
    for gradient, expected in zip(gradients, STORED_NUMBERS[label]["gradients"], strict=True):
        assert error(gradient.ravel(), expected) <= 1e-12


def npgpt_adamw(adamw, in_place):
    """The weights after each of six steps, (6, 2, 3)."""
    w, m, v = waves(2, 3), np.zeros((2, 3)), np.zeros((2, 3))
    weights = []
    for step in range(1, ADAMW_STEPS + 1):
        w, m, v = adamw(w, adamw_gradient(step), m, v, step, **ADAMW, out=(w, m, v) if in_place else None)
        weights.append(w.copy())
    return np.array(weights)


@pytest.mark.parametrize("in_place", [True, False])
@pytest.mark.parametrize("adamw", [ops.adamw, ops.adamw.reference], ids=["as called", "the formula"])
def test_six_steps_of_adamw_are_those_of_pytorch(adamw, in_place):
    pytest.importorskip("torch")
    assert error(npgpt_adamw(adamw, in_place), pytorch_adamw()) <= 1e-12


@pytest.mark.parametrize("in_place", [True, False])
@pytest.mark.parametrize("adamw", [ops.adamw, ops.adamw.reference], ids=["as called", "the formula"])
def test_six_steps_of_adamw_give_the_stored_weights(adamw, in_place):
    assert error(npgpt_adamw(adamw, in_place).ravel(), STORED_NUMBERS["adamw"]["weights"]) <= 1e-12


def test_adamw_without_out_leaves_its_arguments_alone():
    w, g, m, v = (np.abs(waves(2, 3, start=n)) for n in range(4))
    for array in (w, g, m, v):
        array.flags.writeable = False
    new = ops.adamw(w, g, m, v, 3, 0.1)
    assert all(np.any(a != b) for a, b in zip(new, (w, m, v), strict=True))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_adamw_keeps_the_type(dtype):
    w, g, m, v = (np.abs(waves(2, 3, start=n)).astype(dtype) for n in range(4))
    assert {array.dtype for array in ops.adamw(w, g, m, v, 3, 0.1)} == {np.dtype(dtype)}
    written = ops.adamw(w, g, m, v, 3, 0.1, out=(w, m, v))
    assert written[0] is w and written[1] is m and written[2] is v
