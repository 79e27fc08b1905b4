"""A model of 16 bits, on the stand-in for CuPy: what is kept in which type, and that nothing is computed any
worse than it must be.
"""

import json
import sys

import cuda_on_cpu
import ml_dtypes  # noqa: F401
import numpy as np
import pytest
import strict_cupy
import tiny
from kernels.test_twins import of_parameters

from npgpt import GPT, GPTConfig
from npgpt.errors import ConfigError, DeviceError
from npgpt.inspection.examples import OPS, Sizes
from npgpt.ops import cross_entropy_forward, gelu_tanh_forward, layernorm_forward
from npgpt.ops.stochastic_rounding import stochastic_rounding
from npgpt.tensor import Key, to_device, to_numpy, twins
from npgpt.tensor.precision import NARROW, arrays_in, map_arrays
from npgpt.tensor.random import ROUNDING, rounding_bits
from npgpt.training.checkpoint import load_latest
from npgpt.training.config import TrainConfig
from npgpt.training.loading import load_run
from npgpt.training.loss_scale import LossScale
from npgpt.training.optimizer import AdamW

EPSILON  = {"float16": 2.0 ** -11, "bfloat16": 2.0 ** -8}                     # half a step between neighbours
needs_gxx = pytest.mark.skipif(not cuda_on_cpu.COMPILER, reason="needs g++")


@pytest.fixture(params=["formulas", pytest.param("twins", marks=needs_gxx)])
def cupy(request, monkeypatch):
    module = strict_cupy.install(monkeypatch, request.param == "twins")
    monkeypatch.setattr(strict_cupy.machine, "order", "C")
    return module


def rounded(dtype, values):
    """The floats among them as float32, but rounded to `dtype`; and the same on the device, in `dtype`."""
    wide = map_arrays(lambda a: a.astype(dtype).astype("f4") if a.dtype.kind == "f" else a, values)
    return wide, map_arrays(lambda a: on_device(a, dtype), wide)


def on_device(array, dtype):
    here = strict_cupy.asarray(array)
    return here.astype(dtype) if array.dtype.kind == "f" and array.ndim else here


def assert_near(actual, expected, error):
    for a, e in zip(arrays_in((actual,)), arrays_in((expected,)), strict=True):
        a, finite = to_numpy(a), np.isfinite(e)
        assert a.shape == e.shape and a.dtype.kind == e.dtype.kind and np.array_equal(a[~finite], e[~finite])
        difference = np.where(finite, a, 0) - np.where(finite, e, 0)
        assert np.abs(difference).max(initial=0) <= error * max(np.abs(e[finite]).max(initial=0), 1)


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("label", OPS)
def test_an_op_rounds_what_it_gives_and_little_in_between(cupy, label, dtype):
    """A result is half a step of its size off, or where it comes from others that were kept, a few."""
    case = OPS[label](Sizes(), np.random.default_rng(0), "cpu")
    wide, narrow = rounded(dtype, case.inputs)
    y, saved     = case.forward.reference(*wide)
    (dy,), given = rounded(dtype, (np.asarray(np.random.default_rng(1).standard_normal(y.shape)),))
    expected     = case.backward.reference(dy, saved)
    y_here, saved_here = case.forward(*narrow)
    dx_here            = case.backward(*given, saved_here)
    assert_near(y_here, y, 2 * EPSILON[dtype])                                # a product, and a bias added
    assert_near(saved_here, saved, EPSILON[dtype])
    assert_near(dx_here, expected, 4 * EPSILON[dtype])


@pytest.mark.parametrize("label", [label for label in OPS if label.split(",")[0] in (
    "linear", "lora", "linear_cross_entropy", "residual", "residual_layernorm", "residual_rmsnorm")])
def test_what_multiplies_matrices_is_given_them_in_16_bits(monkeypatch, label):
    """Or tensor cores had nothing to do, and the head's weight and logits would take twice their room."""
    strict_cupy.install(monkeypatch)
    case  = OPS[label](Sizes(), np.random.default_rng(0), "cpu")
    names, in_float32 = [], twins.in_float32
    monkeypatch.setattr(twins, "in_float32", lambda formula, *rest: names.append(formula.__name__) or
                        in_float32(formula, *rest))
    y, saved = case.forward(*rounded("float16", case.inputs)[1])
    case.backward(strict_cupy.asarray(np.ones(y.shape)).astype(y.dtype), saved)
    assert not {case.forward.__name__, case.backward.__name__, "weight_gradient"} & set(names)


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("label", OPS)
def test_activations_have_16_bits_and_statistics_32(cupy, label, dtype):
    case     = OPS[label](Sizes(), np.random.default_rng(0), "cpu")
    narrow   = rounded(dtype, case.inputs)[1]
    y, saved = case.forward(*narrow)
    assert y.dtype.name == (dtype if y.ndim else "float32")
    given = {id(array) for array in arrays_in(narrow)}
    for array in arrays_in(saved):
        if array.dtype.kind in "fV" and id(array) not in given:
            statistic = array.ndim == 0 or array.shape[-1] == 1
            assert array.dtype.name == ("float32" if statistic else dtype)
    gradients = case.backward(on_device(np.ones(y.shape, "f4"), dtype), saved)
    gradients = gradients if type(gradients) is tuple else (gradients,)
    learned   = gradients[of_parameters(label)]                               # sums over all rows
    for gradient in arrays_in(gradients):
        is_sum = any(gradient is array for array in learned)
        assert gradient.dtype.name in ((dtype, "float32") if is_sum else (dtype,))


def test_a_row_or_a_column_alone_has_16_bits_too(monkeypatch):
    strict_cupy.install(monkeypatch)
    for shape in ((7,), (7, 1)):
        y, saved = gelu_tanh_forward(on_device(np.linspace(-1, 1, 7).reshape(shape), "float16"))
        assert y.dtype.name == "float16"
    assert saved[0].dtype.name == "float32"                                   # may be a statistic


def test_arrays_given_by_name_are_as_good_and_whole_numbers_of_16_bits_are_no_floats(monkeypatch):
    strict_cupy.install(monkeypatch)
    random   = np.random.default_rng(0)
    x, gamma = (on_device(random.standard_normal(size), "float16") for size in ((9, 64), 64))
    expected = to_numpy(layernorm_forward(x, gamma)[0])
    for arrays in ({"x": x, "gamma": gamma}, {"x": x, "gamma": gamma.astype("f4")}):
        assert np.array_equal(to_numpy(layernorm_forward(**arrays)[0]), expected)
    losses = {float(cross_entropy_forward(x, strict_cupy.asarray(np.arange(9, dtype=kind)))[0])
              for kind in ("int64", "int16", "uint16")}
    assert len(losses) == 1


def which_are_one(values):
    """Of each array the place of the first that is the very same."""
    arrays = list(map(id, arrays_in(values)))
    return list(map(arrays.index, arrays))


@pytest.mark.parametrize("n", [Sizes(), Sizes(*[1] * 7)], ids=["sizes", "ones"])
@pytest.mark.parametrize("label", OPS)
def test_what_is_kept_of_what_was_given_takes_no_room_again(cupy, label, n):
    case = OPS[label](n, np.random.default_rng(0), "cpu")
    wide, narrow = rounded("float16", case.inputs)
    expected = which_are_one((wide, case.forward.reference(*wide)))
    assert which_are_one((narrow, case.forward(*narrow))) == expected


# ---- the model -------------------------------------------------------------------------------------------

CONFIG = GPTConfig(vocab_size=17, block_size=5, n_layer=2, n_head=3, n_embd=12, dropout=0.1)
LLAMA  = {"norm": "rmsnorm", "activation": "swiglu", "position": "rotary", "bias": False, "n_kv_head": 1,
          "tie_word_embeddings": False}


def gpt(dtype, **options):
    """Of weights of order 1 that are numbers of bfloat16 and of float16."""
    model  = GPT(GPTConfig(**vars(CONFIG) | options), device="cuda", dtype=dtype)
    values = 0.3 * np.random.default_rng(0).standard_normal(model.flat.size)
    model.flat.data[...] = strict_cupy.asarray(values.astype("bfloat16").astype("f2").astype("f4"))
    return model


def gradient(model, scale=1.0):
    rng = np.random.default_rng(0)
    tokens, targets = rng.integers(0, 17, (2, 3, 5))
    targets[0, :2]  = -100
    model.zero_grad()
    with strict_cupy.forbid_synchronisation():
        for _ in range(2):                                                    # gradients add up
            loss, saved = model.loss(tokens, targets, Key(1, step=3))
            model.backward(saved, scale)
    return loss, model.flat.grad


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("options", [{}, LLAMA, {"logit_softcap": 4.0, "gradient_checkpointing": True}])
def test_a_model_of_16_bits_computes_what_one_of_32_does(cupy, dtype, options):
    loss, grad         = gradient(gpt("float32", **options))
    loss_here, here    = gradient(gpt(dtype, **options), 1024.0)
    assert loss_here.dtype == here.dtype == np.float32 and gpt(dtype).flat.data.dtype.name == dtype
    assert abs(float(loss_here) - float(loss)) < 2 * EPSILON[dtype] * float(loss)
    expected, actual = to_numpy(grad), to_numpy(here) / 1024
    assert np.linalg.norm(actual - expected) < 4 * EPSILON[dtype] * np.linalg.norm(expected)


@pytest.mark.parametrize("dtype", NARROW)
def test_a_replica_adds_up_in_32_bits_too(cupy, dtype):
    model   = gpt(dtype)
    replica = model.replica()
    _, grad  = gradient(model)
    expected = to_numpy(grad).copy()
    gradient(replica)
    model.zero_grad()
    assert not to_numpy(model.flat.grad).any()
    replica.flat.settle()
    assert np.array_equal(to_numpy(model.flat.grad), expected)


def test_a_gpu_without_bfloat16_says_so(cupy, monkeypatch):
    monkeypatch.setattr(strict_cupy.machine, "capability", "75")
    with pytest.raises(DeviceError) as error:
        gpt("bfloat16")
    assert str(error.value) == ("dtype bfloat16 needs a GPU of compute capability 8.0 or above, and cuda has "
                                "7.5: use float16")
    assert gpt("float16").flat.data.dtype == np.float16


def test_what_needs_a_gpu_says_so(monkeypatch):
    for dtype in NARROW:
        with pytest.raises(ConfigError, match=f"{dtype} needs a GPU: on the CPU use float32"):
            GPT(CONFIG, dtype=dtype)
        with pytest.raises(ConfigError, match="float32 or float64 on the CPU"):
            TrainConfig(dtype=dtype)
    strict_cupy.install(monkeypatch)
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    with pytest.raises(DeviceError, match="bfloat16 needs ml_dtypes: pip install ml_dtypes"):
        GPT(CONFIG, device="cuda", dtype="bfloat16")
    assert GPT(CONFIG, device="cuda", dtype="float16").flat.data.dtype == np.float16       # and no other does


# ---- the optimiser ---------------------------------------------------------------------------------------

def test_stochastic_rounding_gives_a_neighbour_and_on_average_the_number(monkeypatch):
    strict_cupy.install(monkeypatch)
    x     = np.array([1.0, 1 + 2.0**-9, -(1 + 2.0**-8), 3.1415927, -1e-30, 0.0, -2.9999998], "f4")
    here  = strict_cupy.asarray(np.tile(x, 20000))
    y     = to_numpy(stochastic_rounding(here, Key(5))).reshape(-1, len(x))
    below = (x.view("u4") & 0xffff0000).view("f4")                            # nearer to 0
    above = ((x.view("u4") & 0xffff0000) + 0x10000).view("f4")
    assert ((y == below) | (y == above)).all()
    assert (y[:, [0, 5]] == x[[0, 5]]).all()                                  # numbers of bfloat16 stay
    step  = np.abs(above - below)
    np.testing.assert_array_less(np.abs(y.astype("f8").mean(0) - x), 0.02 * step + 1e-38)      # 5 σ
    assert (y.astype("bfloat16").astype("f4") == y).all()


@pytest.mark.parametrize("bits", [0x7fffffff, 0xffffffff, 0x7fc00000])
def test_nan_stays_nan_when_it_is_rounded(cupy, bits):
    """A GPU computes the first, a CPU the last."""
    nan = np.full(64, bits, "u4").view("f4")
    assert np.isnan(to_numpy(stochastic_rounding(to_device(nan, "cuda"), Key(1)))).all()
    model     = gpt("bfloat16")
    optimizer = AdamW(model)
    model.flat.grad[...] = to_device(np.full(model.flat.size, bits, "u4").view("f4"), "cuda")
    optimizer.step()
    assert np.isnan(to_numpy(optimizer.master)).all() and np.isnan(to_numpy(model.flat.data)).all()


@pytest.mark.parametrize("first", [0, 1, 4095, 4096, 10_000])
def test_what_a_number_is_rounded_to_depends_on_its_place_alone(monkeypatch, first):
    strict_cupy.install(monkeypatch)
    x     = np.random.default_rng(0).standard_normal(20_000).astype("f4")
    whole = to_numpy(stochastic_rounding(strict_cupy.asarray(x), Key(5)))
    part  = to_numpy(stochastic_rounding(strict_cupy.asarray(x[first:]), Key(5), first))
    np.testing.assert_array_equal(part, whole[first:])
    other = to_numpy(stochastic_rounding(strict_cupy.asarray(x), Key(5, step=1)))
    assert 0.1 < (other != whole).mean() < 0.6


def test_bits_that_round_are_laid_out_as_documented():
    bits = rounding_bits(Key(7, step=2), 0, 8192).reshape(2, 16, 256)
    for tile, place, thread in ((0, 0, 0), (0, 15, 255), (1, 6, 9)):
        word = Key(7, step=2).philox(block=256 * tile + thread).random_raw(4)[place // 4]
        assert bits[tile, place, thread] == int(word) >> 16 * (place % 4) & 0xffff


@pytest.mark.parametrize("dtype", NARROW)
def test_weights_follow_masters_that_learn_in_float32(cupy, dtype):
    model, plain = gpt(dtype), gpt("float32")
    ours, theirs = (AdamW(m, lr=1e-3, seed=3) for m in (model, plain))
    for step in range(3):
        grad = np.random.default_rng(step).standard_normal(model.flat.size).astype("f4")
        for each, adamw in ((model, ours), (plain, theirs)):
            each.flat.grad[...] = strict_cupy.asarray(1024 * grad)
            with strict_cupy.forbid_synchronisation():
                adamw.step(grad_scale=1 / 1024)
        master = to_numpy(ours.master)
        np.testing.assert_array_equal(master, to_numpy(plain.flat.data))
        if dtype == "float16":
            np.testing.assert_array_equal(to_numpy(model.flat.data), master.astype("f2"))
        else:
            bits = master.view("u4") + rounding_bits(Key(3, ROUNDING, step + 1), 0, master.size)
            np.testing.assert_array_equal(to_numpy(model.flat.data).view("u4"), bits & 0xffff0000)
    assert 0 < np.abs(to_numpy(model.flat.data) - master).max() < 0.02


# ---- training --------------------------------------------------------------------------------------------

def losses(run):
    lines = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    return np.array([line["train_loss"] for line in lines if "train_loss" in line])


@pytest.mark.parametrize("dtype", NARROW)
def test_training_goes_as_in_float32_and_goes_on_bit_for_bit(monkeypatch, tmp_path, dtype):
    strict_cupy.install(monkeypatch)
    plain, whole, cut = (tiny.new_run(tmp_path, name, device="cuda", dtype=kind)
                         for name, kind in (("plain", "float32"), ("whole", dtype), ("cut", dtype)))
    asked = iter(range(7))
    tiny.train_quietly(plain)
    tiny.train_quietly(whole)
    assert not tiny.train_quietly(cut, stop=lambda: next(asked, None) is None)
    monkeypatch.setattr("npgpt.training.loss_scale.INITIAL", 2.0**10)   # it has a scale of its own by now
    tiny.train_quietly(cut, resume=True)
    np.testing.assert_allclose(losses(whole), losses(plain), rtol=8 * EPSILON[dtype])
    final = [load_latest(run.path, pytest.fail) for run in (whole, cut)]
    for kind in ("model", "optimizer"):
        for name, array in final[0].tensors[kind].items():
            np.testing.assert_array_equal(array, final[1].tensors[kind][name], err_msg=name)
    assert all(final[0].state[name] == final[1].state[name] for name in final[0].state.keys() - {"seconds"})
    kinds = {name.split(".")[0] for name in final[0].tensors["optimizer"]}
    assert kinds == {"exp_avg", "exp_avg_sq", "master"}


def test_a_loss_scale_grows_after_many_good_steps_and_halves_after_a_bad_one():
    scale = LossScale("float16")
    assert scale.value == 65536
    for _ in range(1999):
        scale.succeeded()
    assert scale.value == 65536
    scale.succeeded()
    assert scale.value == 131072
    for _ in range(1999):                                                     # counted anew
        scale.succeeded()
    assert scale.value == 131072
    assert scale.overflowed() and scale.value == 65536
    for _ in range(1999):                                                     # and again
        scale.succeeded()
    assert scale.value == 65536
    for _ in range(16):
        assert scale.overflowed()
    assert scale.value == 1 and not scale.overflowed() and scale.value == 1
    other = LossScale("bfloat16")
    for _ in range(5000):
        other.succeeded()
    assert other.value == 1 and not other.overflowed()


def test_products_of_float32_are_rounded_to_tf32_where_that_is_asked_for(monkeypatch, tmp_path):
    strict_cupy.install(monkeypatch)
    monkeypatch.setenv("CUPY_TF32", "0")                                       # and as it was in the end
    runs = [tiny.new_run(tmp_path, str(tf32), device="cuda", tf32=tf32) for tf32 in (False, True)]
    for run in runs:
        tiny.train_quietly(run)
    plain, rounded_ = map(losses, runs)
    np.testing.assert_allclose(rounded_, plain, rtol=1e-2)
    assert (rounded_ != plain).any()
    assert load_run(runs[1].path, "best", "cpu", pytest.fail)                  # where there is no TF32


def test_a_step_that_overflows_is_made_again_with_half_the_scale(monkeypatch, tmp_path):
    """As if the scale had been right from the beginning: learning rate, batch and count of updates wait.

    Without biases: the gradient of a key's is 0 but for rounding, which a scale decides where float16 ends.
    """
    strict_cupy.install(monkeypatch)
    monkeypatch.setattr("npgpt.training.loss_scale.INITIAL", 2.0**20)
    options = {"device": "cuda", "dtype": "float16", "bias": False,
               "l1": 1e-3, "l2": 1e-2}                                         # penalties are scaled, too
    first = tiny.new_run(tmp_path, "first", **options)
    tiny.train_quietly(first)
    state = load_latest(first.path, pytest.fail).state
    assert state["loss_scale"] < 2.0**20 and state["updates"] == state["step"] == 20
    monkeypatch.setattr("npgpt.training.loss_scale.INITIAL", state["loss_scale"])
    second = tiny.new_run(tmp_path, "second", **options)
    tiny.train_quietly(second)
    assert load_latest(second.path, pytest.fail).state["good_steps"] == 20
    np.testing.assert_array_equal(losses(first), losses(second))
