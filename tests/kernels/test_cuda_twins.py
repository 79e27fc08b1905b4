"""Every twin for CUDA gives what its formula gives. The kernels run on the CPU (cuda_on_cpu/), the launchers
on the stand-in for CuPy. That NVIDIA's compiler takes the same source, test_cuda_compiles.py shows; what is
left for a GPU to show is the speed.
"""

import importlib
import pkgutil
import sys

import ml_dtypes  # noqa: F401
import numpy as np
import pytest
import strict_cupy
from cuda_on_cpu import launcher
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from kernels.test_twins import MANY_TILES, SIZES, arrays_in, assert_same, case_in, of_parameters
from kernels.test_twins import TOLERANCE as OF_WIDE_TYPES

import npgpt.kernels.cuda
from npgpt import ops
from npgpt.inspection.examples import OPS, Sizes
from npgpt.kernels.cuda import attention
from npgpt.tensor import Key, to_numpy
from npgpt.tensor.precision import NARROW, accumulator, in_float32, map_arrays
from npgpt.tensor.random import rounding_bits
from npgpt.tensor.twins import find_twin
from npgpt.testing import seeds

TOLERANCE = OF_WIDE_TYPES | {"float16": 2.0**-10, "bfloat16": 2.0**-7}        # a step between neighbours
TWINS = {name: twin for name in ops.__all__ if (twin := find_twin(getattr(ops, name).reference, "cuda"))}
WITH_TWIN = [label for label, build in OPS.items()
             for case in [build(Sizes(), np.random.default_rng(0), "cpu")]
             if {case.forward.__name__, case.backward.__name__} & set(TWINS)]
SEVERAL_BLOCKS = Sizes(B=5, T=9, S=8, H=2, D=7, C=40, V=300)
FEW = settings(max_examples=3, suppress_health_check=[HealthCheck.function_scoped_fixture])


def placed(value):
    """On the device, with their strides: NumPy's arrays and numbers in a nest of tuples. A Key, a tuple too,
    stays.
    """
    if isinstance(value, (np.ndarray, np.generic)):
        cupy = sys.modules["cupy"]
        if value.flags.c_contiguous:
            return cupy.asarray(value)
        if value.flags.f_contiguous:
            return cupy.asarray(value.T).T
        return cupy.asarray(np.repeat(value, 2, -1))[..., ::2]
    return tuple(map(placed, value)) if type(value) is tuple else value


def fetched(value):
    if type(value) is tuple:
        return tuple(map(fetched, value))
    return value.get() if hasattr(value, "get") else value


def narrowed(label, gradients, dtype):
    """Those of parameters, which a twin may leave in the type of sums, in that of the formula."""
    gradients = gradients if type(gradients) is tuple else (gradients,)
    place     = of_parameters(label)
    assert all(a is None or a.dtype.name in (dtype, accumulator(dtype)) for a in gradients[place])
    return *gradients[:place.start], *map_arrays(lambda a: a.astype(dtype), gradients[place]), \
        *gradients[len(gradients) if place.stop is None else place.stop:]


def kernels_of(label, case):
    """Which must be launched for a case: named as the twin, but for these."""
    if label.startswith("linear,") or label == "linear":
        return set() if "no bias" in label else {"add_bias", "column_sums", "add_up"}
    if label.endswith("by 3 rows") and case.inputs[2].size > 3:
        return {"cross_entropy_forward", "cross_entropy_backward"}
    others = {"attention_backward": "attention_backward_kv", "rotary_forward": "rotary",
              "rotary_backward": "rotary", "dropout_forward": "dropout", "dropout_backward": "dropout",
              "linear_cross_entropy_forward": "cross_entropy_in_place"}
    products = {"linear_cross_entropy_backward"}                               # it is made of nothing else
    names    = {case.forward.__name__, case.backward.__name__} & set(TWINS) - products
    kernels  = {others.get(name, name.replace("residual_layer", "layer").replace("residual_rms", "rms"))
                for name in names}
    if label.startswith("attention"):
        end      = "_16" if case.inputs[0].dtype.name in NARROW else ""
        kernels  = {f"{kernel}{end}" for kernel in kernels}
        kernels |= {"dropout_kept"} if "dropout" in label else set()
    return kernels


def tolerance_of(op, dtype):
    """Attention of 16 bits rounds on the way, too: weights, before they are factors of a product."""
    return TOLERANCE[dtype] * (2 if op.startswith("attention") and dtype in NARROW else 1)


def test_the_costly_ops_have_twins():
    assert {"adamw", "attention_backward", "attention_forward", "cross_entropy_backward",
            "cross_entropy_forward", "dropout_backward", "dropout_forward",
            "embedding_backward", "gelu_tanh_forward", "layernorm_backward", "layernorm_forward",
            "linear_backward", "linear_cross_entropy_backward", "linear_cross_entropy_forward",
            "residual_layernorm_backward", "residual_layernorm_forward", "rmsnorm_backward",
            "rmsnorm_forward", "rotary_backward", "rotary_forward", "swiglu_backward",
            "swiglu_forward"} <= set(TWINS)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("label", WITH_TWIN)
def test_a_twin_gives_what_its_formula_gives(cupy, launches, label, dtype):
    if dtype in NARROW and label.startswith("linear"):
        pytest.skip("NumPy's products of bfloat16 are float32: see test_16_bits.py")

    @FEW
    @given(n=SIZES, seed=seeds())
    @example(n=SEVERAL_BLOCKS, seed=0)
    @example(n=MANY_TILES, seed=0)
    @example(n=Sizes(*[1] * 7), seed=0)
    def check(n, seed):
        if dtype in NARROW and 1 in n:
            return                                         # a row of one number is taken for a statistic
        case = case_in(label, dtype, n, seed)
        if label.startswith("rotary"):                                        # angles are not of 16 bits
            x, rotation, *others = case.inputs
            case = case._replace(inputs=(x, map_arrays(lambda a: a.astype(accumulator(dtype)), rotation),
                                         *others))
        if dtype in NARROW and label.startswith("residual_"):                 # sums that are exact
            x, h, *others = case.inputs
            x, h = (((4 * a.astype("f4")).round().clip(-15, 15) / 4).astype(dtype) for a in (x, h))
            case = case._replace(inputs=(x, h, *others))
        expected_y, expected_saved = in_float32(case.forward.reference, case.inputs, {})
        dy = np.asarray(np.random.default_rng(seed).standard_normal(expected_y.shape))
        dy = dy.astype(expected_y.dtype)
        expected = in_float32(case.backward.reference, (dy, expected_saved), {})
        results  = []
        for launcher.reversed in (False, True):
            launches.clear()
            y, saved = case.forward(*placed(case.inputs))
            assert_same(fetched((y, saved)), (expected_y, expected_saved), tolerance_of(label, dtype))
            dx       = case.backward(*placed((dy,)), saved)
            assert_same(narrowed(label, fetched(dx), dtype), expected, tolerance_of(label, dtype))
            again    = case.backward(*placed((dy, expected_saved)))
            assert_same(narrowed(label, fetched(again), dtype), expected, tolerance_of(label, dtype))
            results.append([array.tobytes() for array in arrays_in(fetched((y, saved, dx)))])
            launched = {kernel for kernel, _ in launches}
            assert kernels_of(label, case) <= launched
        assert results[0] == results[1]                                       # else there is a race
    check()


@pytest.mark.parametrize(("dtype", "D", "T", "S", "H", "G", "causal", "masks"), [
    ("float32", 32, 130, 150, 2, 1, True, ""), ("float32", 33, 130, 150, 4, 2, True, "dropout"),
    ("float32", 40, 70, 70, 4, 2, False, "keys segments"),
    ("float32", 128, 33, 65, 2, 2, True, "keys"), ("float32", 65, 65, 40, 1, 1, True, ""),
    ("float64", 20, 66, 90, 3, 1, True, "segments"), ("float64", 64, 40, 33, 2, 1, True, "keys"),
    ("float64", 60, 33, 33, 2, 2, False, "dropout"), ("float64", 128, 20, 40, 1, 1, True, "keys segments"),
    ("bfloat16", 32, 130, 150, 2, 1, True, ""), ("float16", 64, 200, 200, 1, 1, True, ""),
    ("bfloat16", 64, 140, 180, 4, 2, False, "keys segments"), ("bfloat16", 65, 90, 70, 1, 1, True, ""),
    ("float16", 20, 140, 170, 3, 1, True, "segments"), ("bfloat16", 128, 70, 100, 2, 1, True, "keys"),
    ("float16", 128, 100, 65, 2, 2, False, "dropout"), ("float16", 32, 150, 140, 1, 1, True, "dropout"),
    ("bfloat16", 96, 70, 150, 1, 1, True, "keys segments"), ("float16", 40, 130, 133, 2, 1, True, ""),
    ("bfloat16", 32, 200, 40, 2, 2, True, ""), ("float32", 32, 200, 40, 2, 2, True, ""),
    ("bfloat16", 64, 130, 150, 4, 2, True, "keys segments dropout"),
])
def test_attention_of_several_tiles(cupy, launches, dtype, D, T, S, H, G, causal, masks):
    """With queries, keys, values and gradients as views of projections (B, T, heads, D). Where T > S, the
    first queries may look at nothing. In float64 the widest heads go back by the formula.
    """
    rng       = np.random.default_rng(T)
    q, k, v, dy = (rng.standard_normal((2, n, heads, D)).astype(dtype).swapaxes(1, 2)
                   for n, heads in ((T, H), (S, G), (S, G), (T, H)))
    tolerance = tolerance_of("attention", dtype)
    keys     = rng.random((2, S)) < 0.7 if "keys" in masks else None
    segments = np.sort(rng.integers(0, 3, (2, S))) if "segments" in masks else None
    options  = (causal, keys, segments, *((0.3, Key(1, step=2, example=3)) if "dropout" in masks else ()))
    y, saved = in_float32(ops.attention_forward.reference, (q, k, v, *options), {})
    expected = in_float32(ops.attention_backward.reference, (dy, saved), {})
    results  = []
    views    = tuple(placed(x.swapaxes(1, 2)).swapaxes(1, 2) for x in (q, k, v, dy))
    for launcher.reversed in (False, True):
        y_here, saved_here = TWINS["attention_forward"](*views[:3], *placed(options))
        assert_same(fetched((y_here, saved_here[-1])), (y, saved[-1]), tolerance)
        gradients = TWINS["attention_backward"](views[3], saved_here)
        if dtype == "float64" and D > 64:
            assert gradients is NotImplemented and launches[-1][0] == "attention_forward"
            continue
        assert_same(fetched(gradients), expected, tolerance)
        results.append([array.tobytes() for array in arrays_in(fetched((y_here, gradients)))])
    assert all(result == results[0] for result in results)
    assert all(blocks > 2 for kernel, blocks in launches if kernel.startswith("attention"))


@pytest.mark.parametrize("dtype, D", [
    ("float32", 1), ("float32", 20), ("float32", 65), ("float32", 128), ("float64", 3), ("float64", 64),
    ("bfloat16", 8), ("float16", 33), ("bfloat16", 64), ("float16", 128)])
def test_the_product_of_every_row_of_gradients_and_results(cupy, dtype, D):
    """From 1 to 32 threads a row, whose packs are whole and aligned, or not. Of whole numbers it is exact."""
    rng   = np.random.default_rng(D)
    dy, y = rng.integers(-9, 10, (2, 2, 23, 3, D)).astype(dtype)                            # (B, T, H, D)
    dy    = np.concatenate([dy, dy], -1)
    here  = attention.products(placed(dy)[..., D:].swapaxes(1, 2), placed(y.swapaxes(1, 2).copy()))
    assert here.dtype == accumulator(dtype) and here.shape == (2, 3, 23, 1)
    expected = (dy[..., D:].astype("f8") * y.astype("f8")).sum(-1, keepdims=True).swapaxes(1, 2)
    np.testing.assert_array_equal(here.get(), expected)


@pytest.mark.parametrize("cupy", ["CPU"], indirect=True)
def test_attention_of_older_gpus(cupy, launches):
    """Turing's, T4's, is computed by fewer rows a warp; before them there were no such tensor cores."""
    rng = np.random.default_rng(0)
    q, k, v, dy = rng.standard_normal((4, 1, 2, 70, 64)).astype("f2")
    y, saved  = in_float32(ops.attention_forward.reference, (q, k, v), {})
    expected  = in_float32(ops.attention_backward.reference, (dy, saved), {})
    blocks    = {}
    for strict_cupy.machine.capability in "75", "80":
        launches.clear()
        y_here, saved_here = TWINS["attention_forward"](*placed((q, k, v)))
        gradients          = TWINS["attention_backward"](*placed((dy,)), saved_here)
        assert_same(fetched((y_here, gradients)), (y, expected), tolerance_of("attention", "float16"))
        blocks[strict_cupy.machine.capability] = dict(launches)
    assert {kernel for kernel in blocks["75"] if blocks["75"][kernel] != blocks["80"][kernel]} \
        == {"attention_backward_kv_16"}
    strict_cupy.machine.capability = "70"
    assert TWINS["attention_forward"](*placed((q, k, v))) is NotImplemented
    assert TWINS["attention_backward"](*placed((dy,)), saved_here) is NotImplemented
    by_formula, _ = ops.attention_forward(*placed((q, k, v)))
    assert_same(fetched(by_formula), y, tolerance_of("attention", "float16"))
    assert TWINS["attention_forward"](*placed((q.astype("f4"),) * 3)) is not NotImplemented


@pytest.mark.parametrize("dtype", OF_WIDE_TYPES)
@given(size=st.integers(1, 3000), seed=seeds(), on_device=st.booleans())
@FEW
def test_the_twin_of_adamw_gives_what_its_formula_gives(cupy, launches, dtype, size, seed, on_device):
    rng = np.random.default_rng(seed)
    w, g, m, v = rng.standard_normal((4, size)).astype(dtype)
    v = v * v
    settings = {"beta1": 0.8, "beta2": 0.95, "eps": 1e-3, "weight_decay": 0.3}
    expected = ops.adamw.reference(w, g, m, v, 3, 0.1, grad_scale=0.7, **settings)
    here     = placed((w, g, m, v))
    scale    = cupy.asarray(0.7, dtype) if on_device else 0.7
    out      = (here[0], here[2], here[3])
    assert ops.adamw(*here, 3, 0.1, grad_scale=scale, **settings, out=out) is out
    assert_same(fetched(out), expected, TOLERANCE[dtype])
    assert launches[-1] == ("adamw", -(-size // 1024))


def test_a_number_of_numpys_reaches_a_kernel_as_pythons_does(cupy):
    """CuPy hands it over by its own bytes: in place of an address, or 4 of them for 8."""
    x = np.random.default_rng(0).standard_normal((4, 9)).astype("f4")
    expected = ops.adamw.reference(*[x] * 3, x * x, 3, 0.1, grad_scale=0.5)
    for scale in np.float32(0.5), np.float64(0.5), np.array(0.5):
        here = placed((x, x, x, x * x))
        ops.adamw(*here, 3, 0.1, grad_scale=scale, out=(out := (here[0], here[2], here[3])))
        assert_same(fetched(out), expected, TOLERANCE["float32"])
    targets = np.array([0, -7, 8, -7])
    for name, arguments in (("cross_entropy", (x, targets)),
                            ("linear_cross_entropy", (x, np.ones((9, 9), "f4"), targets))):
        op, back  = (getattr(ops, f"{name}_{way}") for way in ("forward", "backward"))
        results   = []
        for index in -7, np.int32(-7):
            loss, saved = op(*placed(arguments), ignore_index=index)
            results.append(fetched((loss, back(placed(np.float32(1)), saved))))
        assert_same(*results, 0)
    for key in Key(np.int32(3), step=np.int32(5)), Key(np.uint64(2**64 - 3), example=np.uint64(2**63)):
        expected, _ = ops.dropout_forward.reference(x, 0.5, Key(*map(int, key)))
        np.testing.assert_array_equal(ops.dropout_forward(placed(x), 0.5, key)[0].get(), expected)


@pytest.mark.parametrize("dtype", NARROW)
@given(size=st.integers(1, 9000), first=st.integers(0, 9000), seed=seeds())
@example(size=3, first=4094, seed=2**64 - 1)
@FEW
def test_weights_of_16_bits_follow_their_masters_as_in_the_formula(cupy, launches, dtype, size, first, seed):
    """To the bit, of masters that are the same up to rounding."""
    rng = np.random.default_rng(seed)
    w, g, m, v = rng.standard_normal((4, size)).astype("f4")
    here   = placed((w, g, m, v * v))
    narrow = cupy.empty(size, dtype)
    key    = Key(seed, 7, step=5)
    out    = (here[0], here[2], here[3])
    assert TWINS["adamw"](*here, 3, 0.1, grad_scale=0.7, out=out, narrow=narrow, key=key, first=first) is out
    expected = ops.adamw.reference(w, g, m, v * v, 3, 0.1, grad_scale=0.7)
    assert_same(fetched(out), expected, OF_WIDE_TYPES["float32"])
    if dtype == "bfloat16":
        expected = (to_numpy(here[0]).view("u4") + rounding_bits(key, first, size) & 0xffff0000).view("f4")
    else:
        expected = to_numpy(here[0]).astype("f2").astype("f4")
    np.testing.assert_array_equal(to_numpy(narrow), expected)
    assert launches[-1][0] == "adamw_narrow"


def test_an_embeddings_gradient_is_added_to_what_is_there(cupy):
    rng    = np.random.default_rng(0)
    tokens = rng.integers(0, 7, (6, 30))                                      # tokens 7 and 8 are not used
    dy, there = rng.standard_normal((6, 30, 300)), rng.standard_normal((9, 300))
    dweight   = cupy.asarray(there)
    assert TWINS["embedding_backward"](*placed((dy, (tokens, (9, 300)))), add_to=dweight) is dweight
    expected = ops.embedding_backward.reference(dy, (tokens, (9, 300)), add_to=there)
    np.testing.assert_allclose(dweight.get(), expected, atol=1e-13)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("C", [1, 40, 264, 1030])
def test_every_place_of_a_token_counts_once(cupy, dtype, C):
    """Those with fewer places than there are warps, with as many, with more, and with hundreds; of columns
    that are one pack, and more than a warp or a block takes at once. Of whole numbers sums are exact.
    """
    rng    = np.random.default_rng(C)
    counts = np.array([1, 0, 2, 3, 5, 7, 8, 9, 300])
    tokens = rng.permutation(np.repeat(np.arange(counts.size), counts))
    dy     = rng.integers(-9, 10, (tokens.size, C)).astype(dtype)
    results, uneven = [], (dy / np.float32(7)).astype(dtype)
    for launcher.reversed in (False, True):
        dweight = cupy.asarray(np.full((counts.size, C), 0.5, accumulator(dtype)))
        TWINS["embedding_backward"](*placed((dy, (tokens, dweight.shape))), add_to=dweight)
        expected = np.full(dweight.shape, 0.5)
        np.add.at(expected, tokens, dy.astype("f8"))
        np.testing.assert_array_equal(dweight.get(), expected)
        TWINS["embedding_backward"](*placed((uneven, (tokens, dweight.shape))), add_to=dweight)
        results.append(dweight.get().tobytes())
    assert results[0] == results[1]


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("B, H, T, D", [(2, 3, 5, 6), (3, 2, 9, 80), (1, 1, 1, 2), (9, 4, 8, 6)])
def test_rotary_reads_queries_where_they_are(cupy, interleaved, B, H, T, D):
    """As views of the projection (B, T, 3 H D), which attention takes apart."""
    rng      = np.random.default_rng(0)
    qkv, dy  = rng.standard_normal((B, T, 3, H, D)), rng.standard_normal((B, H, T, D))
    rotation = tuple(rng.standard_normal((2, B, 1, T, D // 2)))
    here     = placed(qkv)
    for n in range(3):
        for turns in (rotation, tuple(part[0, 0] for part in rotation)):
            x, x_here = (array[:, :, n].transpose(0, 2, 1, 3) for array in (qkv, here))
            y, saved  = TWINS["rotary_forward"](x_here, placed(turns), interleaved)
            expected, expected_saved = ops.rotary_forward.reference(x, turns, interleaved)
            np.testing.assert_allclose(y.get(), expected, atol=1e-14)
            dx = TWINS["rotary_backward"](placed(dy.swapaxes(1, 2).copy()).swapaxes(1, 2), saved)
            expected = ops.rotary_backward.reference(dy, expected_saved)
            np.testing.assert_allclose(dx.get(), expected, atol=1e-14)


@pytest.mark.parametrize("key", [
    Key(0), Key(2**64 - 1, 3, 2**63, 2**64 - 3, 2**64 - 1), Key(5, step=3, example=2).child(7).child(1)])
@pytest.mark.parametrize("shape", [(5, 1), (2, 3, 5), (1, 16), (2, 17), (3, 4096), (2, 4097), (1, 12345)])
def test_dropout_keeps_what_numpy_keeps(cupy, key, shape):
    """To the bit: 4,096 elements are one block of threads. NumPy takes no example numbers beyond 2⁶⁴."""
    x = np.random.default_rng(0).standard_normal(shape).astype("f4")
    for p in (0.0, 0.1, 0.5, 0.999, 1 - 1e-7):
        if key.example + shape[0] <= 2**64:
            expected, _ = ops.dropout_forward.reference(x, p, key)
            y, saved    = TWINS["dropout_forward"](placed(x), p, key)
            np.testing.assert_array_equal(y.get(), expected)
            np.testing.assert_array_equal(TWINS["dropout_backward"](placed(x), saved).get(), expected)


def test_every_function_of_the_kernels_is_the_twin_of_an_op():
    for module in pkgutil.iter_modules(npgpt.kernels.cuda.__path__):
        if module.name not in ("launch", "columns", "products", "biased_product"):
            place = importlib.import_module(f"npgpt.kernels.cuda.{module.name}")
            own   = [name for name, value in vars(place).items()
                     if name.endswith(("ward", "adamw", "gradient", "squares"))
                     and getattr(value, "__module__", "") == place.__name__]
            assert own and all(TWINS[name] is getattr(place, name) for name in own)
