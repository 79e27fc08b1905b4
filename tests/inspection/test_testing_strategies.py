"""The strategies that npgpt.testing gives to users do what their docstrings say."""

import subprocess
import sys
import textwrap

import numpy as np
import pytest
from hypothesis import find, given, settings

import npgpt.testing
from npgpt import GradientError
from npgpt.testing import LAYOUTS, arrays, axes, seeds


def documented_example() -> str:
    """The code in the module's docstring."""
    text = npgpt.testing.__doc__
    return textwrap.dedent(text[text.index("    from hypothesis"):text.index("`axes(")])


def test_the_documented_example_runs_as_it_stands():
    namespace = {}
    exec(compile(documented_example(), "npgpt.testing", "exec"), namespace)
    namespace["test_the_gradients_of_the_gate_are_right"]()


def test_the_documented_example_fails_when_its_backward_is_wrong():
    namespace = {}
    wrong = documented_example().replace(".sum((0, 1))", ".sum(0).sum(0) * 1.001")
    exec(compile(wrong, "npgpt.testing", "exec"), namespace)
    with pytest.raises(GradientError, match="gradient of gate"):
        namespace["test_the_gradients_of_the_gate_are_right"]()


@given(axes("B T C", max_size=6))
def test_axes_give_every_name_a_size_in_range(sizes):
    assert list(sizes) == ["B", "T", "C"]
    assert all(1 <= size <= 6 for size in sizes.values())


@given(axes("B T", max_size=4, min_size=2))
def test_axes_keep_to_the_smallest_size_asked_for(sizes):
    assert all(2 <= size <= 4 for size in sizes.values())


@pytest.mark.parametrize("wanted", [
    lambda n: len(set(n.values())) == 4,
    lambda n: n["B"] == n["T"] == 1,
    lambda n: n["C"] == n["D"] > 1,
    lambda n: n["B"] == 6,
], ids=["all different", "B = T = 1", "a square", "the largest"])
def test_axes_reach_the_cases_that_matter(wanted):
    find(axes("B T C D"), wanted, settings=settings(max_examples=500, derandomize=True, database=None))


def test_axes_are_mostly_all_different():
    different = []

    @settings(max_examples=200)
    @given(axes("B T C"))
    def collect(sizes):
        different.append(len(set(sizes.values())) == 3)
    collect()
    assert np.mean(different) > 0.5


@given(arrays("B T C", "C D", (3, 2)))
def test_arrays_agree_on_named_axes_and_keep_given_shapes(made):
    x, weight, other = made
    assert x.ndim == 3 and x.shape[2] == weight.shape[0] and other.shape == (3, 2)
    assert all(array.dtype == np.float64 and np.isfinite(array).all() for array in made)


@given(arrays("B C", sizes={"C": 5}))
def test_arrays_take_known_sizes(made):
    assert made[0].shape[1] == 5


@pytest.mark.parametrize("shape", [(), (4,), (2, 3), (2, 3, 4)])
@pytest.mark.parametrize("dtype", ["float64", "float32", "int64", "bool"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_changes_the_memory_and_not_the_values(layout, shape, dtype):
    values = np.asarray(10 * np.random.default_rng(0).standard_normal(shape)).astype(dtype)
    array = LAYOUTS[layout](values)
    assert array.dtype == dtype and array.shape == shape and np.array_equal(array, values)
    assert not np.shares_memory(array, values)
    assert array.flags.writeable


def test_layouts_are_what_they_are_called():
    made = {name: layout(np.ones((2, 3, 4))) for name, layout in LAYOUTS.items()}
    assert made["C"].flags.c_contiguous
    assert made["Fortran"].flags.f_contiguous
    assert made["strided"].strides[-1] == 16
    assert made["transposed"].strides == (96, 8, 24)
    assert all(stride < 0 for stride in made["reversed"].strides)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_arrays_come_in_every_layout(layout):
    strides = LAYOUTS[layout](np.ones((2, 3, 4))).strides
    find(arrays((2, 3, 4)), lambda made: made[0].strides == strides,
         settings=settings(max_examples=200, derandomize=True, database=None))


@given(seeds())
def test_seeds_are_taken_by_numpy(seed):
    np.random.default_rng(seed)


def test_without_hypothesis_one_sentence_says_what_to_install():
    code = ("import sys; sys.modules['hypothesis'] = None\n"
            "import npgpt\n"
            "try:\n    import npgpt.testing\n"
            "except npgpt.NpgptError as error:\n    assert isinstance(error, ImportError); print(error)")
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.strip() == "npgpt.testing needs Hypothesis: pip install 'npgpt[test]'"
