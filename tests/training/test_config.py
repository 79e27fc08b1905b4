"""Settings: where they come from, in which order, and what is refused."""

import dataclasses
import os
import tomllib

import numpy as np
import pytest

from npgpt.errors import ConfigError
from npgpt.training.config import TrainConfig, preset_names, read_config_file, read_preset, read_settings
from npgpt.training.finetuning import FinetuneConfig


def test_every_preset_is_valid_and_those_promised_are_there():
    assert {"quick", "shakespeare-char-cpu", "shakespeare-char", "gpt2-124m"} <= set(preset_names())
    for name in preset_names():
        TrainConfig.parse(read_preset(name), name)


def test_the_preset_quick_is_the_defaults():
    assert TrainConfig.parse(read_preset("quick"), "quick") == TrainConfig()


def test_the_nanogpt_recipe_has_nanogpts_shape_and_length():
    config = TrainConfig.parse(read_preset("shakespeare-char-cpu"), "preset")
    assert (config.n_layer, config.n_head, config.n_embd, config.block_size, config.batch_size,
            config.max_iters, config.dropout) == (4, 4, 128, 64, 12, 2000, 0.0)


def test_settings_survive_a_file():
    config = TrainConfig(data='a "quoted" \\ päth', out_dir="x", min_lr=1e-5, l1=1e-7, bias=False)
    assert TrainConfig.parse(tomllib.loads(config.to_toml()), "file") == config
    everything = dataclasses.replace(config, lr_decay_iters=7, workers=2, n_kv_head=2, head_dim=8, n_inner=9,
                                     qkv_bias=True, attn_proj_bias=False)
    assert set(tomllib.loads(everything.to_toml())) == {f.name for f in dataclasses.fields(TrainConfig)}


def test_hyphens_are_underscores_and_whole_numbers_are_numbers():
    config = TrainConfig.parse({"n-layer": 2, "learning_rate": 1, "min-lr": 0}, "file")
    assert (config.n_layer, config.learning_rate, config.min_lr) == (2, 1.0, 0.0)
    assert type(config.learning_rate) is float


@pytest.mark.parametrize("settings, sentence", [
    ({"n_layr": 2}, "mine.toml: unknown setting 'n_layr'; the nearest known one is 'n_layer'"),
    ({"learnig-rate": 2}, "the nearest known one is 'learning_rate'"),
    ({"n_layer": "2"}, "mine.toml: n_layer must be of type int, not '2'"),
    ({"n_layer": 2.0}, "n_layer must be of type int, not 2.0"),
    ({"n_layer": True}, "n_layer must be of type int, not True"),
    ({"bias": 1}, "bias must be of type bool, not 1"),
    ({"dropout": "0"}, "dropout must be of type float, not '0'"),
    ({"min_lr": "0"}, "min_lr must be of type float, not '0'"),
    ({"data": ["a"]}, "data must be of type str"),
    ({"learning_rate": True}, "learning_rate must be of type float, not True"),
    ({"n_layer": 0}, "mine.toml: n_layer must be at least 1, not 0"),
    ({"batch_size": 10**20}, "batch_size must be at most 2147483647, not 1000"),
    ({"tokenizer": "a\0b"}, r"tokenizer has a zero byte, which no name may have: 'a\x00b'"),
    ({"n_embd": 63}, "n_embd must be a multiple of n_head"),
    ({"dropout": 1.0}, "dropout must be at least 0 and below 1, not 1.0"),
    ({"learning_rate": float("nan")}, "learning_rate must be a finite number"),
    ({"learning_rate": -1.0}, "learning_rate must be at least 0"),
    ({"min_lr": 1.0}, "min_lr must be at least 0 and at most learning_rate, not 1.0"),
    ({"beta2": 1.0}, "beta2 must be at least 0 and below 1, not 1.0"),
    ({"val_fraction": 0.0}, "val_fraction must be above 0 and below 1, not 0.0"),
    ({"seed": 2**64}, "seed must be at least 0 and below 2⁶⁴, not 18446744073709551616"),
    ({"workers": 0}, "workers must be 1 to 16, a sequence of the step for each, not 0"),
    ({"workers": 17}, "workers must be 1 to 16, a sequence of the step for each, not 17"),
    ({"workers": 2, "device": "cuda"}, "workers must be 1 on a GPU, not 2"),
    ({"dtype": "float16"}, "dtype must be float32 or float64 on the CPU, not 'float16'"),
    ({"tf32": True}, "tf32 must be false but in float32 on a GPU, not True"),
    ({"tf32": True, "device": "cuda", "dtype": "bfloat16"}, "tf32 must be false"),
    ({"activation": "none"}, "activation must be gelu_tanh or gelu_erf or relu or "),
    ({"position": "alibi"}, "position must be learned or sinusoidal or rotary or none, not 'alibi'"),
])
def test_what_cannot_be_is_refused_in_one_sentence(settings, sentence):
    with pytest.raises(ConfigError) as caught:
        TrainConfig.parse(settings, "mine.toml")
    assert sentence in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("make, settings, sentence", [
    (TrainConfig, {"batch_size": "8"}, "batch_size must be of type int, not '8'"),
    (TrainConfig, {"max_iters": 8.0}, "max_iters must be of type int, not 8.0"),
    (TrainConfig, {"workers": True}, "workers must be of type int, not True"),
    (TrainConfig, {"min_lr": "0"}, "min_lr must be of type float, not '0'"),
    (FinetuneConfig, {"epochs": "3"}, "epochs must be of type float, not '3'"),
    (FinetuneConfig, {"lora_targets": ["c_attn"]}, "lora_targets must be of type str, not ['c_attn']"),
])
def test_in_python_too_a_setting_is_of_its_type(make, settings, sentence):
    with pytest.raises(ConfigError) as caught:
        make(**settings)
    assert str(caught.value) == sentence


def test_numpys_numbers_become_pythons_and_can_be_kept():
    config = TrainConfig(n_layer=np.int64(2), learning_rate=np.float32(0.25), dropout=0, bias=np.False_)
    kinds  = [type(getattr(config, name)) for name in ("n_layer", "learning_rate", "dropout", "bias")]
    assert kinds == [int, float, float, bool]
    assert TrainConfig.parse(tomllib.loads(config.to_toml()), "file") == config


@pytest.mark.parametrize("least, names", [
    (0, ["learning_rate", "warmup_iters", "weight_decay", "grad_clip", "l1", "l2", "sample_tokens",
         "early_stopping_patience", "seed"]),
    (1, ["batch_size", "gradient_accumulation_steps", "max_iters", "lr_decay_iters", "eval_interval",
         "eval_iters", "log_interval"])])
def test_the_least_of_a_number_may_be(least, names):
    for name in names:
        assert getattr(TrainConfig(**{name: least}), name) == least
        with pytest.raises(ConfigError, match=f"{name} must be at least {least}.*, not {least - 1}"):
            TrainConfig(**{name: least - 1})


@pytest.mark.parametrize("settings", [
    {"workers": 16}, {"workers": 1, "device": "cuda"}, {"min_lr": 3e-3}, {"beta1": 0.0}, {"seed": 2**64 - 1}])
def test_the_most_of_a_number_may_be(settings):
    TrainConfig(**settings)


def test_a_file_goes_over_a_preset(tmp_path):
    (tmp_path / "mine.toml").write_text("n_layer = 2\n")
    config = read_settings("shakespeare-char-cpu", str(tmp_path / "mine.toml"))
    assert (config.n_layer, config.block_size, config.max_iters) == (2, 64, 2000)


def test_files_that_are_no_configuration_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"cannot read the configuration .*absent.toml: No such file"):
        read_config_file(tmp_path / "absent.toml")
    for content in (b"n_layer = ", b"\xff", b"seed = " + b"9" * 5000, b"seed = " + b"[" * 5000):
        (tmp_path / "bad.toml").write_bytes(content)
        with pytest.raises(ConfigError, match="bad.toml is not TOML"):
            read_config_file(tmp_path / "bad.toml")
    with pytest.raises(ConfigError, match="unknown preset 'quik': use one of gpt2-124m, quick"):
        read_preset("quik")


def test_odd_names_are_kept_or_refused(tmp_path):
    """U+007F, which JSON leaves as it is and TOML forbids; and bytes of a name that are no UTF-8."""
    config = TrainConfig(data="del\x7f \\ \"ü\n")
    (tmp_path / "config.toml").write_text(config.to_toml(), encoding="utf-8")
    assert TrainConfig.parse(read_config_file(tmp_path / "config.toml"), "") == config
    with pytest.raises(ConfigError, match="is no UTF-8, and cannot be kept"):
        TrainConfig(data=os.fsdecode(b"\xe9.txt")).to_toml()
    with pytest.raises(ConfigError, match="learning_rate must be of type float"):
        TrainConfig.parse({"learning_rate": 10**400}, "huge.toml")


def test_a_file_with_a_byte_order_mark_and_carriage_returns_is_read(tmp_path):
    (tmp_path / "mine.toml").write_bytes(b"\xef\xbb\xbfmax_iters = 3\r\nn_layer = 2\r\n")   # Notepad's
    assert read_config_file(tmp_path / "mine.toml") == {"max_iters": 3, "n_layer": 2}
