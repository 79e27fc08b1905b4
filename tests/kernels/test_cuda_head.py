"""The head and its loss on a GPU, of any vocabulary: tensor cores are given what they can load whole."""

import numpy as np
import pytest
from cuda_on_cpu import launcher
from kernels.test_cuda_twins import TWINS, assert_same, fetched, placed
from strict_cupy import machine

from npgpt import ops
from npgpt.kernels.cuda.products import multiply
from npgpt.tensor.precision import NARROW, arrays_in

C, N = 24, 11


def head(dtype, V):
    """Of logits that are whole numbers up to 40, which 16 bits hold; and of which one row is ignored."""
    rng     = np.random.default_rng(V)
    x, w    = rng.integers(-1, 2, (N, C)).astype(dtype), rng.integers(-2, 3, (V, C)).astype(dtype)
    targets = rng.integers(0, V, N)
    targets[0], targets[5] = V - 1, -100
    return x, w, targets


@pytest.mark.parametrize("dtype", [*NARROW, "float32"])
@pytest.mark.parametrize("V", [1, 7, 8, 13, 64, 65, 300])
@pytest.mark.parametrize("rows", [None, 3, 11, 50])
def test_the_head_gives_what_its_formula_gives(cupy, dtype, V, rows):
    x, w, targets = head(dtype, V)
    exact         = x.astype("f8"), w.astype("f8"), targets
    loss, saved   = ops.linear_cross_entropy_forward.reference(*exact, None, -100, rows)
    dloss         = np.array(3, "f4")
    backward      = TWINS["linear_cross_entropy_backward"]
    dx, dw        = ops.linear_cross_entropy_backward.reference(dloss.astype("f8"), saved)
    rounding      = {"float16": 1e-3, "bfloat16": 8e-3, "float32": 1e-6}[dtype]
    results       = []
    for launcher.reversed in (False, True):
        here, saved_here = TWINS["linear_cross_entropy_forward"](*placed((x, w, targets)), None, -100, rows)
        assert abs(here.get() - loss) < 2e-6 * (1 + loss) and here.dtype == "float32"
        assert (saved_here[3] is None) == (saved[3] is None) and saved_here[-1] == saved[-1]
        for learned in (True, False):
            out = cupy.full(w.shape, float("nan"), np.float32)
            gradients = backward(placed(dloss), saved_here, out, learned)
            assert gradients[0].dtype == dtype and gradients[1] is (out if learned else None)
            results.append([array.tobytes() for array in arrays_in(fetched(gradients))])
            dx_here = fetched(gradients[0]).astype("f8")
            np.testing.assert_allclose(dx_here, dx, atol=3 * rounding * abs(dx).max())
        _, dw_here = backward(placed(dloss), saved_here)
        np.testing.assert_allclose(fetched(dw_here), dw, atol=3 * rounding * abs(dw).max())
        assert fetched(dw_here).tobytes() == results[-2][1] and dw_here.dtype == "float32"
    assert results[:2] == results[2:]


@pytest.mark.parametrize("rows", [None, 4])
@pytest.mark.parametrize("V", [133, 8, 64])
def test_large_products_of_16_bits_are_of_whole_aligned_packs(cupy, monkeypatch, V, rows):
    """Addresses, distances and every size; what is left over is less than a pack of tokens."""
    calls, gemm = [], cupy.cuda.cublas.gemmEx
    monkeypatch.setattr(cupy.cuda.cublas, "gemmEx", lambda *rest: (calls.append(rest), gemm(*rest)))
    machine.order = "C"                                                       # as CuPy's results of such are
    x, w, targets = placed(head("float16", V))
    _, saved = TWINS["linear_cross_entropy_forward"](x, w, targets, None, -100, rows)
    TWINS["linear_cross_entropy_backward"](placed(np.array(1, "f4")), saved)
    large = [call for call in calls if V - V % 8 in call[3:6]]
    parts = 1 if rows is None else -(-N // rows)
    assert len(large) == parts * (3 if rows is None else 4)
    assert len(calls) == len(large) * (2 if V % 8 else 1)
    for call in large:
        assert {V - V % 8, C} < set(call[3:6])                                # the third are rows of x
        (a, _, lda, b, _, ldb), (c, _, ldc) = call[7:13], call[14:17]
        assert [number % 8 for number in (lda, ldb, ldc)] == [0, 0, 0], call
        assert all(address % 16 == 0 for address in (a, b, c))
    small = [call for call in calls if call not in large]
    assert all(V % 8 in call[3:6] for call in small)


@pytest.mark.parametrize("dtype", [*NARROW, "float32", "float64"])
@pytest.mark.parametrize("M, K, N", [(1, 1, 1), (1, 5, 3), (4, 1, 3), (4, 5, 1), (7, 9, 8)])
@pytest.mark.parametrize("transposed", [(False, False), (True, False), (False, True), (True, True)])
@pytest.mark.parametrize("add", [False, True])
def test_products(cupy, dtype, M, K, N, transposed, add):
    """Of parts of arrays whose rows lie apart, where CuPy's own product does not do it."""
    rng, spare = np.random.default_rng(0), 3 if dtype in NARROW else 0
    parts = []
    for (rows, columns), turned in zip(((M, K), (K, N), (M, N)), (*transposed, False), strict=True):
        shape = (columns, rows) if turned else (rows, columns)
        whole = rng.integers(-3, 4, (shape[0], shape[1] + spare)).astype(dtype)
        parts.append((placed(whole), whole, turned))
    a, b, out = (whole[:, :whole.shape[1] - spare].T if turned else whole[:, :whole.shape[1] - spare]
                 for whole, _, turned in parts)
    x, y, z = (whole[:, :whole.shape[1] - spare].T if turned else whole[:, :whole.shape[1] - spare]
               for _, whole, turned in parts)
    expected = x.astype("f8") @ y.astype("f8") + add * z.astype("f8")
    multiply(a, b, out, add)
    assert_same(fetched(out), expected.astype(dtype), 0)
    if spare:                                                                 # what is beside it is as it was
        np.testing.assert_array_equal(fetched(parts[2][0])[:, N:], parts[2][1][:, N:])
