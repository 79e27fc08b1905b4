"""A bias of 16 bits is added in its product, to sums of float32, and what is given is rounded once."""

import numpy as np
import pytest
from kernels.test_cuda_twins import TWINS, fetched, placed

from npgpt.kernels.cuda import biased_product
from npgpt.tensor.precision import NARROW

of_16_bits = pytest.mark.parametrize("dtype", NARROW)


def arrays(dtype, rows=(6, 50), K=24, N=40, seed=0):
    """Of whole numbers, whose sums of products are exact in float32, and most of them none of 16 bits."""
    rng = np.random.default_rng(seed)
    return tuple(rng.integers(-40, 41, shape).astype(dtype) for shape in ((*rows, K), (K, N), (N,)))


def expected(x, weight, bias):
    return (x.astype("f4") @ weight.astype("f4") + bias.astype("f4")).astype(x.dtype)


@of_16_bits
@pytest.mark.parametrize("sizes", [((1,), 1, 1), ((300,), 8, 16), ((2, 3, 7), 30, 33), ((1,), 768, 2304)])
def test_it_is_added_to_the_sums_and_they_are_rounded_once(cupy, launches, dtype, sizes):
    x, weight, bias = arrays(dtype, *sizes)
    y, saved = TWINS["linear_forward"](*placed((x, weight, bias)))
    assert y.dtype == x.dtype and np.array_equal(fetched(y), expected(x, weight, bias))
    assert np.array_equal(fetched(saved[0]), x) and saved[2] is True
    assert launches == []                                                     # beside the product


@of_16_bits
def test_arrays_of_one_shape_may_lie_anywhere_and_each_call_has_its_bias(cupy, launches, dtype):
    """At addresses that are multiples of 64 and of 16 bytes; x and weight at those of 2 bytes, too."""
    for seed, before in enumerate((0, 8, 1, 0)):
        values = arrays(dtype, seed=seed)
        *here, bias = side_by_side(*values, before=before)
        if before == 1:
            bias = placed(values[2])
        y, _ = TWINS["linear_forward"](*here, bias)
        assert np.array_equal(fetched(y), expected(*values))
    assert launches == []


@of_16_bits
def test_a_bias_that_does_not_begin_with_a_pack_is_added_after_the_product(cupy, launches, dtype):
    """At a multiple of 2, 4 and 8 bytes: the library has algorithms that end at such, and chooses them."""
    for before in (1, 2, 4):
        values = arrays(dtype, seed=before)
        check_that_it_is_added_after(launches, *values, here=side_by_side(*values, before=before))


def side_by_side(*values, before):
    """On the device, in one array, so many numbers from its beginning on."""
    parts = [np.zeros(before, values[0].dtype), *(array.ravel() for array in values)]
    flat  = placed(np.concatenate(parts))
    ends  = before + np.cumsum([array.size for array in values])
    return [flat[int(end) - array.size:int(end)].reshape(array.shape)
            for array, end in zip(values, ends, strict=True)]


REFUSALS = {"no such product": ("cublasLtMatmulAlgoGetHeuristic", 15),
            "no algorithm": ("cublasLtMatmulAlgoGetHeuristic", 0),
            "not by this algorithm": ("cublasLtMatmul", 15)}


@of_16_bits
@pytest.mark.parametrize("refusal", REFUSALS)
def test_where_the_library_refuses_it_is_added_after_the_product(cupy, launches, monkeypatch, dtype, refusal):
    function, status = REFUSALS[refusal]
    monkeypatch.setattr(biased_product._library(cupy), function, lambda *arguments: status)
    check_that_it_is_added_after(launches, *arrays(dtype, (5,), 3, 7))


@of_16_bits
def test_arrays_with_gaps_have_it_added_after_the_product(cupy, launches, dtype):
    x, weight, bias = arrays(dtype)
    check_that_it_is_added_after(launches, x[:, ::2], weight, bias)
    check_that_it_is_added_after(launches, x, weight.T.copy().T, bias)


def check_that_it_is_added_after(launches, x, weight, bias, here=None):
    launches.clear()
    y, _  = TWINS["linear_forward"](*(here or placed((x, weight, bias))))
    sums  = (x.astype("f4") @ weight.astype("f4")).astype(x.dtype)
    assert np.array_equal(fetched(y), (sums.astype("f4") + bias.astype("f4")).astype(x.dtype))
    assert [kernel for kernel, _ in launches] == ["add_bias"]
