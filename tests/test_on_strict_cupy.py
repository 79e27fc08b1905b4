"""Everything in ops, layers and models keeps to the rules of the strict stand-in for CuPy."""

from collections import Counter
from functools import partial

import cuda_on_cpu
import numpy as np
import pytest
import strict_cupy
import tiny
from strict_cupy import forbid_synchronisation

from npgpt import GPT, GPTConfig, check_gradients, ops
from npgpt.generation.kv_cache import KVCache
from npgpt.inspection.examples import EXAMPLES, Sizes
from npgpt.tensor import Key, array_module, to_numpy
from npgpt.training.config import TrainConfig
from npgpt.training.trainer import Trainer


@pytest.fixture
def cupy(monkeypatch, request):
    with_twins = getattr(request, "param", "formulas") == "twins"
    module     = strict_cupy.install(monkeypatch, with_twins)
    if with_twins:
        monkeypatch.setattr(strict_cupy.machine, "order", "C")                # else they do not cover much
    return module


formulas_and_twins = pytest.mark.parametrize("cupy", [
    "formulas", pytest.param("twins", marks=pytest.mark.skipif(not cuda_on_cpu.COMPILER, reason="needs g++")),
], indirect=True)


def built(name, device):
    return EXAMPLES[name](Sizes(), np.random.default_rng(3), device)


def same(here, there, name):
    """Nests of tuples with equal numbers, types and kinds of things."""
    if isinstance(here, (tuple, list)):
        if name.startswith("saved") and type(there) is tuple:
            there = there[:len(here)]                      # a twin of the host's may keep more behind
        assert type(there) is type(here) and len(there) == len(here), name
        for n, (a, b) in enumerate(zip(here, there, strict=True)):
            same(a, b, f"{name}[{n}]")
    elif isinstance(here, dict):
        assert type(there) is dict and list(there) == list(here), name
        same([*here.values()], [*there.values()], name)
    elif hasattr(here, "dtype"):
        if array_module(here) is np and here.ndim:
            raise AssertionError(f"{name} is in host memory")
        assert there.dtype == here.dtype and there.shape == here.shape, name
        scale = max(1.0, np.abs(np.nan_to_num(there, posinf=0, neginf=0)).max(initial=0))
        np.testing.assert_allclose(to_numpy(here), there, rtol=0, atol=1e-12 * scale, err_msg=name)
    else:
        assert here == there, name


@formulas_and_twins
@pytest.mark.parametrize("name", EXAMPLES)
def test_on_the_device_as_on_the_host_and_without_a_wait(cupy, name):
    host, device = built(name, "cpu"), built(name, "cuda")
    y, saved = host.forward(*host.inputs)
    dy = np.random.default_rng(0).standard_normal(y.shape)
    gradients = host.backward(dy, saved)
    dy_there = cupy.asarray(dy)
    with forbid_synchronisation():
        y_there, saved_there = device.forward(*device.inputs)
        gradients_there = device.backward(dy_there, saved_there)
    same(y_there, y, "y")
    same(saved_there, saved, "saved")
    same(gradients_there, gradients, "gradient")
    for parameter, p in device.parameters.items():
        same(p.grad, host.parameters[parameter].grad, parameter)


@pytest.mark.parametrize("name", EXAMPLES)
def test_gradients_are_right_on_the_device(cupy, name):
    case = built(name, "cuda")
    check_gradients(case.forward, case.backward, *case.inputs, parameters=case.parameters, directions=2)


def batch(config, seed=0):
    rng = np.random.default_rng(seed)
    tokens, targets = rng.integers(0, config.vocab_size, (2, 3, config.block_size))
    targets[0, :2] = -100
    return tokens, targets


CONFIG = GPTConfig(vocab_size=17, block_size=5, n_layer=2, n_head=3, n_embd=12, dropout=0.1)
MASK = ((3, 5, 12), "bool")
TOKENS = ((3, 5), "int64")
PLACES = ((5,), "int64")
DLOSS = ((), "float32")


@pytest.mark.parametrize("options, uploads", [
    ({}, {TOKENS: 2, PLACES: 1, DLOSS: 1, MASK: 5 + 5}),                      # 1 + 2 a block, made twice
    ({"dropout": 0.0, "position": "sinusoidal"}, {TOKENS: 2, DLOSS: 1, ((5, 12), "float64"): 1}),
    ({"gradient_checkpointing": True}, {TOKENS: 2, PLACES: 1, DLOSS: 1, MASK: 5 + 4 + 5}),
])
def test_a_step_uploads_tokens_and_masks_and_downloads_nothing(cupy, options, uploads):
    config = GPTConfig(**vars(CONFIG) | options)
    model = GPT(config, device="cuda")
    tokens, targets = batch(config)
    strict_cupy.machine.uploads.clear()
    with forbid_synchronisation() as machine:
        loss, saved = model.loss(tokens, targets, Key(1, step=4))
        model.backward(saved)
    assert Counter(machine.uploads) == uploads and machine.downloads == 0
    assert loss.shape == () and loss.dtype == np.float32


@pytest.mark.skipif(not cuda_on_cpu.COMPILER, reason="needs g++")
@pytest.mark.parametrize("cupy", ["twins"], indirect=True)
def test_with_twins_a_step_uploads_no_masks(cupy):
    model, (tokens, targets) = GPT(CONFIG, device="cuda"), batch(CONFIG)
    strict_cupy.machine.uploads.clear()
    _, saved = model.loss(tokens, targets, Key(1, step=4))
    model.backward(saved)
    assert Counter(strict_cupy.machine.uploads) == {TOKENS: 2, PLACES: 1, DLOSS: 1}


@formulas_and_twins
def test_embeddings_and_gradients_from_the_host_go_to_the_device(cupy):
    tokens, targets = batch(CONFIG)
    results = []
    for device in ("cpu", "cuda"):
        model = GPT(CONFIG, device=device, dtype="float64")
        x = np.random.default_rng(1).standard_normal((*tokens.shape, CONFIG.n_embd))
        dx = [model.backward(model.loss(x, targets, Key(1, step=4))[1])]
        logits, saved = model.forward(x)
        dx.append(model.backward_logits(np.ones(logits.shape), saved))
        assert all(array_module(part) is array_module(model.flat.data) for part in dx)
        results.append([to_numpy(part) for part in dx])
    np.testing.assert_allclose(results[1], results[0], rtol=0, atol=1e-12)


def test_gradients_nobody_wrote_are_zero(cupy):
    model = GPT(CONFIG, device="cuda")                                        # in memory that is full of NaN
    assert (model.flat.grad == 0).all()


@formulas_and_twins
@pytest.mark.parametrize("rows", [None, 4])
def test_unwritten_memory_given_as_out_is_overwritten(cupy, rows):
    rng = np.random.default_rng(0)
    x, weight, targets = rng.standard_normal((9, 3)), rng.standard_normal((5, 3)), rng.integers(0, 5, 9)
    results = []
    for upload in (np.asarray, cupy.asarray):
        out = array_module(upload(x)).empty((5, 3))
        _, saved = ops.linear_cross_entropy_forward(upload(x), upload(weight), upload(targets), rows=rows)
        _, dweight = ops.linear_cross_entropy_backward(upload(1.0), saved, out=out)
        assert dweight is out
        results.append(to_numpy(out))
    np.testing.assert_allclose(*results, atol=1e-14)


@formulas_and_twins
@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_training_on_the_device_equals_training_on_the_host(cupy, device):
    losses, models = {}, {}
    for place in ("cpu", device):
        model = models[place] = GPT(CONFIG, device=place, dtype="float64")
        losses[place] = []
        for step in range(4):
            with forbid_synchronisation():
                model.zero_grad()
                for part in range(2):                                         # their gradients add up
                    loss, saved = model.loss(*batch(CONFIG, part), Key(1, step=step))
                    model.backward(saved)
                model.flat.data -= 0.5 * model.flat.grad
            losses[place].append(float(loss))
    np.testing.assert_allclose(losses[device], losses["cpu"], rtol=1e-12)
    trained = models[device].flat.data
    np.testing.assert_allclose(to_numpy(trained), models["cpu"].flat.data, rtol=0, atol=1e-12)
    assert losses["cpu"][-1] < losses["cpu"][0] - 0.1 and trained.device.id == (device == "cuda:1")


@formulas_and_twins
def test_adamw_and_clipping_on_the_device_equal_the_host(cupy):
    optimizer = pytest.importorskip("npgpt.training.optimizer")
    numbers = {}
    for place in ("cpu", "cuda"):
        model = GPT(CONFIG, device=place, dtype="float64")
        adamw = optimizer.AdamW(model, lr=1e-2)
        norms = []
        for step in range(3):
            with forbid_synchronisation():
                model.zero_grad()
                _, saved = model.loss(*batch(CONFIG), Key(1, step=step))
                model.backward(saved)
                norms.append(optimizer.clip_grad_norm(model, 0.5))
                adamw.step(lr=1e-2 / (1 + step))
        numbers[place] = [*map(float, norms), *to_numpy(model.flat.data)]
    np.testing.assert_allclose(numbers["cuda"], numbers["cpu"], rtol=0, atol=1e-12)
    assert min(numbers["cpu"][:3]) > 0.5                                      # so that clipping has work


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_an_update_waits_once(cupy, dtype):
    """Loss and norm are fetched together; all else stays on the device."""
    config  = TrainConfig(**tiny.SETTINGS | {"device": "cuda", "dtype": dtype, "l2": 1e-3, "workers": None})
    tokens  = np.random.default_rng(0).integers(0, 11, 700)
    trainer = Trainer(config, GPT(config.model(11), 0, "cuda", dtype), tokens, tokens)
    for step in range(2):
        before = strict_cupy.machine.downloads
        update = trainer.update(step)
        assert strict_cupy.machine.downloads == before + 1
        assert 1 < update.loss < 4 and 0.1 < update.norm < 10 and trainer.optimizer.updates == step + 1


@formulas_and_twins
@pytest.mark.parametrize("settings", [
    {"do_sample": True, "temperature": 0.7, "seed": 5}, {"num_beams": 3, "num_return_sequences": 2}])
@pytest.mark.parametrize("ragged", [False, True])
def test_generation_from_the_device_equals_the_host(cupy, settings, ragged):
    here, there = GPT(CONFIG, device="cpu", dtype="float64"), GPT(CONFIG, device="cuda", dtype="float64")
    prompt = batch(CONFIG)[0][:, :2]
    if ragged:
        prompt, settings = [prompt[0].tolist(), [3], [4]], settings | {"pad_token_id": 0}
    new = there.generate(prompt, 6, **settings)
    assert isinstance(new, np.ndarray)
    np.testing.assert_array_equal(new, here.generate(prompt, 6, **settings))


@formulas_and_twins
@pytest.mark.parametrize("options", [{}, {"position": "sinusoidal", "gradient_checkpointing": True}])
@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_a_cache_on_the_device_waits_for_nothing_and_gives_the_logits_of_the_host(cupy, device, options):
    config = GPTConfig(**vars(CONFIG) | options)
    here, there = (GPT(config, device=place, dtype="float64") for place in ("cpu", device))
    tokens, _ = batch(config)
    expected, _ = here.forward(tokens)
    cache = KVCache(config.n_layer, config.block_size)
    for part in (slice(0, 2), slice(2, 3), slice(3, 5)):
        with forbid_synchronisation() as machine:
            logits, _ = there.forward(tokens[:, part], kv_cache=cache)
        np.testing.assert_allclose(to_numpy(logits), expected[:, part], rtol=0, atol=1e-12)
    assert machine.downloads == 3                                             # here in the test
    assert {layer.keys.device.id for layer in cache.layers} == {device == "cuda:1"}


def test_a_step_of_decoding_uploads_tokens_and_their_place_and_downloads_the_logits(cupy):
    model, (tokens, _) = GPT(CONFIG, device="cuda"), batch(CONFIG)
    decode = partial(model.next_logits, kv_cache=model.new_cache(5))
    decode(tokens[:, :3])
    strict_cupy.machine.uploads.clear()
    assert decode(tokens[:, :4]).shape == (3, 17)
    assert strict_cupy.machine.uploads == [((3, 1), "int64"), ((1,), "int64")]
    assert strict_cupy.machine.downloads == 2
