"""Property tests of your own layers: Hypothesis strategies for shapes, seeds and awkward memory layouts.

A wrong gradient often hides behind a shape: a missing transpose passes on a square matrix, a sum over the
wrong axis on an axis of length 1, a reshape on contiguous memory. So draw the shapes and the memory layout,
and leave the numbers to a seed: Hypothesis then shrinks a failure to the smallest shape that still fails.

A whole test of a layer that you wrote, as you could copy it:

    from hypothesis import given
    from npgpt import check_gradients
    from npgpt.testing import arrays

    def gate_forward(x, gate):
        \"\"\"x: (B, T, C)  gate: (C,)  →  y: (B, T, C),  y = x gate\"\"\"
        return x * gate, (x, gate)

    def gate_backward(dy, saved):
        x, gate = saved
        return dy * gate, (dy * x).sum((0, 1))

    @given(arrays("B T C", "C"))
    def test_the_gradients_of_the_gate_are_right(inputs):
        x, gate = inputs
        check_gradients(gate_forward, gate_backward, x, gate)

`axes("B T C")` draws the sizes alone, `seeds()` a seed for data that you make yourself, and `LAYOUTS` puts an
array that you have into each of the memory layouts. Needs Hypothesis: pip install 'npgpt[test]'.
"""

from collections.abc import Callable, Mapping

import numpy as np

from npgpt.errors import NpgptError


class MissingHypothesisError(NpgptError, ImportError):
    """Hypothesis, which these strategies are made of, is not installed."""


try:
    from hypothesis import strategies as st
except ImportError as error:
    raise MissingHypothesisError("npgpt.testing needs Hypothesis: pip install 'npgpt[test]'") from error

__all__ = ["LAYOUTS", "MissingHypothesisError", "arrays", "axes", "seeds"]


def seeds() -> st.SearchStrategy[int]:
    """A seed for `numpy.random.default_rng`: 0 ≤ seed < 2³²."""
    return st.integers(0, 2**32 - 1)


@st.composite
def axes(draw: st.DrawFn, names: str, max_size: int = 6, min_size: int = 1) -> dict[str, int]:
    """Sizes for axes named in one string, each from min_size to max_size:  axes("B T") → {"B": 2, "T": 5}

    In most draws all sizes differ (as far as max_size allows), so that no axis can be taken for another. In
    some, any number of axes have size min_size; in some, two of them are equal (a square matrix, T = S).
    """
    axis_names = names.split()
    larger = draw(st.permutations(range(min(min_size + 1, max_size), max_size + 1)))
    sizes = {name: larger[n % len(larger)] for n, name in enumerate(axis_names)}
    kind = draw(st.sampled_from(["all differ", "one of size one", "some of size one", "two equal"]))
    if kind == "one of size one" and axis_names:
        sizes[draw(st.sampled_from(axis_names))] = min_size
    if kind == "some of size one":
        sizes |= dict.fromkeys(draw(st.sets(st.sampled_from(axis_names))) if axis_names else (), min_size)
    if kind == "two equal" and len(axis_names) > 1:
        first, second = draw(st.permutations(axis_names))[:2]
        sizes[first] = sizes[second]
    return sizes


@st.composite
def arrays(draw: st.DrawFn, *shapes: str | tuple[int, ...], sizes: Mapping[str, int] | None = None,
           max_size: int = 6) -> tuple[np.ndarray, ...]:
    """A float64 array for each shape, all in one tuple, with standard normal values made from a drawn seed.

    shapes: axis names in one string, such as "B T C", or a tuple of sizes. A name has the same size in all.
    sizes: of some or all names, where they are known; the others are drawn as by `axes`, up to max_size.
    Every array gets a memory layout of its own out of LAYOUTS.
    """
    known = dict(sizes or {})
    names = " ".join(shape for shape in shapes if isinstance(shape, str)).split()
    known |= draw(axes(" ".join(name for name in dict.fromkeys(names) if name not in known), max_size))
    rng = np.random.default_rng(draw(seeds()))
    made = []
    for shape in shapes:
        full_shape = tuple(known[name] for name in shape.split()) if isinstance(shape, str) else shape
        layout = draw(st.sampled_from(list(LAYOUTS)))
        made.append(LAYOUTS[layout](np.asarray(rng.standard_normal(full_shape))))
    return tuple(made)


def _contiguous(values: np.ndarray) -> np.ndarray:
    return np.array(values, order="C")


def _fortran(values: np.ndarray) -> np.ndarray:
    return np.array(values, order="F")


def _strided(values: np.ndarray) -> np.ndarray:
    """Every second element of rows twice as long; between them lies NaN, the lowest integer or True."""
    if values.ndim == 0:
        return values.copy()
    wide = np.empty((*values.shape[:-1], 2 * values.shape[-1]), values.dtype)
    kind = values.dtype.kind
    wide[..., 1::2] = np.nan if kind in "fc" else np.iinfo(values.dtype).min if kind in "iu" else True
    wide[..., ::2] = values
    return wide[..., ::2]


def _transposed(values: np.ndarray) -> np.ndarray:
    """The last two axes swapped in memory, as the heads of attention are."""
    return values.copy() if values.ndim < 2 else values.swapaxes(-1, -2).copy().swapaxes(-1, -2)


def _reversed(values: np.ndarray) -> np.ndarray:
    """Stored back to front: negative strides."""
    return values.copy() if values.ndim == 0 else np.flip(np.flip(values).copy())


LAYOUTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "C": _contiguous,
    "Fortran": _fortran,
    "strided": _strided,
    "transposed": _transposed,
    "reversed": _reversed,
}
"""name → function that gives the same values, shape and dtype in a new array of that memory layout."""
