"""Arrays of more than 2³² numbers, which fit in the memory of one GPU: kernels find what lies at their ends.

Of each launch the last blocks alone run, on the CPU (cuda_on_cpu/), in memory that takes room only where it
is written.
"""

import math
import mmap
import sys

import ml_dtypes  # noqa: F401
import numpy as np
import pytest
import strict_cupy
from cuda_on_cpu import launcher

from npgpt import ops
from npgpt.kernels.cuda import cross_entropy, launch, linear
from npgpt.tensor import Key
from npgpt.tensor.precision import accumulator
from npgpt.tensor.random import rounding_bits
from npgpt.tensor.twins import find_twin

MANY  = 2**32                          # numbers: also for an unsigned one of 32 bits too many
FLAGS = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | (0x4000 if sys.platform == "linux" else 0)    # MAP_NORESERVE
TWINS = {name: find_twin(getattr(ops, name).reference, "cuda") for name in ops.__all__}

pytestmark = pytest.mark.slow
TYPES = pytest.mark.parametrize("dtype", ["float32", "bfloat16"])


@pytest.fixture
def cupy(cupy, request, monkeypatch):
    if request.node.callspec.params["cupy"] == "GPU":
        pytest.skip("a GPU runs all blocks")
    monkeypatch.setattr(cupy, "empty", lambda shape, dtype=float: array(shape, dtype))
    monkeypatch.setattr(launch, "BLOCKS", 2**31 - 1)
    monkeypatch.setattr(launcher, "most_blocks", 4)
    return cupy


def array(shape, dtype, end=None):
    """One on the device, of zeros, or at its end of what is given."""
    shape  = shape if isinstance(shape, tuple) else (shape,)
    dtype  = np.dtype(dtype)
    size   = math.prod(shape)
    try:
        memory = mmap.mmap(-1, max(size * dtype.itemsize, 1), flags=FLAGS)
    except OSError:
        pytest.skip("needs a system that gives more memory than it has")
    host   = np.frombuffer(memory, np.uint8, size * dtype.itemsize).view(dtype)
    if end is not None:
        host[size - end.size:] = end.astype(dtype).ravel()
    return strict_cupy.machine.allocate(host.reshape(shape))


def end_of(result, like):
    """As many of its last numbers, in the shape of these."""
    return result._host.reshape(-1)[result.size - like.size:].reshape(like.shape).astype(like.dtype)


def close(result, expected):
    """That the array ends so, up to rounding."""
    tolerance = 2.0**-6 if result.dtype == "bfloat16" else 1e-5
    expected  = np.asarray(expected, "f4")
    np.testing.assert_allclose(end_of(result, expected), expected, tolerance, tolerance)


def drawn(*shape, dtype="f4"):
    return np.random.default_rng(0).standard_normal(shape).astype(dtype).astype("f4")


@TYPES
def test_of_so_many_single_numbers(cupy, dtype):
    x, h = drawn(2, 300, dtype=dtype)
    size = MANY + 300
    y, (slope,) = TWINS["gelu_tanh_forward"](array(size, dtype, x))
    expected, (expected_slope,) = ops.gelu_tanh_forward.reference(x)
    close(y, expected)
    close(slope, expected_slope)
    close(TWINS["gelu_tanh_backward"](array(size, dtype, h), (array(size, dtype, x),)), x * h)
    close(TWINS["residual_forward"](array(size, dtype, x), array(size, dtype, h))[0], x + h)


@TYPES
@pytest.mark.parametrize("examples", [1, 3])
def test_dropout_of_so_many(cupy, dtype, examples):
    x, key, each = drawn(300, dtype=dtype), Key(3, step=2, example=2**40, site=2**50), MANY // examples + 304
    y, _ = TWINS["dropout_forward"](array((examples, each), dtype, x), 0.25, key)
    first = each - 304                                                        # of the last example
    bits  = key.philox(examples - 1, first // 16).random_raw(-(-304 // 4) + 16).view("<u2")[first % 16 + 4:]
    close(y, np.where(bits[:300] < 0.75 * 65536, x / 0.75, 0))


@pytest.mark.parametrize("dtype", [None, "bfloat16", "float16"])
def test_the_step_of_so_many_weights(cupy, dtype):
    w, g, m, v = drawn(4, 300)
    v, size, key = v * v, MANY + 300, Key(5, 7, step=9)
    w_, g_, m_, v_ = (array(size, "f4", end) for end in (w, g, m, v))
    narrow = {} if dtype is None else {"narrow": array(size, dtype), "key": key, "first": 2**33 + 77}
    TWINS["adamw"](w_, g_, m_, v_, 3, 0.1, out=(w_, m_, v_), **narrow)
    for result, expected in zip((w_, m_, v_), ops.adamw.reference(w, g, m, v, 3, 0.1), strict=True):
        close(result, expected)
    if dtype == "bfloat16":
        bits = rounding_bits(key, 2**33 + 77 + MANY, 300)
        np.testing.assert_array_equal(end_of(narrow["narrow"], w),
                                      (end_of(w_, w).view("u4") + bits & 0xffff0000).view("f4"))
    elif dtype:
        np.testing.assert_array_equal(end_of(narrow["narrow"], w), end_of(w_, w).astype("f2").astype("f4"))


def test_the_sum_of_so_many_squares(cupy, monkeypatch):
    """1,024 blocks go round, the last sees the last 1,024 numbers; and 1,024 numbers are what each left."""
    monkeypatch.setattr(launch, "BLOCKS", 1024)
    x = drawn(1024)
    total = TWINS["sum_of_squares"](array(MANY + 1024 * 1024, "f4", x))
    close(total, (x.astype("f8") ** 2).sum())


@TYPES
@pytest.mark.parametrize("name", ["layernorm", "rmsnorm"])
def test_norms_of_so_many(cupy, name, dtype):
    C = 328
    x, h, dy, ds = drawn(4, 8, C, dtype=dtype)
    gamma, rows = drawn(C, dtype=dtype), 32 * (MANY // (32 * C) + 1)
    forward, backward = (TWINS[f"{name}_{way}"] for way in ("forward", "backward"))
    formula  = [getattr(ops, f"{name}_{way}").reference for way in ("forward", "backward")]
    large    = [array((rows, C), dtype, part) for part in (x, h, dy, ds)]
    gamma_   = array(C, dtype, gamma)
    (s, y), saved = forward(large[0], gamma_, h=large[1])
    expected, expected_saved = formula[0]((x + h).astype(dtype).astype("f4"), gamma)
    close(s, x + h)
    close(y, expected)
    for here, there in zip(saved[-2:] if name == "layernorm" else saved[-1:],
                           expected_saved[-2:] if name == "layernorm" else expected_saved[-1:], strict=True):
        close(here, there)
    dx, *_ = backward(large[2], saved, large[3])
    close(dx, ds + formula[1](dy, expected_saved)[0])


@TYPES
def test_halves_of_so_many(cupy, dtype):
    F = 1032
    g, u, dy = drawn(3, 2, F, dtype=dtype)
    x, rows  = np.concatenate([g, u], -1), MANY // F
    y, saved = TWINS["swiglu_forward"](array((rows, 2 * F), dtype, x))
    expected, expected_saved = ops.swiglu_forward.reference(x)
    close(y, expected)
    close(TWINS["swiglu_backward"](array((rows, F), dtype, dy), saved),
          ops.swiglu_backward.reference(dy, expected_saved))


@TYPES
def test_columns_of_so_many_rows(cupy, dtype):
    """The bias of a product, and its gradient."""
    C = 200
    x, bias = drawn(8, C, dtype=dtype), drawn(C, dtype=dtype)
    y = array((32 * (MANY // (32 * C) + 1), C), dtype, x)
    groups, shares = linear._blocks(y)
    launcher.most_blocks = groups
    partial = array((shares, C), accumulator(dtype))
    launch.launch("linear.cu", "column_sums", groups * shares, y, partial, len(y), C, groups,
                  shared=launch.bytes_of(launch.THREADS * launch.PACK // y.dtype.itemsize, y.dtype))
    close(partial, x.sum(0))
    launch.launch("linear.cu", "add_bias", groups * shares, y, array(C, dtype, bias), len(y), C, groups)
    close(y, x + bias)


@TYPES
def test_rows_of_so_large_an_embedding(cupy, dtype):
    C, rows = 1 << 20, (MANY >> 20) + 3
    tokens  = np.arange(rows)                                                 # each once
    dy      = drawn(2, C, dtype=dtype)
    dweight = array((rows, C), accumulator(dtype), drawn(2, C))
    TWINS["embedding_backward"](array((rows, C), dtype, dy),
                                 (strict_cupy.asarray(tokens), dweight.shape), add_to=dweight)
    close(dweight, drawn(2, C) + dy)


@TYPES
@pytest.mark.parametrize("interleaved", [False, True])
def test_rotation_of_so_many(cupy, dtype, interleaved):
    B, H, T, D = 2, MANY // (256 * 128) + 1, 128, 128
    x     = drawn(4, D, dtype=dtype)                                          # the last four places
    turns = drawn(2, 4, D // 2)
    here  = tuple(array((B, 1, T, D // 2), accumulator(dtype), part) for part in turns)
    y, _  = TWINS["rotary_forward"](array((B, H, T, D), dtype, x), here, interleaved)
    expected, _ = ops.rotary_forward.reference(x[None, None], tuple(turns), interleaved)
    close(y, expected[0, 0])


@TYPES
def test_logits_of_so_many_tokens(cupy, dtype):
    V, at_end = 50257, np.array([50256, 7])
    z, rows   = 4 * drawn(2, V, dtype=dtype), MANY // 50257 + 3
    logits    = array((rows, V), dtype, z)
    targets   = array(rows, "i8", at_end)
    sizes     = (V, V, -100)
    top, total, loss = (array((rows, 1), accumulator(dtype)) for _ in range(3))
    factor    = array((), accumulator(dtype), np.array(2.0))
    _, (_, _, m, Z, *_) = ops.cross_entropy_forward.reference(z, at_end)
    shared    = launch.bytes_of(cross_entropy.SLOTS, logits.dtype)
    launch.launch("cross_entropy.cu", "cross_entropy_forward", rows, logits, targets, top, total, loss,
                  *sizes, threads=1024, shared=shared)
    close(top, m)
    close(total, Z)
    close(loss, (m + np.log(Z))[:, 0] - z[[0, 1], at_end])
    dz = array((rows, V), dtype)
    launch.launch("cross_entropy.cu", "cross_entropy_backward", rows, logits, targets, top, total,
                  factor, dz, *sizes)
    probabilities = np.exp(z - m) / Z - (np.arange(V) == at_end[:, None])
    close(dz, 2 * probabilities)
    launch.launch("cross_entropy.cu", "cross_entropy_in_place", rows, logits, targets, top, total, loss,
                  *sizes, threads=1024, shared=shared)
    close(logits, probabilities)


@TYPES
@pytest.mark.parametrize("B, H, T", [(2**15 + 1, 32, 64), (1, 33, 2**21)])
def test_attention_of_so_many_scores(cupy, dtype, B, H, T):
    """The last 64 queries of the last head, which alone may see any of the 64 keys. Of several tiles of
    16-bit queries the last block has the first, so those are looked at in backward's sums for keys alone.
    """
    S = D = 64
    assert min(B * H * T * D, B * H * T * S) > MANY
    q, k, v, dy = drawn(4, 64, D, dtype=dtype)
    key, scale  = Key(3, step=1, example=7), D ** -0.5
    place = (H * T - 64) * S
    bits  = key.philox(B - 1, place // 16).random_raw(1024).view("<u2").reshape(64, 64)
    keep  = (bits < 0.75 * 65536) / 0.75
    a     = np.where(np.tri(64) > 0, q @ k.T * scale, -np.inf)
    lse   = np.log(np.exp(a).sum(-1))
    p     = np.exp(a - lse[:, None])
    y     = p * keep @ v
    da    = p * (dy @ v.T * keep - (dy * y).sum(-1, keepdims=True))
    large = [array((B, H, n, D), dtype, part) for n, part in ((T, q), (S, k), (S, v), (T, dy))]
    one_tile = dtype == "float32" or T == 64
    y_, saved = TWINS["attention_forward"](*large[:3], True, None, None, 0.25, key)
    if one_tile:
        close(saved[-1], lse)
        assert y_.shape == (B, H, T, D)
        np.testing.assert_allclose(y_._host[-1, -1, -64:].astype("f4"), y, 2e-2, 2e-2)
    saved = (*saved[:-2], array((B, H, T, D), dtype, y), array((B, H, T, 1), accumulator(dtype), lse))
    dq, dk, dv = TWINS["attention_backward"](large[3], saved)
    for gradient, expected in ((dq, da @ k * scale), (dk, da.T @ q * scale), (dv, (p * keep).T @ dy)):
        if gradient is not dq or one_tile:
            np.testing.assert_allclose(gradient._host[-1, -1, -64:].astype("f4"), expected, 5e-2, 5e-2)
