"""Model folders read: what they hold, by hand, and what is wrong with them, by name."""

import json

import numpy as np
import pytest
from model_folders import (
    GPT2,
    LLAMA,
    gpt2_arrays,
    llama_arrays,
    random_model,
    refused,
    write_folder,
    write_shards,
)

import npgpt
from npgpt.errors import CheckpointError, ConfigError
from npgpt.interop import huggingface


def load(folder):
    return lambda: npgpt.GPT.from_pretrained(folder)


# What is read, checked by hand: without transformers too

def test_gpt2_by_either_name_and_with_old_buffers(tmp_path):
    with_prefix, without = gpt2_arrays(), gpt2_arrays(prefix="")
    for n in range(2):
        without[f"h.{n}.attn.bias"] = np.tril(np.ones((6, 6), "u1")).reshape(1, 1, 6, 6)
        without[f"h.{n}.attn.masked_bias"] = np.array(-1e4, "f4")
    one  = npgpt.GPT.from_pretrained(write_folder(tmp_path / "one", arrays=with_prefix, n_ctx=7))
    defaults = dict.fromkeys(["activation_function", "layer_norm_epsilon", "resid_pdrop", "embd_pdrop",
                              "attn_pdrop", "n_positions"], ...)
    two  = npgpt.GPT.from_pretrained(str(write_folder(
        tmp_path / "two", arrays=without, architectures=["GPT2Model"], n_ctx=6, **defaults)))
    assert one.config == two.config and one.config.activation == "gelu_tanh" and one.config.dropout == 0.1
    for name, parameter in one.parameters.items():
        np.testing.assert_array_equal(parameter.data, with_prefix[f"transformer.{name}"])
        np.testing.assert_array_equal(parameter.data, two.parameters[name].data)
    assert len(one.parameters) == len(with_prefix)


def test_llama_is_turned_and_laid_side_by_side(tmp_path):
    arrays = llama_arrays()
    buffer = {"model.layers.1.self_attn.rotary_emb.inv_freq": np.ones(1, "f4")}       # of old files
    model  = npgpt.GPT.from_pretrained(write_folder(tmp_path, LLAMA, arrays | buffer))
    get    = lambda name: arrays[f"model.layers.1.{name}.weight"].T                     # noqa: E731
    for place, expected in {
            "h.1.attn.c_attn": np.hstack([get(f"self_attn.{part}_proj") for part in "qkv"]),
            "h.1.attn.c_proj": get("self_attn.o_proj"), "h.1.mlp.c_proj": get("mlp.down_proj"),
            "h.1.mlp.c_fc": np.hstack([get("mlp.gate_proj"), get("mlp.up_proj")])}.items():
        np.testing.assert_array_equal(model.parameters[f"{place}.weight"].data, expected)
    np.testing.assert_array_equal(model.parameters["lm_head.weight"].data, arrays["lm_head.weight"])
    assert not model.config.rope_interleaved and model.config.norm_eps == 1e-5


def test_what_is_one_tensor_is_read_where_it_lies_and_several_become_what_is_asked_for(tmp_path):
    _, parameters = huggingface.read_model(write_folder(tmp_path, LLAMA, llama_arrays()), npgpt.GPTConfig)
    for name, parameter in parameters.items():
        values = [tensor.values() for tensor in parameter.tensors]
        assert len(values) == {"c_attn": 3, "c_fc": 2}.get(name.split(".")[-2], 1)
        in_file = np.shares_memory(parameter.astype("float32", copy=False), values[0])
        assert in_file is (len(values) == 1)
        assert parameter.astype("float64").dtype == "float64"


def test_bfloat16_in_several_files(tmp_path):
    arrays = {name: (array.view("u4") >> 16).astype("u2") for name, array in llama_arrays().items()}
    write_folder(tmp_path, LLAMA, arrays)
    one = npgpt.GPT.from_pretrained(tmp_path)
    write_shards(tmp_path, arrays)
    two = npgpt.GPT.from_pretrained(tmp_path, dtype="float64")
    np.testing.assert_array_equal(one.flat.data, two.flat.data)
    wte = (arrays["model.embed_tokens.weight"].astype("u4") << 16).view("f4")
    np.testing.assert_array_equal(one.parameters["wte.weight"].data, wte)
    one.parameters["wte.weight"].data[...] = 0              # the file stays as it is
    assert npgpt.GPT.from_pretrained(tmp_path).parameters["wte.weight"].data.any()


def test_a_tied_head_may_be_there_twice_but_not_differ(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface, "CHUNK", 7)            # of 44 numbers: compared in parts, all of them
    arrays = gpt2_arrays()
    arrays["lm_head.weight"] = arrays["transformer.wte.weight"].copy()
    folder = write_folder(tmp_path, arrays=arrays)
    assert "lm_head.weight" not in npgpt.GPT.from_pretrained(folder).parameters
    arrays["lm_head.weight"][10, 3] += 1
    write_folder(tmp_path, arrays=arrays)
    refused(load(tmp_path), "lm_head.weight differs from transformer.wte.weight", "tie_word_embeddings")
    write_folder(tmp_path, arrays=arrays, tie_word_embeddings=False)
    model = npgpt.GPT.from_pretrained(tmp_path)
    np.testing.assert_array_equal(model.parameters["lm_head.weight"].data, arrays["lm_head.weight"])


# What is wrong with the tensors

def test_tensors_of_a_wrong_shape_missing_or_too_many_are_named(tmp_path):
    for number, (config, whole) in enumerate([(GPT2, gpt2_arrays()), (LLAMA, llama_arrays())]):
        folder = tmp_path / str(number)
        for name in whole:
            arrays = dict(whole)
            taken  = arrays.pop(name)
            write_folder(folder, config, arrays)
            said = refused(load(folder), folder)
            assert name in said or name.split(".", 1)[1] in said, said
            for wrong in (taken[:-1], taken[..., None], np.vstack([taken, taken])):
                write_folder(folder, config, arrays | {name: wrong})
                refused(load(folder), folder,
                        f"{name} has shape {wrong.shape}, and by config.json it is {taken.shape}")
            write_folder(folder, config, arrays | {name: taken.astype("i8")})
            refused(load(folder), folder, f"{name} has type I64")
        for extra in ("model.layers.2.mlp.up_proj.weight", "score.weight", "transformer.h.2.ln_1.weight",
                      "x" * 1000, "model.layers.0.self_attn.q_proj.bias", "transformer.h.0.attn.bias.bias"):
            write_folder(folder, config, whole | {extra: np.ones(4, "f4")})
            refused(load(folder), folder, extra[:50], "no place for it")


def test_the_shapes_of_one_family_are_not_taken_for_the_others(tmp_path):
    write_folder(tmp_path, LLAMA, gpt2_arrays())
    refused(load(tmp_path), "no tensor embed_tokens.weight")
    write_folder(tmp_path, GPT2, llama_arrays())
    refused(load(tmp_path), "no tensor wte.weight")


# What is wrong with config.json

LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 4}
WRONG = {
    "no model_type": (GPT2, {"model_type": ...},
                      "model_type is None, and npgpt reads gpt2, llama, mistral, qwen2"),
    "unknown model_type": (GPT2, {"model_type": "mamba"},
                           "model_type is 'mamba', and npgpt reads gpt2, llama"),
    "model_type is a list": (GPT2, {"model_type": ["gpt2"]}, "model_type is ['gpt2']"),
    "another head": (GPT2, {"architectures": ["GPT2ForTokenClassification"]},
                     "GPT2LMHeadModel and GPT2Model"),
    "a classifier's head": (GPT2, {"architectures": ["GPT2ForSequenceClassification"]},
                            "['GPT2ForSequenceClassification'], without a language model's head"),
    "another family's": (LLAMA, {"architectures": ["GPT2LMHeadModel"]}, "LlamaForCausalLM and LlamaModel"),
    "architectures is text": (GPT2, {"architectures": "GPT2LMHeadModel"}, "architectures are"),
    "quantised": (LLAMA, {"quantization_config": {"bits": 4}}, "quantization_config"),
    "compressed": (LLAMA, {"compression_config": {"bits": 4}}, "compression_config"),
    "looks ahead": (LLAMA, {"is_causal": False}, "is_causal = False"),
    "GPT-2 looks ahead": (GPT2, {"is_causal": False}, "is_causal = False"),
    "scale_attn_weights": (GPT2, {"scale_attn_weights": False}, "scale_attn_weights = False"),
    "inverse layer": (GPT2, {"scale_attn_by_inverse_layer_idx": True},
                      "scale_attn_by_inverse_layer_idx = True"),
    "reordered": (GPT2, {"reorder_and_upcast_attn": True}, "reorder_and_upcast_attn = True"),
    "cross attention": (GPT2, {"add_cross_attention": True}, "add_cross_attention = True"),
    "activation": (GPT2, {"activation_function": "swish"},
                   "activation_function is 'swish', and npgpt knows gelu_new"),
    "dropouts differ": (GPT2, {"embd_pdrop": 0.2}, "resid_pdrop and embd_pdrop differ"),
    "dropout is text": (GPT2, {"resid_pdrop": "0.1"}, "resid_pdrop is '0.1'"),
    "dropout of 1": (GPT2, {"resid_pdrop": 1, "embd_pdrop": 1}, "dropout must be"),
    "no n_embd": (GPT2, {"n_embd": ...}, "it has no n_embd"),
    "no context": (GPT2, {"n_positions": ...}, "it has no n_positions"),
    "layers are text": (GPT2, {"n_layer": "2"}, "n_layer is '2'"),
    "layers are half": (GPT2, {"n_layer": 2.5}, "n_layer is 2.5"),
    "no layer": (GPT2, {"n_layer": 0}, "n_layer is 0"),
    "layers below none": (GPT2, {"n_layer": -1}, "n_layer is -1"),
    "layers are true": (GPT2, {"n_layer": True}, "n_layer is True"),
    "ten thousand layers": (GPT2, {"n_layer": 10_000}, "no tensor transformer.h.2.ln_1.weight"),
    "a billion layers": (GPT2, {"n_layer": 10**9}, "n_layer must be at most 10000"),
    "layers without end": (GPT2, {"n_layer": 10**30}, "n_layer is 1000"),
    "a billion tokens": (GPT2, {"vocab_size": 10**9}, "transformer.wte.weight has shape (11, 4)"),
    "a billion channels": (LLAMA, {"hidden_size": 10**9}, "model.embed_tokens.weight has shape (11, 4)"),
    "a billion per head": (LLAMA, {"head_dim": 10**9}, "self_attn.q_proj.weight has shape (4, 4)"),
    "heads do not divide": (GPT2, {"n_head": 3}, "n_embd must be a multiple of n_head"),
    "heads are not shared evenly": (LLAMA, {"num_key_value_heads": 3},
                                    "n_head must be a multiple of n_kv_head"),
    "epsilon is no number": (GPT2, {"layer_norm_epsilon": "small"}, "layer_norm_epsilon is 'small'"),
    "epsilon is infinite": (LLAMA, {"rms_norm_eps": float("inf")}, "rms_norm_eps is inf"),
    "epsilon is not a number": (LLAMA, {"rms_norm_eps": float("nan")}, "rms_norm_eps is nan"),
    "epsilon of 400 digits": (LLAMA, {"rms_norm_eps": 10**400}, "rms_norm_eps is 1000"),
    "epsilon is beyond float32": (LLAMA, {"rms_norm_eps": 1e39}, "rms_norm_eps is 1e+39"),
    "epsilon is negative": (LLAMA, {"rms_norm_eps": -1.0}, "rms_norm_eps is -1.0"),
    "hidden_act": (LLAMA, {"hidden_act": "gelu"}, "hidden_act = 'gelu'"),
    "experts": (LLAMA, {"num_local_experts": 8}, "num_local_experts = 8"),
    "experts of Qwen": (LLAMA, {"num_experts": 8}, "num_experts = 8"),
    "experts of DeepSeek": (LLAMA, {"n_routed_experts": 8}, "n_routed_experts = 8"),
    "window": (LLAMA, {"sliding_window": 5}, "sliding_window of 5 tokens is less than its context of 6"),
    "window by default": (LLAMA, {"model_type": "mistral", "architectures": None,
                                  "max_position_embeddings": 8192}, "sliding_window of 4,096"),
    "window of Qwen": (LLAMA, {"model_type": "qwen2", "architectures": None, "use_sliding_window": True,
                               "sliding_window": 4}, "sliding_window of 4"),
    "windows of layers": (LLAMA, {"layer_types": ["full_attention", "sliding_attention"]}, "layer_types"),
    "layer_types is text": (LLAMA, {"layer_types": "full_attention"}, "layer_types"),
    "key heads by default": (LLAMA, {"num_key_value_heads": ...},
                             "k_proj.weight has shape (2, 4), and by config.json it is (4, 4)"),
    "heads of Qwen3 by default": (LLAMA, {"model_type": "qwen3", "architectures": None},
                                  "q_proj.weight has shape (4, 4), and by config.json it is (256, 4)"),
    "no key heads": (LLAMA, {"model_type": "qwen2", "architectures": None, "num_key_value_heads": ...},
                     "it has no num_key_value_heads"),
    "yarn": (LLAMA, {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}},
             "rope_scaling.rope_type is 'yarn', and npgpt knows default, linear, llama3"),
    "dynamic, old": (LLAMA, {"rope_scaling": {"type": "dynamic", "factor": 4.0}}, "'dynamic'"),
    "dynamic, new": (LLAMA, {"rope_parameters": {"rope_type": "dynamic", "factor": 4.0}}, "'dynamic'"),
    "by layers": (LLAMA, {"rope_parameters": {"rope_type": {"full_attention": 1}}},
                  "rope_parameters.rope_type is"),
    "partial": (LLAMA, {"partial_rotary_factor": 0.5}, "partial_rotary_factor is not 1"),
    "partial inside": (LLAMA, {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}},
                       "partial_rotary_factor is not 1"),
    "linear without factor": (LLAMA, {"rope_scaling": {"rope_type": "linear"}},
                              "it has no rope_scaling.factor"),
    "llama3 without factor": (LLAMA, {"rope_scaling": LLAMA3 | {"low_freq_factor": None}},
                              "it has no rope_scaling.low_freq_factor"),
    "factors crossed": (LLAMA, {"rope_scaling": LLAMA3 | {"low_freq_factor": 5.0}},
                        "rope_low_freq_factor must be"),
    "factor of 0": (LLAMA, {"rope_scaling": {"rope_type": "linear", "factor": 0}},
                    "rope_factor must be above 0"),
    "rope_scaling is text": (LLAMA, {"rope_scaling": "yarn"},
                             "rope_scaling is 'yarn', which is no JSON object"),
    "theta is text": (LLAMA, {"rope_theta": "1e6"}, "rope_theta is '1e6'"),
    "mlp_bias is text": (LLAMA, {"mlp_bias": "no"}, "mlp_bias is 'no', not true or false"),
    "tied is a number": (LLAMA, {"tie_word_embeddings": 1}, "tie_word_embeddings is 1, not true or false"),
    "own, no settings": (GPT2, {"model_type": "npgpt"}, "it has no npgpt_config.n_layer"),
    "own, unknown setting": (GPT2, {"model_type": "npgpt", "npgpt_config": {"n_layers": 2}}, "n_layers"),
    "own, text for a number": (GPT2, {"model_type": "npgpt", "npgpt_config": {"n_layer": "2"}},
                               "cannot be used"),
    "own, other layers": (GPT2, {"model_type": "npgpt", "npgpt_config": {"n_layer": 10_000}},
                          "there are tensors of"),
}


@pytest.mark.parametrize("name", WRONG)
def test_configurations_that_npgpt_does_not_have_are_refused_by_name(name, tmp_path):
    config, changes, words = WRONG[name]
    write_folder(tmp_path, config, gpt2_arrays() if config is GPT2 else llama_arrays(), **changes)
    refused(load(tmp_path), tmp_path, words, error=(ConfigError, CheckpointError))


@pytest.mark.parametrize("settings", [{"norm": "x" * 1000}, {"n_head": "x" * 1000}, {"x" * 1000: 1}])
def test_a_setting_of_a_thousand_letters_is_not_repeated_whole(settings, tmp_path):
    write_folder(tmp_path, model_type="npgpt", npgpt_config={
        "vocab_size": 11, "block_size": 6, "n_layer": 2, "n_head": 2, "n_embd": 4, **settings})
    said = refused(load(tmp_path), "x" * 50, error=ConfigError)
    assert "x" * 300 not in said


@pytest.mark.parametrize("changes", [
    {"vocab_size": 10**9}, {"n_embd": 10**9}, {"n_head": 10**9, "head_dim": 2}, {"head_dim": 10**9},
    {"n_inner": 10**9}, {"block_size": 10**9}], ids=str)
def test_a_model_in_npgpts_own_layout_is_not_made_larger_than_its_files(changes, tmp_path):
    random_model(npgpt.GPTConfig(11, 6, 2, 2, 4, norm="rmsnorm")).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["npgpt_config"] |= changes
    (tmp_path / "config.json").write_text(json.dumps(config))
    refused(load(tmp_path), f"its {next(iter(changes))} is 1,000,000,000, and all tensors together have",
            error=ConfigError)


@pytest.mark.parametrize("content, words", [
    (b"", "not valid JSON"), (b"[]", "not a JSON object"), (b"\xff{}", "not UTF-8"), (b"[" * 10**6,
                                                                                      "not valid JSON"),
    (b'{"n_embd": 1, "n_embd": 2}', "'n_embd' comes twice"),
    (b" " * 2**21, "longer than the 1,048,576 bytes"),
    (b'{"n_embd": ' + b"9" * 10_000 + b"}", "not valid JSON")])
def test_a_config_that_is_no_json_is_refused(content, words, tmp_path):
    write_folder(tmp_path)
    (tmp_path / "config.json").write_bytes(content)
    refused(load(tmp_path), tmp_path / "config.json", words)


TAKEN = [
    ({}, {"rope_theta": 10000.0, "attention_dropout": 0.0, "n_kv_head": 1, "block_size": 6}),
    ({"sliding_window": 6}, {}),
    ({"sliding_window": None}, {}),
    ({"layer_types": ["full_attention"] * 2}, {}),
    ({"tie_word_embeddings": ...}, {"tie_word_embeddings": False}),
    ({"partial_rotary_factor": 1.0, "rope_theta": 5.0}, {"rope_theta": 5.0}),
    ({"rope_parameters": {"rope_theta": 7.0, "rope_type": "default"}, "rope_theta": 5.0},
     {"rope_theta": 7.0}),
    ({"rope_scaling": {"type": "linear", "factor": 2}, "rope_parameters": {"rope_theta": 7.0}},
     {"rope_theta": 7.0, "rope_scaling": "linear"}),
    ({"rope_scaling": {"type": "linear", "factor": 2}}, {"rope_scaling": "linear", "rope_factor": 2.0}),
    ({"rope_scaling": LLAMA3, "original_max_position_embeddings": 5}, {"rope_original_block_size": 5}),
    ({"rope_scaling": LLAMA3 | {"original_max_position_embeddings": None}},
     {"rope_original_block_size": 6, "rope_high_freq_factor": 4.0, "rope_factor": 8.0}),
    ({"rms_norm_eps": ...}, {"norm_eps": 1e-6}),
    ({"attention_dropout": 0.25}, {"attention_dropout": 0.25}),
    ({"model_type": "mistral", "architectures": None, "sliding_window": None,
      "max_position_embeddings": 8192, "attention_bias": True, "mlp_bias": True},            # has neither
     {"qkv_bias": False, "attn_proj_bias": False, "bias": False, "block_size": 8192}),
    ({"model_type": "qwen2", "architectures": None, "sliding_window": 4, "use_sliding_window": False},
     {"qkv_bias": True, "attn_proj_bias": False, "bias": False}),
]


@pytest.mark.parametrize("changes, expected", TAKEN)
def test_settings_that_npgpt_has_too_are_taken(changes, expected, tmp_path):
    arrays = llama_arrays()
    if changes.get("model_type") == "qwen2":
        for name in [name for name in arrays if "q_proj" in name or "k_proj" in name or "v_proj" in name]:
            arrays[name.replace("weight", "bias")] = arrays[name][:, 0]
    config = npgpt.GPT.from_pretrained(write_folder(tmp_path, LLAMA, arrays, **changes)).config
    assert {name: getattr(config, name) for name in expected} == expected
