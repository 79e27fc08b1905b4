"""Sums over many rows on a GPU: of 16 bits they are made and kept in float32, always in the same order."""

import numpy as np
import pytest
from cuda_on_cpu import launcher
from kernels.test_cuda_twins import TWINS, fetched, placed

from npgpt import ops
from npgpt.kernels.cuda import biased_product, columns
from npgpt.layers import Linear
from npgpt.tensor.precision import NARROW


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("rows, D", [(1, 1), (300, 8), (65, 264), (2000, 20)])
def test_a_bias_of_16_bits_is_added_to_every_row(cupy, launches, monkeypatch, dtype, rows, D):
    """Where no library does it in the product."""
    monkeypatch.setattr(biased_product, "_library", lambda xp: None)
    x, weight, bias = (np.random.default_rng(n).integers(-9, 10, shape).astype(dtype)
                       for n, shape in enumerate(((rows, 1), (1, D), (D,))))
    y, _ = TWINS["linear_forward"](*placed((x, weight, bias)))
    expected = x.astype("f4") @ weight.astype("f4") + bias.astype("f4")
    assert np.array_equal(fetched(y), expected.astype(dtype))
    assert launches[0][0] == "add_bias"


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("rows, D", [(1, 1), (300, 8), (65, 264), (2000, 20)])
def test_a_biass_gradient_of_16_bits_is_summed_in_float32(cupy, launches, dtype, rows, D):
    """By 8 warps, in 1 to 3 shares, of more and of fewer columns than a warp's packs hold. Of whole numbers
    the sum is exact.
    """
    dy = np.random.default_rng(0).integers(-3, 4, (rows, D)).astype(dtype)
    dy[0] = 200                                            # plus 1 is no bfloat16
    saved = (*placed((np.ones((rows, 2), dtype), np.ones((2, D), dtype))), True)
    _, _, dbias = TWINS["linear_backward"](*placed((dy,)), saved)
    assert launches[0][0] == "column_sums"
    assert dbias.dtype == "float32" and np.array_equal(fetched(dbias), dy.astype("f4").sum(0))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (31, 32), (32, 33), (100, 2, 70), (1024, 5)])
def test_what_blocks_have_left_is_added_up(cupy, dtype, shape):
    """By 32 warps of 32 columns: fewer blocks and columns than those, and more. Of whole numbers exact."""
    partial  = np.random.default_rng(0).integers(-99, 100, shape).astype(dtype)
    results  = []
    for launcher.reversed in (False, True):
        total = columns.add_up(placed(partial))
        assert total.dtype == dtype
        np.testing.assert_array_equal(fetched(total), partial.sum(0))
        uneven = placed((partial / 7).astype(dtype))
        results.append(fetched(columns.add_up(uneven)).tobytes())
    assert results[0] == results[1]


@pytest.mark.parametrize("dtype", ["float32", "float64", *NARROW])
@pytest.mark.parametrize("size", [1, 5, 1023, 4096, 20001])
def test_the_sum_of_squares(cupy, launches, dtype, size):
    """In up to 3 blocks, the last pack not whole. Squares of whole numbers and their sum are exact."""
    x        = np.random.default_rng(0).integers(-9, 10, size).astype(dtype)
    square   = TWINS["sum_of_squares"](placed(x))
    expected = (x.astype("f8") ** 2).sum()
    assert square.shape == () and square.dtype == ("float64" if dtype == "float64" else "float32")
    assert fetched(square) == expected
    assert [kernel for kernel, _ in launches] == ["sum_of_squares", "add_up"]
    if dtype not in NARROW:
        assert expected == ops.sum_of_squares.reference(x)


def test_a_sum_of_squares_knows_no_number_and_infinity(cupy):
    for odd in (np.nan, np.inf):
        x = np.ones(3000, "f4")
        x[2999] = odd
        np.testing.assert_equal(fetched(TWINS["sum_of_squares"](placed(x))), np.float32(odd))


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("N, C, D", [(1, 1, 1), (300, 5, 3), (7, 3, 40)])
@pytest.mark.parametrize("given", [True, False])
def test_a_weights_gradient_of_16_bits_stays_in_float32(cupy, dtype, N, C, D, given):
    """Sums that no number of 16 bits is, in `out` if given, whatever was there."""
    rng   = np.random.default_rng(0)
    x, dy = rng.integers(-5, 6, (N, C)).astype(dtype), rng.integers(-5, 6, (N, D)).astype(dtype)
    x[0], dy[0] = 129, 127                                                    # 16,383
    out  = cupy.full((C, D), float("nan"), np.float32) if given else None
    here = TWINS["weight_gradient"](*placed((x, dy)), out)
    assert here.dtype == "float32" and (here is out or not given)
    np.testing.assert_array_equal(fetched(here), x.astype("f4").T @ dy.astype("f4"))


def test_other_gradients_are_left_to_cupys_product(cupy):
    x = np.ones((3, 4), "f2")
    outs = np.ones((4, 4)), x[:1].repeat(4, 0), np.ones((4, 4), "f4")[::-1].T
    for arguments in ((x.astype("f4"), x.astype("f4"), None), (x.T, np.ones((4, 4), "f2"), None),
                      (x[:0], x[:0], None), *((x, x, out) for out in outs)):
        assert TWINS["weight_gradient"](*placed(arguments)) is NotImplemented


@pytest.mark.parametrize("dtype", NARROW)
def test_a_layers_gradient_of_16_bits_is_exact_to_float32(cupy, dtype):
    """That of the first backward, which is written where it belongs, and the sum with a second."""
    layer = Linear(6, 5).initialise(0, "cuda", dtype)
    rng   = np.random.default_rng(0)
    x, dy = rng.standard_normal((200, 6)).astype(dtype), rng.standard_normal((200, 5)).astype(dtype)
    exact = x.astype("f8").T @ dy.astype("f8")
    _, saved = layer.forward(placed(x))
    for times in (1, 2):
        layer.backward(placed(dy), saved)
        np.testing.assert_allclose(fetched(layer.weight.grad), times * exact, atol=1e-4)
        np.testing.assert_allclose(fetched(layer.bias.grad), times * dy.astype("f8").sum(0), atol=1e-4)
