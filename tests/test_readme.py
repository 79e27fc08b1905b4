"""The README is true: its excerpt is the code, its examples run, and the error it shows is the one raised."""

import inspect
import re
from pathlib import Path

import numpy as np
import pytest

import npgpt
from npgpt import GradientError
from npgpt.cli.main import COMMANDS
from npgpt.ops import layernorm
from npgpt.training.config import preset_names

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
EXCERPT, SWISH, PROPERTY, CHECKPOINTS, LIBRARY, PARTS, TAP = re.findall(r"```python\n(.*?)```", README, re.S)


def test_the_excerpt_is_the_code():
    code = inspect.getsource(layernorm)
    assert EXCERPT.replace("\n\n", "\n").strip() in code.replace("\n\n\n", "\n")


def test_the_wrong_gradient_gives_the_error_that_is_shown():
    with pytest.raises(GradientError) as caught:
        exec(SWISH, {})
    assert str(caught.value) in " ".join(README.split())


def test_the_property_test_finds_it_too():
    names: dict = {}
    exec(SWISH.partition("npgpt.check_gradients")[0] + PROPERTY, names)
    with pytest.raises(GradientError):
        names["test_the_gradient_of_swish_is_right"]()


def test_the_example_of_checkpoints_loads_and_saves(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = npgpt.GPT(npgpt.GPTConfig(vocab_size=11, block_size=8, n_layer=1, n_head=2, n_embd=8))
    model.save_pretrained("path/to/gpt2")
    exec(CHECKPOINTS, {"npgpt": npgpt})
    saved = npgpt.GPT.from_pretrained("my-model")
    np.testing.assert_allclose(saved.flat.data, model.flat.data, rtol=2**-8)


def test_the_library_example_overfits_its_batch():
    names: dict = {}
    exec(LIBRARY, names)
    assert names["loss"] < 3.9 < 4.17                                        # ln 65 = 4.17


def test_the_example_of_a_part_of_ones_own_is_checked_and_the_model_learns_and_is_kept(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = npgpt.GPT(npgpt.GPTConfig(vocab_size=65, block_size=64, n_layer=4, n_head=4, n_embd=128))
    before, names = model.state_dict(), {"npgpt": npgpt, "np": np, "model": model}
    exec(PARTS, names)
    assert all(np.array_equal(values, model.parameters[name].data) for name, values in before.items()
               if "mlp" not in name)
    learning = "optimizer" + LIBRARY.partition("optimizer")[2].replace("range(100)", "range(20)")
    exec(learning, names)
    assert names["step"] == 19 and names["loss"] < 4.17                       # ln 65, of who knows nothing
    model.load_state_dict(np.load("weights.npz"))


def test_the_example_of_a_loss_on_a_hidden_state_adds_its_gradient():
    model = npgpt.GPT(npgpt.GPTConfig(vocab_size=11, block_size=8, n_layer=4, n_head=2, n_embd=8))
    tokens, targets = np.random.default_rng(0).integers(0, 11, (2, 2, 6))
    names = {"Module": npgpt.layers.Module, "model": model, "tokens": tokens, "targets": targets}
    exec(TAP, names)
    model.initialise(dtype="float64")
    for n, parameter in enumerate(model.parameters.values()):
        parameter.data += np.random.default_rng(n).normal(size=parameter.shape)
    tap, line = names["tap"], next(line for line in TAP.splitlines() if line.startswith("tap.dy"))

    def both():
        loss, saved = model.loss(tokens, targets)
        return loss + 0.1 * (tap.y**2).mean(), saved

    def backward(dy, saved):
        exec(line, names)
        tap.dy = dy * tap.dy
        model.backward(saved, dy)

    npgpt.check_gradients(both, backward, parameters=model.parameters)


def test_the_commands_presets_and_pictures_it_names_are_there():
    for command in re.findall(r"npgpt (\w+) ", README):
        assert command in COMMANDS
    for preset in preset_names():
        assert f"`{preset}`" in README
    for picture in re.findall(r'src="(.*?)"', README):
        assert (Path(__file__).parents[1] / picture).exists()
