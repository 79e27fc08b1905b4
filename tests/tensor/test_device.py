"""Devices: which array module an array belongs to, how arrays travel, and what is said when they cannot."""

import subprocess
import sys

import numpy as np
import pytest

from npgpt import GPT, AdamW, GPTConfig, clip_grad_norm
from npgpt.errors import DeviceError
from npgpt.models import SequenceClassifier
from npgpt.tensor import array_module, device_of, synchronize, to_device, to_numpy
from npgpt.tensor.device import check_device, empty

HOST = np.arange(6.0).reshape(2, 3)
TINY = GPTConfig(vocab_size=5, block_size=3, n_layer=1, n_head=1, n_embd=4)
BY_NAME = {
    "to_device": lambda device: to_device(HOST, device),
    "empty": lambda device: empty(3, "float32", device),
    "synchronize": synchronize,
    "check_device": check_device,
    "GPT": lambda device: GPT(TINY, device=device),
}
by_name = pytest.mark.parametrize("call", BY_NAME.values(), ids=BY_NAME)


def test_array_module_is_cupy_as_soon_as_one_array_is(cupy):
    there = cupy.zeros(3)
    for arrays in ((), (HOST,), (HOST, None, 1.0)):
        assert array_module(*arrays) is np
    for arrays in ((there,), (HOST, there), (None, there, HOST)):
        assert array_module(*arrays) is cupy


def test_without_cupy_everything_is_numpy_and_nothing_is_imported(monkeypatch):
    monkeypatch.delitem(sys.modules, "cupy", raising=False)
    assert array_module(HOST) is np and device_of(HOST) == "cpu"
    assert to_device(HOST) is HOST and to_numpy(HOST) is HOST and check_device("cpu") == "cpu"
    synchronize()
    assert "cupy" not in sys.modules


@pytest.mark.parametrize("device, number", [("cuda", 0), ("cuda:0", 0), ("cuda:1", 1)])
def test_there_and_back(cupy, gpus, device, number):
    there = to_device(HOST, device)
    assert isinstance(there, cupy.ndarray) and device_of(there) == f"cuda:{number}"
    assert to_device(there, device) is there and to_device(there, device_of(there)) is there
    assert gpus.uploads == [((2, 3), "float64")] and gpus.downloads == 0
    for back in (to_numpy(there), to_device(there, "cpu"), to_device(there)):
        assert type(back) is np.ndarray and back.dtype == HOST.dtype
        np.testing.assert_array_equal(back, HOST)
    assert check_device(device) == device
    synchronize(device)


@pytest.mark.parametrize("dtype, back", [
    ("float16", "float32"), ("bfloat16", "float32"), ("float32", "float32"), ("float64", "float64"),
    ("uint16", "uint16"), ("int16", "int16"), ("bool", "bool")])
def test_floats_of_16_bits_come_back_as_float32_and_whole_numbers_as_they_are(cupy, dtype, back):
    pytest.importorskip("ml_dtypes")
    there = to_numpy(cupy.asarray(np.arange(3)).astype(dtype))
    assert there.dtype == back and np.array_equal(there, np.arange(3).astype(back))


def test_a_named_gpu_becomes_the_current_one_so_that_formulas_run_there(gpus):
    first, second = to_device(HOST, "cuda"), to_device(HOST, "cuda:1")
    assert device_of(second + 1) == "cuda:1"
    assert to_device(first, "cuda") is first
    assert device_of(first + 1) == "cuda:0"
    moved = to_device(first, "cuda:1")
    assert device_of(moved + second) == "cuda:1" and device_of(first) == "cuda:0"
    assert (to_numpy(moved + second) == 2 * HOST).all() and len(gpus.uploads) == 2
    assert device_of(empty(2, "float32", "cuda")) == "cuda:0" and gpus.current == 0


def test_on_a_named_gpu_products_of_16_bits_are_added_up_in_float32(gpus):
    """Or cuBLAS might add up parts of a sum that it has rounded."""
    GPT(TINY, device="cuda:1")
    assert gpus.math_modes == {1: 16}                      # CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION
    check_device("cuda")
    assert gpus.math_modes == {0: 16, 1: 16}


def test_two_models_on_two_gpus_take_turns(gpus):
    models = [GPT(TINY, device=device, dtype="float64") for device in ("cuda:0", "cuda:1", "cpu")]
    tokens = np.array([[1, 2, 4]])
    for _ in range(2):
        for model in models:
            model.backward(model.loss(tokens, tokens)[1])
    first, second, here = (to_numpy(model.flat._grad) for model in models)
    np.testing.assert_allclose(first, here, atol=1e-14)
    np.testing.assert_allclose(second, here, atol=1e-14)


def test_two_models_on_two_gpus_learn_in_turn(gpus):
    """Each computes where it is, whichever was the last to."""
    models = [GPT(TINY, device=device, dtype="float64") for device in ("cuda:0", "cuda:1", "cpu")]
    tokens = np.array([[1, 2, 4]])
    adams  = [AdamW(model) for model in models]
    for _ in range(2):
        saved = [model.loss(tokens, tokens)[1] for model in models]
        for model, mine in zip(models, saved, strict=True):
            model.backward(mine)
        for model in models:
            clip_grad_norm(model, 0.1)
        for model, adam in zip(models, adams, strict=True):
            adam.step()
            model.zero_grad()
    first, second, here = (to_numpy(model.flat.data) for model in models)
    np.testing.assert_allclose(first, here, atol=1e-12)
    np.testing.assert_allclose(second, here, atol=1e-12)


def test_two_gpus_take_gradients_of_logits_and_of_classes(gpus):
    tokens = np.array([[1, 2, 4]])
    for kind, options, targets in ((GPT, (), tokens), (SequenceClassifier, (("a", "b"),), np.array([1]))):
        models = [kind(TINY, *options, device=device, dtype="float64")
                  for device in ("cuda:0", "cuda:1", "cpu")]
        passes = [model.forward(tokens) for model in models]
        for model, (logits, saved) in zip(models, passes, strict=True):
            model.backward_logits(logits, saved)
        losses = [model.loss(tokens, targets)[1] for model in models]
        for model, saved in zip(models, losses, strict=True):
            model.backward(saved)
        first, second, here = (to_numpy(model.flat._grad) for model in models)
        np.testing.assert_allclose(first, here, atol=1e-12)
        np.testing.assert_allclose(second, here, atol=1e-12)


@pytest.mark.parametrize("device", ["cpu", "cuda", "cuda:1"])
def test_empty_is_flat_of_the_type_and_writable(cupy, device):
    array = empty(5, "float32", device)
    assert array.shape == (5,) and array.dtype == np.float32 and device_of(array)[:4] == device[:4]
    array[...] = 2
    assert (to_numpy(array) == 2).all()


@by_name
@pytest.mark.parametrize("device", ["gpu", "", "CPU", "cuda:", "cuda:x", "cuda:-1", "cuda:1:2", "cuda:²", 0])
def test_an_unknown_device(cupy, call, device):
    with pytest.raises(DeviceError) as error:
        call(device)
    assert str(error.value) == f"unknown device {device!r}: use cpu, cuda or cuda:N"


@by_name
def test_cupy_is_missing(monkeypatch, call):
    monkeypatch.setitem(sys.modules, "cupy", None)                            # import cupy raises ImportError
    with pytest.raises(DeviceError) as error:
        call("cuda")
    assert str(error.value) == ("device cuda needs CuPy: pip install 'npgpt[cuda12]' or 'npgpt[cuda13]', "
                                "after the CUDA version that nvidia-smi shows")
    assert array_module(HOST) is np


@by_name
@pytest.mark.parametrize("said, reason", [
    ("cudaErrorInsufficientDriver: too old\n", "cudaErrorInsufficientDriver: too old"), ("", "RuntimeError")])
def test_there_is_no_driver(cupy, monkeypatch, call, said, reason):
    def fail():
        raise RuntimeError(said)
    monkeypatch.setattr(cupy.cuda.runtime, "getDeviceCount", fail)
    with pytest.raises(DeviceError) as error:
        call("cuda:1")
    assert str(error.value) == f"device cuda:1 needs an NVIDIA GPU with a working driver: {reason}"


@by_name
@pytest.mark.parametrize("count, words", [(0, "0 CUDA devices"), (1, "1 CUDA device"), (2, "2 CUDA devices")])
def test_there_are_fewer_gpus(gpus, call, count, words):
    gpus.devices = count
    with pytest.raises(DeviceError) as error:
        call(f"cuda:{count}")
    assert str(error.value) == f"no device cuda:{count}: this machine has {words}"
    assert gpus.current == 0                                                  # nothing was chosen


def test_the_gpus_memory_is_full(gpus):
    gpus.free_bytes = 1 << 20
    with pytest.raises(DeviceError) as error:
        to_device(np.ones(3 << 17), "cuda:1")
    assert str(error.value) == ("no room on cuda:1 for 3 MiB more: "
                                "use a smaller model or batch, or another device")
    with pytest.raises(DeviceError) as error:
        empty(1 << 20, "float64", "cuda")
    assert str(error.value) == "no room on cuda for 8 MiB: use a smaller model, or another device"
    with pytest.raises(DeviceError, match="no room on cuda for"):
        GPT(GPTConfig(vocab_size=500, block_size=4, n_layer=2, n_head=1, n_embd=256), device="cuda")


OPTIONAL = "torch cupy mpi4py matplotlib hypothesis rich tyro transformers tiktoken sacrebleu"


def test_importing_npgpt_imports_no_optional_package():
    script = f"import sys, npgpt; print([name for name in {OPTIONAL.split()} if name in sys.modules])"
    command = [sys.executable, "-W", "error", "-c", script]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "[]\n"
