"""Cross-entropy on CUDA, alone and after the head: rows of any length, place and content."""

import numpy as np
import pytest
from kernels.test_cuda_twins import TOLERANCE, TWINS, fetched, placed
from kernels.test_twins import assert_same

from npgpt import ops
from npgpt.kernels.cuda.cross_entropy import threads_of
from npgpt.tensor.precision import accumulator, in_float32


def test_logits_that_are_minus_infinity_or_large(cupy):
    z = np.random.default_rng(0).standard_normal((6, 600))
    # the last eight rows: the largest is seen by another warp each time
    z[0, :500], z[1, 3:], z[2], z[4, ::2] = -np.inf, -np.inf, 1e30, -1e4
    z = np.concatenate([z, np.where(np.arange(600) == 37 * np.arange(8)[:, None], 1e4, z[3])])
    targets = np.array([599, 0, 4, 7, -100, 1, *range(8)])
    expected, expected_saved = ops.cross_entropy_forward.reference(z, targets)
    loss, saved = TWINS["cross_entropy_forward"](*placed((z, targets)))
    np.testing.assert_allclose(loss.get(), expected, rtol=1e-13)
    np.testing.assert_allclose(saved[2].get(), expected_saved[2], rtol=1e-13)
    dz       = TWINS["cross_entropy_backward"](placed(np.array(2.0)), saved)
    expected = ops.cross_entropy_backward.reference(2.0, expected_saved)
    np.testing.assert_allclose(dz.get(), expected, atol=1e-14)


@pytest.mark.parametrize("V", [1, 100, 9001])
def test_a_row_has_as_many_threads_as_packs_or_goes_round(cupy, launches, V):
    """1,024 threads at most, 2 numbers of float64 each: the largest of 9,001 is seen in any of 5 rounds."""
    z       = np.random.default_rng(0).standard_normal((7, V))
    targets = np.array([V - 1, 0, -100, V // 2, *[V // 3] * 3])
    z[np.arange(7), np.arange(7) * (V - 1) // 6] = 20
    x, weight = np.eye(7), z.T.copy()
    loss, saved  = ops.linear_cross_entropy_forward.reference(x, weight, targets)
    plain, kept  = TWINS["cross_entropy_forward"](*placed((z, targets)))
    here, became = TWINS["linear_cross_entropy_forward"](*placed((x, weight, targets)))
    np.testing.assert_allclose([plain.get(), here.get()], [loss, loss], rtol=1e-13)
    np.testing.assert_allclose([kept[2].get(), became[4].get()], [saved[4]] * 2, rtol=1e-13)
    np.testing.assert_allclose(became[3].get(), saved[3], atol=1e-14)
    assert [kernel for kernel, _ in launches] == ["cross_entropy_forward", "cross_entropy_in_place"]
    assert threads_of(z) == {1: 32, 100: 64, 9001: 1024}[V]


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("V", [3, 64, 333])
def test_logits_may_begin_anywhere(cupy, dtype, V):
    """Where those and their gradients are not as far from 16 aligned bytes."""
    rng = np.random.default_rng(0)
    flat, targets = rng.standard_normal(5 * V + 1).astype(dtype), rng.integers(0, V, 5)
    dloss    = np.asarray(1.0, accumulator(dtype))
    _, saved = in_float32(ops.cross_entropy_forward.reference, (flat[1:].reshape(5, V), targets), {})
    expected = in_float32(ops.cross_entropy_backward.reference, (dloss, saved), {})
    _, saved = TWINS["cross_entropy_forward"](placed(flat)[1:].reshape(5, V), placed(targets))
    dz       = TWINS["cross_entropy_backward"](placed(dloss), saved)
    assert_same(fetched(dz), expected, TOLERANCE[dtype])


@pytest.mark.parametrize("items", [None, 0, 29])
@pytest.mark.parametrize("ignored", [True, False])
def test_a_batch_counts_as_many_items_as_it_is_told(cupy, launches, items, ignored):
    rng = np.random.default_rng(0)
    x, weight, targets = rng.standard_normal((5, 4)), rng.standard_normal((7, 4)), np.full(5, -100)
    targets[:3] = targets[:3] if ignored else [0, 6, 2]
    for name, arguments in (("cross_entropy", (x, np.where(targets < 0, -100, targets % 4))),
                            ("linear_cross_entropy", (x, weight, targets))):
        op, back = (getattr(ops, f"{name}_{way}").reference for way in ("forward", "backward"))
        loss, saved = op(*arguments, items)
        here, saved_here = TWINS[f"{name}_forward"](*placed(arguments), items)
        assert_same(fetched((here, saved_here)), (loss, saved), 1e-13)
        one      = np.array(1.0)
        gradient = getattr(ops, f"{name}_backward")(placed(one), saved_here)
        assert_same(fetched(gradient), back(one, saved), 1e-13)
    assert {kernel for kernel, _ in launches} >= {"cross_entropy_forward", "cross_entropy_in_place"}


def test_a_row_that_is_no_number_makes_a_loss_that_is_none(cupy):
    z = np.zeros((2, 300))
    z[1, 299] = np.nan
    loss, _ = TWINS["cross_entropy_forward"](*placed((z, np.array([0, 0]))))
    assert np.isnan(loss.get())


def test_logits_far_below_zero_give_their_loss(cupy):
    """No number beyond a row's ends, nor 0 in its place, is among those whose largest is taken."""
    for V in (1, 6, 13):
        z = np.full((3, V), -300, "f4")
        loss, _ = TWINS["cross_entropy_forward"](*placed((z, np.array([0, 0, 0]))))
        assert abs(loss.get() - np.log(V)) < 1e-4
