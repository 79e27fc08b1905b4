"""LoRA saved for PEFT: the files as they must be, and PEFT itself as the oracle."""

import json
from dataclasses import asdict

import numpy as np
import pytest
from safetensors.numpy import load_file
from small_gpt import LLAMA, gpt, tokens

from npgpt import GPT, SequenceClassifier, add_lora
from npgpt.errors import CheckpointError, ConfigError
from npgpt.interop import peft_files
from npgpt.interop.classifiers import Labels
from npgpt.interop.huggingface_writing import write_model
from npgpt.layers import lora_layers

ALL = ("c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
GROUPED = {**LLAMA, "n_kv_head": 1, "n_inner": 7}
MODELS = {
    "gpt2": {}, "gpt2, untied": {"tie_word_embeddings": False}, "gpt2 without biases": {"bias": False},
    "llama": GROUPED, "llama, neighbours turn": {**GROUPED, "rope_interleaved": True},
    "llama, square, biases": {**LLAMA, "bias": True, "n_inner": 8},
    "qwen2": {**GROUPED, "qkv_bias": True, "attn_proj_bias": False},
    "qwen3": {**GROUPED, "qk_norm": True, "head_dim": 6, "rope_interleaved": True},
}


def with_lora(targets=ALL, classifier=False, **options):
    """A model with LoRA whose B is not 0."""
    model = gpt("float32", **options)
    if classifier:
        model = SequenceClassifier.from_gpt(model, ("a", "b", "c"))
        model.score.weight.data[...] = np.random.default_rng(4).standard_normal((8, 3))
    add_lora(model, 3, 4.5, targets, seed=5, also=lambda name: name == "score.weight")
    rng = np.random.default_rng(3)
    for layer in lora_layers(model).values():
        layer.lora_B.data[...] = 0.5 * rng.standard_normal(layer.lora_B.shape)
    return model


def saved(model, folder, **options):
    """The configuration and the tensors of the saved adapter."""
    model.save_adapter(folder, **options)
    assert sorted(path.name for path in folder.iterdir()) == ["adapter_config.json",
                                                              "adapter_model.safetensors"]
    return json.loads((folder / "adapter_config.json").read_text()), \
        load_file(folder / "adapter_model.safetensors")


def test_the_files_of_a_gpt2(tmp_path):
    model = with_lora(("c_attn", "mlp.c_proj"))
    config, tensors = saved(model, tmp_path / "x", base_model="some/model")
    assert config == {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": "some/model", "r": 3,
        "lora_alpha": 4.5, "target_modules": ["attn.c_attn", "mlp.c_proj"], "fan_in_fan_out": True,
        "lora_dropout": 0.0, "bias": "none", "use_rslora": False, "use_dora": False,
        "init_lora_weights": True, "inference_mode": True, "modules_to_save": None}
    assert len(tensors) == 3 * 2 * 2
    for name, array in tensors.items():
        start, end = "base_model.model.transformer.", ".weight"
        assert name.startswith(start) and name.endswith(end)
        ours = model.parameters[name.removeprefix(start).removesuffix(end)].data
        assert np.array_equal(array, ours.T) and array.dtype == np.float32, name


def test_the_files_of_a_llama(tmp_path):
    model = with_lora(**GROUPED)
    config, tensors = saved(model, tmp_path / "x")
    assert config["target_modules"] == ["mlp.down_proj", "mlp.gate_proj", "mlp.up_proj", "self_attn.k_proj",
                                        "self_attn.o_proj", "self_attn.q_proj", "self_attn.v_proj"]
    assert config["fan_in_fan_out"] is False and config["base_model_name_or_path"] is None
    layer = lora_layers(model)["h.1.attn.c_attn"]
    place = "base_model.model.model.layers.1.self_attn"
    for name, columns in (("q", slice(0, 8)), ("k", slice(8, 12)), ("v", slice(12, 16))):
        assert np.array_equal(tensors[f"{place}.{name}_proj.lora_A.weight"], layer.lora_A.data.T)
        assert np.array_equal(tensors[f"{place}.{name}_proj.lora_B.weight"], layer.lora_B.data[:, columns].T)
    assert len(tensors) == 3 * 7 * 2


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")     # PEFT's own
@pytest.mark.parametrize("classifier", [False, True])
@pytest.mark.parametrize("targets", [ALL, ("c_attn",)])
@pytest.mark.parametrize("name", MODELS)
def test_peft_computes_what_npgpt_computes(name, targets, classifier, tmp_path):
    torch = pytest.importorskip("torch")
    peft  = pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    base   = gpt("float32", **MODELS[name])
    arrays = {name: parameter.data for name, parameter in base.parameters.items()}
    labels = Labels(("a", "b", "c"), 12) if classifier else None
    if classifier:
        arrays["score.weight"] = np.zeros((8, 3), np.float32)                 # the adapter brings it
    write_model(tmp_path / "base", asdict(base.config), arrays, exact=False, labels=labels)
    kind   = transformers.AutoModelForSequenceClassification if classifier else \
        transformers.AutoModelForCausalLM
    theirs = kind.from_pretrained(tmp_path / "base")
    inputs = torch.tensor(tokens() % 12)
    before = theirs(inputs).logits.detach().numpy()

    model = with_lora(targets, classifier, **MODELS[name])
    model.save_adapter(tmp_path / "adapter")
    theirs = peft.PeftModel.from_pretrained(theirs, tmp_path / "adapter").eval()
    with torch.no_grad():
        actual = theirs(inputs).logits.numpy()
    expected, _ = model.forward(tokens() % 12)
    assert abs(expected - before).max() > 0.1
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-4)
    merged = theirs.merge_and_unload()
    with torch.no_grad():
        np.testing.assert_allclose(merged(inputs).logits.numpy(), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize(("options", "words"), [
    ({"block": "parallel"}, "block = 'parallel'"), ({"position": "sinusoidal"}, "position = 'sinusoidal'"),
    ({"logit_softcap": 2.0}, "logit_softcap = 2.0")])
def test_a_model_that_transformers_has_not_is_refused(options, words, tmp_path):
    with pytest.raises(ConfigError, match="cannot be saved for PEFT: no family") as error:
        with_lora(**options).save_adapter(tmp_path / "x")
    assert words in str(error.value) and "\n" not in str(error.value) and not list(tmp_path.iterdir())


def test_a_model_without_lora_has_no_adapter(tmp_path):
    with pytest.raises(ConfigError, match="no LoRA to save"):
        gpt().save_adapter(tmp_path / "x")


def test_what_was_learned_beside_lora_is_not_left_out_in_silence(tmp_path):
    model = gpt()
    add_lora(model, 2, 1, ("c_attn",), also=lambda name: name.startswith("ln_f"))
    with pytest.raises(ConfigError, match="ln_f.bias was learned beside LoRA"):
        model.save_adapter(tmp_path / "x")
    assert not list(tmp_path.iterdir())


def test_what_is_frozen_of_lora_goes_along(tmp_path):
    """As A does where B alone is learned."""
    model = with_lora()
    _, expected = saved(model, tmp_path / "x")
    model.freeze(lambda name: name.endswith("lora_B"))
    _, tensors = saved(model, tmp_path / "y")
    assert tensors.keys() == expected.keys()
    assert all(np.array_equal(tensors[name], expected[name]) for name in tensors)


def test_a_frozen_head_of_a_classifier_goes_along(tmp_path):
    model = with_lora(classifier=True)
    model.freeze(lambda name: "lora" in name)
    config, tensors = saved(model, tmp_path / "x")
    assert config["task_type"] == "SEQ_CLS" and config["modules_to_save"] == ["score"]
    assert np.array_equal(tensors["base_model.model.score.weight"], model.score.weight.data.T)


def test_an_adapter_is_there_whole_or_not_at_all(tmp_path, monkeypatch):
    def fails(*_):
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(peft_files, "write_json", fails)
    with pytest.raises(CheckpointError, match="cannot save the adapter to .*: No space left on device"):
        with_lora().save_adapter(tmp_path / "x")
    assert not list(tmp_path.iterdir())


def test_a_folder_that_holds_an_adapter_is_not_written_over(tmp_path):
    model = with_lora()
    model.save_adapter(tmp_path / "x")
    before = (tmp_path / "x" / "adapter_model.safetensors").read_bytes()
    with pytest.raises(CheckpointError, match=r"cannot save the adapter to .*: It already holds"):
        with_lora(("c_attn",)).save_adapter(tmp_path / "x")
    assert (tmp_path / "x" / "adapter_model.safetensors").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


@pytest.mark.parametrize("kind", [GPT, SequenceClassifier])
def test_an_adapter_alone_is_told(kind, tmp_path):
    with_lora(("c_attn",)).save_adapter(tmp_path / "x")
    with pytest.raises(CheckpointError, match=r"x is an adapter alone .*, and the model that it is for"):
        kind.from_pretrained(tmp_path / "x")


@pytest.mark.parametrize("classifier", [False, True])
def test_an_adapter_beside_a_model_is_not_passed_over(classifier, tmp_path):
    """transformers puts it on the model of that folder."""
    model = SequenceClassifier.from_gpt(gpt("float32"), ("a", "b")) if classifier else gpt("float32")
    model.save_pretrained(tmp_path / "model")
    kind = type(model)
    kind.from_pretrained(tmp_path / "model")
    (tmp_path / "model" / "adapter_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"has an adapter beside its model .* let PEFT merge them"):
        kind.from_pretrained(tmp_path / "model")
