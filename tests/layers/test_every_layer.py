"""What holds for every layer, shown on the examples of npgpt.inspection.examples."""

import contextlib
from unittest import mock

import numpy as np
import pytest
from hypothesis import example, given, settings

from npgpt import check_gradients, layers
from npgpt.inspection.examples import LAYERS, MODELS, Sizes, as_type, map_arrays
from npgpt.testing import LAYOUTS, axes, seeds

# Not two channels: a norm over two numbers is all but a step, and what reaches it in a block is not drawn.
SIZES = axes("B T S H D C V", max_size=5).map(lambda n: Sizes(**n | {"C": n["C"] + 2, "D": n["D"] + 2}))
ALL_ONE = Sizes(*[1] * 7)
SQUARE = Sizes(B=3, T=4, S=4, H=2, D=2, C=4, V=4)


def case_of(name, n=None, seed=0):
    return (LAYERS | MODELS)[name](n or Sizes(), np.random.default_rng(seed), "cpu")


def module_of(case):
    return case.forward.__self__


def without_twins():
    """Ops find no twin: the formulas run."""
    return mock.patch("npgpt.tensor.twins.find_twin", lambda *_: None)


def arrays_in(value):
    """Every array in a nest of tuples and lists, in order."""
    if isinstance(value, np.ndarray):
        return [value]
    return [array for part in value for array in arrays_in(part)] if isinstance(value, (tuple, list)) else []


def run(case, inputs, layout=np.asarray):
    """y, saved, and by name every gradient of one forward and backward after zero_grad."""
    for parameter in case.parameters.values():
        parameter.unset = True
    y, saved = case.forward(*inputs)
    dy = layout(np.random.default_rng(7).standard_normal(y.shape).astype(y.dtype))
    dx = case.backward(dy, saved)
    return y, saved, {name: p.grad.copy() for name, p in case.parameters.items()} | \
        ({"x": dx} if isinstance(dx, np.ndarray) else {})          # tokens have no gradient


def test_every_layer_has_an_example():
    shown = {type(module_of(case_of(name))).__name__ for name in LAYERS}
    assert shown == {name for name in layers.__all__ if name[0].isupper()} - {"Module", "Parameter",
                                                                              "RotaryPosition"}


@pytest.mark.parametrize("name", LAYERS | MODELS)
@settings(max_examples=4)
@given(n=SIZES, seed=seeds(), formulas=...)
@example(n=Sizes(), seed=0, formulas=False)
@example(n=Sizes(), seed=1, formulas=True)
@example(n=ALL_ONE, seed=0, formulas=False)
@example(n=SQUARE, seed=1, formulas=False)
def test_gradients_are_right(name, n, seed, formulas: bool):
    case = case_of(name, n, seed)
    with without_twins() if formulas else contextlib.nullcontext():
        check_gradients(case.forward, case.backward, *case.inputs, parameters=case.parameters)


@pytest.mark.parametrize("name", LAYERS)
def test_float32_stays_float32(name):
    case = case_of(name)
    values = {name: parameter.data.astype("f4") for name, parameter in case.parameters.items()}
    module_of(case).initialise(dtype="float32")
    for key, parameter in case.parameters.items():
        parameter.data[...] = values[key]
    inputs = as_type("f4", case.inputs)
    y, saved, gradients = run(case, inputs)
    made = [y, *arrays_in(saved), *gradients.values()]
    assert {array.dtype for array in made if array.dtype.kind == "f"} == {np.dtype("f4")}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", LAYERS)
def test_memory_layout_does_not_change_the_result(name, layout):
    case = case_of(name)
    y, _, gradients = run(case, case.inputs)
    inputs = map_arrays(LAYOUTS[layout], case.inputs)
    other_y, _, other = run(case, inputs, LAYOUTS[layout])
    assert np.allclose(y, other_y, rtol=1e-13, atol=1e-13)
    for key, gradient in gradients.items():
        assert np.allclose(other[key], gradient, rtol=0, atol=1e-13 * max(1, np.abs(gradient).max())), key


@pytest.mark.parametrize("name", LAYERS)
def test_only_gradients_change(name):
    """Not the input, not the parameters, nothing of `saved`, no attribute of any module."""
    def state(module):
        return {key: (id(value), state(value) if isinstance(value, layers.Module) else None)
                for key, value in vars(module).items()}
    case = case_of(name)
    before = state(module_of(case))
    guarded = arrays_in(case.inputs) + [parameter.data for parameter in case.parameters.values()]
    copies = [array.copy() for array in guarded]
    for array in guarded:
        array.flags.writeable = False
    y, saved = case.forward(*case.inputs)
    assert all(parameter.unset for parameter in case.parameters.values()), "forward touched a gradient"
    dy = np.ones_like(y)
    made = arrays_in([y, saved, dy])
    copies += [array.copy() for array in made]
    for array in made:
        array.flags.writeable = False
    case.backward(dy, saved)
    assert all(np.array_equal(array, copy) for array, copy in zip(guarded + made, copies, strict=True))
    assert state(module_of(case)) == before


@pytest.mark.parametrize("name", LAYERS)
def test_backward_twice_doubles_the_gradient(name):
    case = case_of(name)
    _, saved, once = run(case, case.inputs)
    dy = np.random.default_rng(7).standard_normal(case.forward(*case.inputs)[0].shape)
    dx = case.backward(dy, saved)
    for key, parameter in case.parameters.items():
        assert np.array_equal(parameter.grad, 2 * once[key]), key
    assert not isinstance(dx, np.ndarray) or np.array_equal(dx, once["x"])


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_called_twice_gathers_both_gradients(name):
    """On two inputs, and the backwards in the other order: nothing is kept on the layer."""
    case, other = case_of(name, seed=1), case_of(name, seed=2)
    first, second = run(case, case.inputs)[2], run(case, other.inputs)[2]
    for parameter in case.parameters.values():
        parameter.unset = True
    y, saved_first = case.forward(*case.inputs)
    _, saved_second = case.forward(*other.inputs)
    dy = np.random.default_rng(7).standard_normal(y.shape)
    case.backward(dy, saved_second)
    case.backward(dy, saved_first)
    for key, parameter in case.parameters.items():
        expected = first[key] + second[key]
        assert np.allclose(parameter.grad, expected, rtol=0, atol=1e-14 * max(1, np.abs(expected).max())), key


@pytest.mark.parametrize("name", LAYERS)
def test_the_first_gradient_is_written_over_whatever_the_memory_held(name):
    case = case_of(name)
    _, _, clean = run(case, case.inputs)
    for parameter in case.parameters.values():
        parameter._grad[...] = np.nan
    _, _, dirty = run(case, case.inputs)
    assert all(np.array_equal(dirty[key], clean[key]) for key in clean)
