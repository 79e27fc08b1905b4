"""Model folders written by hand, and what every refusal must keep to: one sentence, 1 s, 50 MB."""

import json
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from npgpt import GPT
from npgpt.errors import CheckpointError

GPT2 = {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "vocab_size": 11, "n_positions": 6,
        "n_embd": 4, "n_layer": 2, "n_head": 2, "n_inner": 4, "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5, "resid_pdrop": 0.1, "embd_pdrop": 0.1, "attn_pdrop": 0.1}
LLAMA = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 11, "hidden_size": 4,
         "intermediate_size": 5, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
         "max_position_embeddings": 6, "rms_norm_eps": 1e-5, "hidden_act": "silu",
         "tie_word_embeddings": False}


def refused(action, *words, error=CheckpointError):
    """The action raises the error in one sentence with all the words, in under 1 s and 50 MB."""
    with pytest.raises(error):                              # once before, for what is imported on the way
        action()
    tracemalloc.start()
    start = time.process_time()
    try:
        with pytest.raises(error) as caught:
            action()
        seconds, (_, peak) = time.process_time() - start, tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    said = str(caught.value)
    assert "\n" not in said and len(said) < 600, said
    for word in words:
        assert str(word) in said, said
    assert seconds < 1 and peak < 50e6, (said, seconds, peak)
    return said


def safetensors(header, data=b"", length=None):
    """The bytes of a file; header: as JSON, or its bytes."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def write_tensors(path: Path, arrays):
    header, data = {}, b""
    for name, array in arrays.items():
        word = {"float32": "F32", "float64": "F64", "float16": "F16", "uint16": "BF16", "uint8": "U8",
                "int64": "I64"}[array.dtype.name]
        header[name] = {"dtype": word, "shape": list(array.shape),
                        "data_offsets": [len(data), len(data) + array.nbytes]}
        data += array.tobytes()
    path.write_bytes(safetensors(header, data))


def gpt2_arrays(config=GPT2, prefix="transformer."):
    """Names and shapes as GPT-2's are, written out here once more."""
    V, P, C, F = config["vocab_size"], config["n_positions"], config["n_embd"], config["n_inner"]
    shapes = {"wte.weight": (V, C), "wpe.weight": (P, C), "ln_f.weight": (C,), "ln_f.bias": (C,)}
    for n in range(config["n_layer"]):
        for name, shape in {"ln_1.weight": (C,), "ln_1.bias": (C,), "attn.c_attn.weight": (C, 3 * C),
                            "attn.c_attn.bias": (3 * C,), "attn.c_proj.weight": (C, C),
                            "attn.c_proj.bias": (C,), "ln_2.weight": (C,), "ln_2.bias": (C,),
                            "mlp.c_fc.weight": (C, F), "mlp.c_fc.bias": (F,),
                            "mlp.c_proj.weight": (F, C), "mlp.c_proj.bias": (C,)}.items():
            shapes[f"h.{n}.{name}"] = shape
    return filled({prefix + name: shape for name, shape in shapes.items()})


def llama_arrays(config=LLAMA, prefix="model."):
    V, C, F = config["vocab_size"], config["hidden_size"], config["intermediate_size"]
    H, G = config["num_attention_heads"], config["num_key_value_heads"]
    D = config.get("head_dim") or C // H
    shapes = {"embed_tokens.weight": (V, C), "norm.weight": (C,)}
    for n in range(config["num_hidden_layers"]):
        for name, shape in {"input_layernorm": (C,), "self_attn.q_proj": (H * D, C),
                            "self_attn.k_proj": (G * D, C), "self_attn.v_proj": (G * D, C),
                            "self_attn.o_proj": (C, H * D),
                            "post_attention_layernorm": (C,), "mlp.gate_proj": (F, C), "mlp.up_proj": (F, C),
                            "mlp.down_proj": (C, F)}.items():
            shapes[f"layers.{n}.{name}.weight"] = shape
    return filled({prefix + name: shape for name, shape in shapes.items()} | {"lm_head.weight": (V, C)})


def random_model(config, dtype="float32"):
    """A GPT of numbers of order 1, gains not 1 and biases not 0."""
    model  = GPT(config, dtype=dtype)
    random = np.random.default_rng(5)
    for parameter in model.parameters.values():
        parameter.data[...] = random.normal(size=parameter.shape) * 0.5 + (len(parameter.shape) == 1) * 0.7
    return model


def filled(shapes):
    random = np.random.default_rng(3)
    return {name: random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def write_folder(folder: Path, config=GPT2, arrays=None, **changes):
    """changes: of config.json; ... takes an entry out."""
    folder.mkdir(exist_ok=True, parents=True)
    config = {name: value for name, value in (config | changes).items() if value is not ...}
    (folder / "config.json").write_text(json.dumps(config))
    write_tensors(folder / "model.safetensors", gpt2_arrays() if arrays is None else arrays)
    return folder


FILES = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


def write_shards(folder: Path, arrays, files=FILES):
    """The tensors in turn in the files, with an index; returns that."""
    places = {name: files[i % len(files)] for i, name in enumerate(arrays)}
    for file in files:
        write_tensors(folder / file, {name: arrays[name] for name, place in places.items() if place == file})
    (folder / "model.safetensors").unlink(missing_ok=True)
    index = {"metadata": {"total_size": 1}, "weight_map": places}
    write_index(folder, index)
    return index


def write_index(folder, index):
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
