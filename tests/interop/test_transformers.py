"""transformers as the oracle: what its models compute, npgpt's compute from the same folder, and back again.

All numbers are of order 1, gains are not 1 and biases not 0, so that nothing left out or exchanged hides.
"""

import json
from dataclasses import asdict

import numpy as np
import pytest
from model_folders import random_model

import npgpt
from npgpt.errors import ConfigError
from npgpt.interop.huggingface_writing import write_model

torch        = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

GPT2  = {"vocab_size": 37, "n_positions": 16, "n_embd": 12, "n_layer": 2, "n_head": 3, "bos_token_id": None,
         "eos_token_id": None}
LLAMA = {"vocab_size": 37, "max_position_embeddings": 32, "hidden_size": 16, "intermediate_size": 20,
         "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 2, "bos_token_id": None,
         "eos_token_id": None}
LLAMA3 = {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 3.0,
          "original_max_position_embeddings": 24, "rope_theta": 50.0}
MODELS = {
    "gpt2": ("GPT2", {}),
    "gpt2, its square": ("GPT2", {"n_inner": 12, "n_head": 2, "activation_function": "gelu"}),
    "gpt2, untied": ("GPT2", {"tie_word_embeddings": False, "activation_function": "relu", "n_inner": 20}),
    "gpt2, epsilon": ("GPT2", {"layer_norm_epsilon": 0.3, "activation_function": "gelu_pytorch_tanh"}),
    "gpt2, one head": ("GPT2", {"n_head": 1, "n_layer": 1, "vocab_size": 12}),
    "llama": ("Llama", {}),
    "llama, its square": ("Llama", {"num_key_value_heads": 4, "intermediate_size": 16}),
    "llama, all biases, tied": ("Llama", {"attention_bias": True, "mlp_bias": True,
                                          "tie_word_embeddings": True}),
    "llama, bias of attention": ("Llama", {"attention_bias": True, "num_key_value_heads": 1}),
    "llama, wide heads": ("Llama", {"head_dim": 6, "rms_norm_eps": 0.3}),
    "llama, epsilon, theta": ("Llama", {"rms_norm_eps": 1e-3, "rope_theta": 100.0}),
    "llama, linear": ("Llama", {"rope_scaling": {"rope_type": "linear", "factor": 3.0}}),
    "llama, llama3": ("Llama", {"rope_scaling": LLAMA3, "head_dim": 8}),
    "mistral": ("Mistral", {"sliding_window": None, "head_dim": 10}),
    "mistral, wide window": ("Mistral", {"sliding_window": 32}),
    "qwen2": ("Qwen2", {"sliding_window": 3, "tie_word_embeddings": True}),
    "qwen3": ("Qwen3", {"head_dim": 8}),
    "qwen3, biases": ("Qwen3", {"head_dim": 4, "attention_bias": True, "num_key_value_heads": 4}),
}
WRITTEN = {"Mistral": "Llama"}          # what a Mistral computes a Llama does


def build(name, seed=0):
    """A transformers model of random numbers."""
    kind, changes = MODELS[name]
    config = getattr(transformers, f"{kind}Config")(**(GPT2 if kind == "GPT2" else LLAMA) | changes)
    model  = transformers.AutoModelForCausalLM.from_config(config).eval()
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.5 + (parameter.ndim == 1) * 0.7)
    return model


def tokens_for(model, T=13):
    return np.random.default_rng(1).integers(0, model.config.vocab_size, (3, T))


def logits_of(theirs, tokens):
    with torch.no_grad():
        return theirs(torch.tensor(tokens)).logits.float().numpy()


def named_as_ours(kind, get, config):
    """Their arrays by our names, written out here by hand: get(name) → array, or None."""
    ours = {}
    if kind == "GPT2":
        for place in ["wte", "wpe", "ln_f"] + [
                f"h.{n}.{part}" for n in range(config.n_layer)
                for part in ("ln_1", "attn.c_attn", "attn.c_proj", "ln_2", "mlp.c_fc", "mlp.c_proj")]:
            for end in ("weight", "bias"):
                ours[f"{place}.{end}"] = get(f"transformer.{place}.{end}")
    else:
        def linear(place, *names):
            weights = [get(f"{name}.weight") for name in names]
            biases  = [get(f"{name}.bias") for name in names]
            ours[f"{place}.weight"] = np.concatenate([weight.T for weight in weights], 1)
            ours[f"{place}.bias"]   = None if biases[0] is None else np.concatenate(biases)

        ours["wte.weight"], ours["ln_f.weight"] = get("model.embed_tokens.weight"), get("model.norm.weight")
        for n in range(config.num_hidden_layers):
            layer, attention = f"model.layers.{n}", f"model.layers.{n}.self_attn"
            ours[f"h.{n}.ln_1.weight"] = get(f"{layer}.input_layernorm.weight")
            ours[f"h.{n}.ln_2.weight"] = get(f"{layer}.post_attention_layernorm.weight")
            for norm in ("q_norm", "k_norm"):
                ours[f"h.{n}.attn.{norm}.weight"] = get(f"{attention}.{norm}.weight")
            linear(f"h.{n}.attn.c_attn", *(f"{attention}.{part}_proj" for part in "qkv"))
            linear(f"h.{n}.attn.c_proj", f"{attention}.o_proj")
            linear(f"h.{n}.mlp.c_fc", f"{layer}.mlp.gate_proj", f"{layer}.mlp.up_proj")
            linear(f"h.{n}.mlp.c_proj", f"{layer}.mlp.down_proj")
    if not config.tie_word_embeddings:
        ours["lm_head.weight"] = get("lm_head.weight")
    return {name: array for name, array in ours.items() if array is not None}


def same_weights(one, other):
    """Bit-equal, every tensor; returns how many."""
    one, other = dict(one.named_parameters()), dict(other.named_parameters())
    assert one.keys() == other.keys()
    for name, parameter in one.items():
        assert parameter.dtype == other[name].dtype, name
        assert torch.equal(parameter.view(torch.uint8), other[name].view(torch.uint8)), name
    return len(one)


@pytest.mark.parametrize("name", MODELS)
def test_logits_and_gradients_are_theirs_and_the_way_back_loses_no_bit(name, tmp_path):
    theirs = build(name)
    theirs.save_pretrained(tmp_path / "theirs")
    ours   = npgpt.GPT.from_pretrained(tmp_path / "theirs")
    tokens = tokens_for(theirs)
    expected  = logits_of(theirs, tokens)
    logits, _ = ours.forward(tokens)
    assert logits.dtype == np.float32 and 1 < abs(expected).max() < 60
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4)

    labels = np.where(np.random.default_rng(2).random(tokens.shape) < 0.2, -100, np.roll(tokens, -1, 1))
    loss, saved = ours.loss(tokens, labels)
    ours.backward(saved)
    shifted = torch.nn.functional.cross_entropy(theirs(torch.tensor(tokens)).logits.reshape(tokens.size, -1),
                                                torch.tensor(labels).reshape(-1))
    shifted.backward()
    assert abs(float(loss) - shifted.item()) < 1e-4
    grads = {name: parameter.grad.numpy() for name, parameter in theirs.named_parameters()}
    grads = named_as_ours(MODELS[name][0], grads.get, theirs.config)
    assert grads.keys() == ours.parameters.keys()
    for place, grad in grads.items():
        got = ours.parameters[place].grad
        assert got.shape == grad.shape, place
        scale = abs(grads[place.replace(".bias", ".weight")]).max()     # the key bias's true gradient is 0
        assert abs(got - grad).max() <= 1e-4 * max(scale, abs(grad).max()), place

    ours.save_pretrained(tmp_path / "ours")
    kind  = MODELS[name][0]
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    assert type(again).__name__.startswith(WRITTEN.get(kind, kind))
    assert same_weights(theirs, again) > 10
    np.testing.assert_allclose(logits_of(again, tokens), expected, rtol=0,
                               atol=1e-5)     # another order of sums
    back = npgpt.GPT.from_pretrained(tmp_path / "ours")
    assert back.config == ours.config
    np.testing.assert_array_equal(back.flat.data, ours.flat.data)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
@pytest.mark.parametrize("name", ["gpt2", "llama, all biases, tied", "qwen3"])
def test_all_types_of_weights_in_several_files(dtype, name, tmp_path):
    theirs = build(name).to(getattr(torch, dtype))
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size="4KB")
    assert len(list((tmp_path / "theirs").glob("model-*"))) > 1
    ours   = npgpt.GPT.from_pretrained(tmp_path / "theirs", dtype="float64")
    tokens = tokens_for(theirs)
    with torch.no_grad():
        wide = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "theirs", dtype=torch.float64)
        expected = wide(torch.tensor(tokens)).logits.numpy()
    np.testing.assert_allclose(ours.forward(tokens)[0], expected, rtol=0, atol=1e-5)     # angles: float32

    ours.save_pretrained(tmp_path / "ours", dtype=dtype, max_shard_size="4KB")
    files = sorted(path.name for path in (tmp_path / "ours").glob("model-*"))
    assert len(files) > 1 and files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours", dtype="auto")
    assert again.dtype == getattr(torch, dtype)
    assert same_weights(theirs, again) > 10


def test_the_old_spelling_of_the_rotary_settings(tmp_path):
    """As transformers 4 wrote them: rope_theta and rope_scaling, with `type` for rope_type before 4.43."""
    for number, scaling in enumerate([None, {"type": "linear", "factor": 3.0},
                                      {k: v for k, v in LLAMA3.items() if k != "rope_theta"}]):
        MODELS["x"] = ("Llama", {"rope_theta": 50.0, "rope_scaling": scaling, "head_dim": 8})
        try:
            theirs = build("x")
        finally:
            del MODELS["x"]
        folder = tmp_path / str(number)
        theirs.save_pretrained(folder)
        config = json.loads((folder / "config.json").read_text())
        new = npgpt.GPT.from_pretrained(folder)
        assert config.pop("rope_parameters")["rope_theta"] == 50.0 == new.config.rope_theta
        config |= {"rope_theta": 50.0, "rope_scaling": scaling}
        (folder / "config.json").write_text(json.dumps(config))
        old = npgpt.GPT.from_pretrained(folder)
        assert old.config == new.config and old.config.rope_scaling == ["none", "linear", "llama3"][number]
        tokens = tokens_for(theirs, 29)
        np.testing.assert_allclose(old.forward(tokens)[0], logits_of(theirs, tokens), rtol=0, atol=1e-4)


@pytest.mark.parametrize("inside", [{"original_max_position_embeddings": 24}, {}])
def test_a_context_of_pretraining_outside_the_rotary_settings_goes_before(inside, tmp_path):
    folder = tmp_path / "x"
    build("llama, llama3").save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text()) | {"original_max_position_embeddings": 8}
    del config["rope_parameters"]["original_max_position_embeddings"]
    config["rope_parameters"] |= inside
    (folder / "config.json").write_text(json.dumps(config))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    ours, tokens = npgpt.GPT.from_pretrained(folder), tokens_for(theirs, 29)
    assert ours.config.rope_original_block_size == 8
    np.testing.assert_allclose(ours.forward(tokens)[0], logits_of(theirs, tokens), rtol=0, atol=1e-4)


@pytest.mark.parametrize("changes", [
    {}, {"qk_norm": True}, {"bias": True}, {"qkv_bias": True}, {"n_kv_head": 1, "head_dim": 8},
    {"tie_word_embeddings": False}, {"qk_norm": True, "qkv_bias": True, "attn_proj_bias": True,
                                     "dtype": "float64"}])
def test_a_model_that_turns_neighbours_is_written_so_that_it_computes_the_same(changes, tmp_path):
    changes = dict(changes)
    dtype   = changes.pop("dtype", "float32")
    config  = npgpt.GPTConfig(**{"vocab_size": 37, "block_size": 32, "n_layer": 2, "n_head": 4, "n_embd": 32,
                                 "n_kv_head": 2, "n_inner": 20, "norm": "rmsnorm", "activation": "swiglu",
                                 "position": "rotary", "rope_interleaved": True, "bias": False} | changes)
    ours    = random_model(config, dtype)
    ours.save_pretrained(tmp_path / "x")
    theirs  = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "x", dtype="auto")
    tokens  = tokens_for(theirs, 29)
    logits, _ = ours.forward(tokens)
    np.testing.assert_allclose(logits_of(theirs, tokens), logits, rtol=0, atol=1e-4)
    back = npgpt.GPT.from_pretrained(tmp_path / "x", dtype=dtype)
    assert not back.config.rope_interleaved
    np.testing.assert_allclose(back.forward(tokens)[0], logits, rtol=0, atol=1e-4)


def test_a_gpt2_without_biases_is_exported_with_zeros(tmp_path):
    ours   = random_model(npgpt.GPTConfig(37, 16, 2, 3, 12, bias=False, attn_proj_bias=True))
    arrays = {name: parameter.data for name, parameter in ours.parameters.items()}
    write_model(tmp_path / "x", asdict(ours.config), arrays, exact=False)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "x")
    tokens = tokens_for(theirs)
    np.testing.assert_allclose(logits_of(theirs, tokens), ours.forward(tokens)[0], rtol=0, atol=1e-4)
    assert not theirs.transformer.h[0].mlp.c_fc.bias.any() and theirs.transformer.h[0].attn.c_proj.bias.any()


RMS_ROTARY = {"norm": "rmsnorm", "position": "rotary"}
LIKE_LLAMA = RMS_ROTARY | {"activation": "swiglu"}


@pytest.mark.parametrize("changes, option", [
    ({"block": "post"}, "block = 'post'"), ({"block": "parallel"}, "block = 'parallel'"),
    ({"position": "sinusoidal"}, "position = 'sinusoidal'"), ({"position": "none"}, "position = 'none'"),
    ({"logit_softcap": 3.0}, "logit_softcap = 3.0"), ({"qk_norm": True}, "qk_norm = True"),
    ({"n_kv_head": 1}, "n_kv_head = 1"), ({"head_dim": 5}, "head_dim = 5"),
    ({"activation": "swiglu"}, "activation"), ({"norm": "rmsnorm"}, "position = 'learned'"),
    (RMS_ROTARY, "activation = 'gelu_tanh'"), (LIKE_LLAMA | {"attn_proj_bias": False}, "attn_proj_bias"),
    (LIKE_LLAMA | {"qk_norm": True}, "bias = True"), (LIKE_LLAMA | {"block": "parallel"},
                                                      "block = 'parallel'"),
    (LIKE_LLAMA | {"logit_softcap": 1.0}, "logit_softcap"),
    (LIKE_LLAMA | {"n_head": 5, "head_dim": 4}, "n_head = 5")])
def test_what_no_family_holds_is_not_exported_but_kept_by_npgpt(changes, option, tmp_path):
    ours   = random_model(npgpt.GPTConfig(**{"vocab_size": 37, "block_size": 16, "n_layer": 2, "n_head": 3,
                                             "n_embd": 12} | changes))
    arrays = {name: parameter.data for name, parameter in ours.parameters.items()}
    with pytest.raises(ConfigError, match="cannot be exported: no family") as error:
        write_model(tmp_path / "x", asdict(ours.config), arrays, exact=False)
    assert f"with {option}" in str(error.value) and not list(tmp_path.iterdir())

    ours.save_pretrained(tmp_path / "x", max_shard_size="3KB")
    assert json.loads((tmp_path / "x" / "config.json").read_text())["model_type"] == "npgpt"
    back = npgpt.GPT.from_pretrained(tmp_path / "x")
    assert back.config == ours.config and len(list((tmp_path / "x").glob("model-*"))) > 1
    np.testing.assert_array_equal(back.flat.data, ours.flat.data)
