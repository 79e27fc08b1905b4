"""What a twin for CUDA does not cover it leaves to the formula, and launches nothing."""

import numpy as np
import pytest
from kernels.test_cuda_twins import TOLERANCE, TWINS, fetched, narrowed, placed
from kernels.test_twins import assert_same

from npgpt import ops
from npgpt.tensor import Key
from npgpt.tensor.precision import accumulator, in_float32


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name, sums", [("layernorm", 2), ("rmsnorm", 1)])
def test_rows_too_wide_for_shared_memory_go_back_by_the_formula(cupy, name, sums, dtype):
    """Up to 48 KiB of sums; wider models than most, but no error."""
    widest = (48 << 10) // np.dtype(accumulator(dtype)).itemsize // sums
    for width in (widest, widest + 1):
        x, dy, gain = np.random.default_rng(0).standard_normal((3, 2, width)).astype(dtype)
        _, saved    = in_float32(getattr(ops, f"{name}_forward").reference, (x, gain[0]), {})
        gradients   = TWINS[f"{name}_backward"](*placed((dy, saved)))
        if width > widest:
            assert gradients is NotImplemented
        else:
            expected = in_float32(getattr(ops, f"{name}_backward").reference, (dy, saved), {})
            assert_same(narrowed(name, fetched(gradients), dtype), expected, TOLERANCE[dtype])


X, GAIN, TOKENS = np.ones((3, 4), "f4"), np.ones(4, "f4"), np.array([0, 1, 2])
LAYERNORM, RMSNORM = ops.layernorm_forward(X, GAIN)[1], ops.rmsnorm_forward(X, GAIN)[1]
ANGLES = (np.ones((3, 2), "f4"), np.ones((3, 2), "f4"))
HEADS  = np.ones((1, 1, 3, 4), "f4")


@pytest.mark.parametrize(("name", "arguments"), [
    ("gelu_tanh_backward", (X.T, (X.T,))), ("gelu_tanh_backward", (X, (X.astype("f8"),))),
    *(("residual_forward", pair) for pair in ((X.T, X.T), (X, X.astype("f8")), (X, X[:1]))),
    ("residual_layernorm_forward", (X, X.astype("f8"), GAIN)),
    ("residual_layernorm_backward", ((X, np.ones((4, 3), "f4").T), LAYERNORM)),
    ("residual_rmsnorm_backward", ((np.ones((4, 3), "f4").T, X), RMSNORM)),
    ("linear_backward", (np.ones((4, 3), "f4").T, (X, np.ones((4, 4), "f4"), True))),
    *((name, (bad,)) for name in ("gelu_tanh_forward", "swiglu_forward")
      for bad in (X.T, X[:0], X.astype("i8"))),
    *((name, (bad, *more)) for name in ("layernorm_forward", "rmsnorm_forward")
      for bad, *more in ((X.T, GAIN[:3]), (X[:0], GAIN), (X, GAIN.astype("f8")), (X, np.ones(8, "f4")[::2]))),
    ("layernorm_forward", (X, GAIN, GAIN.astype("f8"))),
    *((name, (bad, saved))
      for name, saved in (("layernorm_backward", LAYERNORM), ("rmsnorm_backward", RMSNORM))
      for bad in (np.ones((4, 3), "f4").T, X.astype("f8"))),
    ("swiglu_backward", (np.ones((4, 3), "f4").T, (np.ones((3, 8), "f4"), X))),
    ("swiglu_backward", (X, (np.ones((3, 8), "f4"), np.ones((4, 3), "f4").T))),
    ("dropout_forward", (X.T, 0.5, Key(1))), ("dropout_forward", (np.array(1.0), 0.5, Key(1))),
    ("dropout_backward", (X.T, (0.5, Key(1)))),
    ("embedding_backward", (X, (TOKENS.astype("i4"), (5, 4)))),
    ("embedding_backward", (np.ones((4, 3), "f4").T, (TOKENS, (5, 4)))),
    ("embedding_backward", (X, (TOKENS, (5, 4)), np.ones((4, 5), "f4").T)),
    ("embedding_backward", (X, (TOKENS, (5, 4)), np.ones((5, 4)))),
    ("rotary_forward", (HEADS, tuple(angle.astype("f8") for angle in ANGLES))),
    ("rotary_forward", (HEADS[:, :, :0], tuple(angle[:0] for angle in ANGLES))),
    ("rotary_forward", (HEADS, tuple(angle[None] for angle in ANGLES))),
    ("rotary_forward", (HEADS, tuple(np.ones((2, 3), "f4").T for _ in ANGLES))),
    ("rotary_forward", (HEADS[:0], ANGLES)),
    ("rotary_forward", (np.ones((1, 1, 4, 3), "f4").swapaxes(2, 3), ANGLES)),
    ("rotary_backward", (HEADS.astype("f8"), (ANGLES, False))),
    ("cross_entropy_forward", (X.T, np.array([0, 1, 2, 0]))),
    ("cross_entropy_forward", (X, TOKENS.astype("i4"))),
    ("cross_entropy_forward", (X, np.zeros(6, int)[::2])),
    ("cross_entropy_backward", (np.array(1.0), (X, TOKENS.astype("i4"), *[X[:, :1].copy()] * 2, 3, -100))),
    ("cross_entropy_backward", (np.array(1.0), (X, TOKENS, *[X[:, :1]] * 2, 3, -100))),
    ("linear_cross_entropy_forward", (X, np.ones((5, 4)), TOKENS)),
    ("linear_cross_entropy_forward", (X, np.ones((5, 4), "f4"), TOKENS.astype("i4"))),
    ("attention_forward", (HEADS.swapaxes(2, 3), HEADS.swapaxes(2, 3), HEADS.swapaxes(2, 3))),
    ("attention_forward", (HEADS, HEADS.astype("f8"), HEADS)),
    ("attention_forward", (HEADS[:, :, :0], HEADS, HEADS)),
    ("attention_forward", (HEADS, HEADS, HEADS, True, np.ones((1, 3), "i8"))),
    ("attention_forward", (HEADS, HEADS, HEADS, True, None, np.ones((1, 3), "i4"))),
    ("attention_forward", (*[np.ones((1, 1, 2, 129), "f4")] * 3, True)),
    ("attention_forward", (*[HEADS.astype("i8")] * 3, True)),
    ("attention_backward", (np.ones((1, 1, 4, 3), "f4").swapaxes(2, 3),
                            ops.attention_forward(HEADS, HEADS, HEADS)[1])),
    ("adamw", (X, X, X, X, 1, 0.1)),
])
def test_what_a_twin_does_not_cover_it_leaves_to_the_formula(cupy, launches, name, arguments):
    assert TWINS[name](*placed(arguments)) is NotImplemented and not launches


def test_adamw_in_other_places_is_left_to_the_formula(cupy):
    w, g, m, v, other = (cupy.asarray(X) for _ in range(5))
    twin = TWINS["adamw"]
    assert twin(w, g, m, v, 1, 0.1, out=(w, m, other)) is NotImplemented
    assert twin(w, g.T, m, v, 1, 0.1, out=(w, m, v)) is NotImplemented
    for narrow in (w, cupy.asarray(X.astype("f2")).T):
        assert twin(w, g, m, v, 1, 0.1, out=(w, m, v), narrow=narrow, key=Key(0)) is NotImplemented
    w, g, m, v = (array.astype("float16") for array in (w, g, m, v))
    assert twin(w, g, m, v, 1, 0.1, out=(w, m, v)) is NotImplemented
