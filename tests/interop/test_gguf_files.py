"""GGUF files become folders in Hugging Face's layout, and compute there what they are said to."""

import json

import numpy as np
import pytest

from npgpt import GPT, load_tokenizer
from npgpt.cli.main import main
from npgpt.errors import CheckpointError, DeviceError
from npgpt.interop.gguf_files import read_gguf
from npgpt.models import GPTConfig
from npgpt.tokenizers.byte_alphabet import BYTE_ORDER, to_symbols
from npgpt.training.loading import load_model

gguf = pytest.importorskip("gguf")

C, H, G, D, F, L = 32, 4, 2, 8, 64, 2
MISSING = 0x04                  # a byte that no token stands for, as in SmolLM2's vocabulary
SYMBOLS = [to_symbols(bytes([byte])) for byte in BYTE_ORDER if byte != MISSING]
TOKENS  = ["<|endoftext|>", "<|im_end|>", *SYMBOLS, "he", "hel", "lo", "hello", "Ġhello"]
TYPES   = [3, 3, *[1] * (len(TOKENS) - 2)]          # 3 is control, 4 would be user-defined
MERGES  = ["h e", "he l", "l o", "hel lo", "Ġ hello"]
TEMPLATE = "{{ messages[0].content }}<|im_end|>"


def weights(tied, D=D):
    """By llama.cpp's names, (out, in) as files have them."""
    rng, V = np.random.default_rng(0), len(TOKENS)
    shapes = {"token_embd": (V, C), "output_norm": (C,)} | ({} if tied else {"output": (V, C)})
    for n in range(L):
        shapes |= {f"blk.{n}.{name}": shape for name, shape in {
            "attn_norm": (C,), "attn_q": (H * D, C), "attn_k": (G * D, C), "attn_v": (G * D, C),
            "attn_output": (C, H * D), "ffn_norm": (C,), "ffn_gate": (F, C), "ffn_up": (F, C),
            "ffn_down": (C, F)}.items()}
    return {f"{name}.weight": (rng.standard_normal(shape) * (0.3 if len(shape) > 1 else 0.2)
                               + (len(shape) == 1)).astype("f4") for name, shape in shapes.items()}


def write(path, arrays, kind="F32", architecture="llama", **changes):
    """changes: of entries, whose names lack "llama."; None takes one out. Matrices are stored as `kind`."""
    writer  = gguf.GGUFWriter(path, architecture)
    entries = {"context_length": 16, "block_count": L, "embedding_length": C, "feed_forward_length": F,
               "attention.head_count": H, "attention.head_count_kv": G, "rope.dimension_count": D,
               "rope.freq_base": 500.0, "attention.layer_norm_rms_epsilon": 1e-5,
               "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "smollm",
               "tokenizer.ggml.tokens": TOKENS, "tokenizer.ggml.token_type": TYPES,
               "tokenizer.ggml.merges": MERGES, "tokenizer.ggml.eos_token_id": 1,
               "tokenizer.ggml.bos_token_id": 0, "tokenizer.chat_template": TEMPLATE} | changes
    for name, value in entries.items():
        if value is not None:
            add = {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string,
                   bool: writer.add_bool, list: writer.add_array}[type(value)]
            add(f"llama.{name}" if not name.startswith("tokenizer") else name, value)
    for name, array in arrays.items():
        stored = gguf.GGMLQuantizationType[kind if array.ndim == 2 else "F32"]
        writer.add_tensor(name, gguf.quantize(array, stored), raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def turned_back(rows, heads):
    """llama.cpp's order of a head's rows, 0, D/2, 1, D/2 + 1, …, to Hugging Face's."""
    return np.concatenate([np.concatenate([head[::2], head[1::2]]) for head in np.split(rows, heads)])


@pytest.mark.parametrize(("tied", "changes"), [
    (True, {}), (False, {"rope.dimension_count": None}),
    (True, {"attention.key_length": 6, "rope.dimension_count": 6}),
    (True, {"attention.key_length": 6, "rope.dimension_count": None})])
def test_the_exported_model_computes_what_llama_computes(tmp_path, tied, changes):
    """Also one whose heads are of another size than C / H, or that does not say how much of them turns."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    size   = changes.get("attention.key_length", D)
    arrays = weights(tied, size)
    write(tmp_path / "model.gguf", arrays, **changes)
    assert main(["export", str(tmp_path / "model.gguf"), "--out-dir", str(tmp_path / "out")]) == 0
    config = transformers.LlamaConfig(
        vocab_size=len(TOKENS), hidden_size=C, intermediate_size=F, num_hidden_layers=L,
        num_attention_heads=H, num_key_value_heads=G, head_dim=size, max_position_embeddings=16,
        rms_norm_eps=1e-5, rope_theta=500.0, tie_word_embeddings=tied)
    llama = transformers.LlamaForCausalLM(config)
    names = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
    parts = {"attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
             "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj", "ffn_norm":
             "post_attention_layernorm", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
             "ffn_down": "mlp.down_proj"}
    state = {}
    for name, array in arrays.items():
        if name.startswith("blk"):
            _, number, part, _ = name.split(".")
            heads = {"attn_q": H, "attn_k": G}.get(part)
            array = turned_back(array, heads) if heads else array
            state[f"model.layers.{number}.{parts[part]}.weight"] = array
        else:
            state[names[name.removesuffix(".weight")] + ".weight"] = array
    if tied:
        state["lm_head.weight"] = arrays["token_embd.weight"]
    llama.load_state_dict({name: torch.from_numpy(array.copy()) for name, array in state.items()})
    tokens = np.random.default_rng(1).integers(0, len(TOKENS), (2, 12))
    with torch.no_grad():
        expected = llama(torch.from_numpy(tokens)).logits.numpy()
    exported = GPT.from_pretrained(tmp_path / "out")
    direct   = load_model(tmp_path / "model.gguf", "best", "cpu", print).model
    with pytest.raises(CheckpointError, match=r"model.gguf has no checkpoint '7': it is a model by itself"):
        load_model(tmp_path / "model.gguf", "7", "cpu", print)
    assert np.abs(direct.forward(tokens)[0] - expected).max() <= 1e-4 and direct.config.rope_interleaved
    assert np.abs(exported.forward(tokens)[0] - expected).max() <= 1e-4
    assert exported.config.norm_eps == 1e-5 and exported.config.tie_word_embeddings == tied
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    with torch.no_grad():
        assert np.abs(again(torch.from_numpy(tokens)).logits.numpy() - expected).max() <= 1e-4


def test_quantised_weights_are_those_that_gguf_makes_of_them(tmp_path):
    arrays = weights(tied=True)
    write(tmp_path / "model.gguf", arrays, kind="Q8_0")
    config, tensors, _ = read_gguf(tmp_path / "model.gguf", GPTConfig)
    stored = gguf.dequantize(gguf.quantize(arrays["blk.1.ffn_down.weight"], gguf.GGMLQuantizationType.Q8_0),
                             gguf.GGMLQuantizationType.Q8_0)
    loaded = tensors["h.1.mlp.c_proj.weight"].astype("float32")
    assert np.array_equal(loaded, stored.T) and not np.array_equal(loaded, arrays["blk.1.ffn_down.weight"].T)
    assert config.rope_interleaved and config.rope_theta == 500.0 and config.n_kv_head == G


def test_the_tokenizer_and_the_chat_template_come_along(tmp_path):
    write(tmp_path / "model.gguf", weights(tied=True))
    assert main(["export", str(tmp_path / "model.gguf"), "--out-dir", str(tmp_path / "out")]) == 0
    tokenizer = load_tokenizer(tmp_path / "out")
    assert tokenizer.pattern == "smollm" and tokenizer.special_tokens == {"<|endoftext|>": 0, "<|im_end|>": 1}
    ids = tokenizer.encode("hello hello<|im_end|>", allowed_special="all")
    assert [TOKENS[id] for id in ids] == ["hello", "Ġhello", "<|im_end|>"]
    assert tokenizer.decode(tokenizer.encode_ordinary("a\x04b")) == "ab"      # no token stands for that byte
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == TEMPLATE
    assert json.loads((tmp_path / "out" / "generation_config.json").read_text())["eos_token_id"] == [1, 0]
    for path in ("model.gguf", "out"):
        loaded = load_model(tmp_path / path, "best", "cpu", print)
        assert loaded.eos_token_ids == (1, 0) and loaded.chat_template == TEMPLATE
        assert loaded.named_tokens == {"bos_token": "<|endoftext|>", "eos_token": "<|im_end|>"}
        assert loaded.tokenizer.encode("hello<|im_end|>", allowed_special="all") == [TOKENS.index("hello"), 1]
        with pytest.raises(DeviceError, match="unknown device 'gpu'"):
            load_model(tmp_path / path, "best", "gpu", print)
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    for text in ("hello hello\x04hello", "a\x04b ünïcode 123", "héllo\n"):
        assert theirs.encode(text, add_special_tokens=False) == tokenizer.encode_ordinary(text), text


def test_a_file_that_does_not_say_what_ends_a_text_has_the_tokenizers_end(tmp_path):
    entries = {"tokenizer.ggml.eos_token_id": None, "tokenizer.ggml.bos_token_id": None}
    write(tmp_path / "model.gguf", weights(tied=True), **entries)
    loaded = load_model(tmp_path / "model.gguf", "best", "cpu", print)
    assert loaded.eos_token_ids == (0, 1) and loaded.named_tokens == {"eos_token": "<|endoftext|>"}


@pytest.mark.parametrize(("texts", "entries", "ends"), [
    (["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>", "<|eom_id|>"], {"eos": 1}, (1, 2, 3)),
    (["<|end|>", "<|im_end|>", "<|endoftext|>", "<|x|>", "<|y|>"], {"eos": 2}, (2, 1, 0)),
    (["<|x|>", "<|y|>", "<|z|>", "<|u|>"], {"eos": 1, "eot": 2, "eom": 3}, (1, 2, 3)),
    (["<|x|>", "<|y|>", "<|z|>", "<|u|>"], {"eos": 1, "eot": 1}, (1,)),
    (["<|x|>", "<|end_of_text|>"], {"eos": 0}, (0, 1))])
def test_a_text_ends_where_llama_cpp_ends_it(texts, entries, ends, tmp_path):
    """At what the file calls the end of a text, of a turn or of a message, and at tokens that are called so:
    of Llama 3 many files say one alone, and not the one that ends an answer."""
    count   = len(texts)
    changes = {"tokenizer.ggml.tokens": [*texts, *TOKENS[count:]], "tokenizer.ggml.bos_token_id": None,
               "tokenizer.ggml.token_type": [*[3] * (count - 1), 4, *[1] * (len(TOKENS) - count)]}
    changes |= {f"tokenizer.ggml.{name}_token_id": id for name, id in entries.items()}
    write(tmp_path / "model.gguf", weights(tied=True), **changes)
    loaded = load_model(tmp_path / "model.gguf", "best", "cpu", print)
    assert loaded.eos_token_ids == ends and loaded.named_tokens == {"eos_token": texts[entries["eos"]]}
    assert main(["export", str(tmp_path / "model.gguf"), "--out-dir", str(tmp_path / "out")]) == 0
    assert load_model(tmp_path / "out", "best", "cpu", print).eos_token_ids == ends


@pytest.mark.parametrize("pre, add, prefix", [
    ("smollm", None, ()), ("smollm", True, (0,)), ("llama-bpe", None, (0,)), ("llama-bpe", False, ())])
def test_a_text_begins_as_llama_cpp_begins_it(pre, add, prefix, tmp_path):
    """Where the file does not say, llama.cpp has Llama 3's texts begin with a token, and no others."""
    entries = {"tokenizer.ggml.pre": pre, "tokenizer.ggml.add_bos_token": add}
    write(tmp_path / "model.gguf", weights(tied=True), **entries)
    assert main(["export", str(tmp_path / "model.gguf"), "--out-dir", str(tmp_path / "out")]) == 0
    for name in ("model.gguf", "out"):
        assert load_model(tmp_path / name, "best", "cpu", print).tokenizer.prefix == prefix


def test_a_token_that_is_user_defined_is_found_in_every_text(tmp_path):
    """As by llama.cpp; one of control is found where special tokens are allowed."""
    types = [3, 4, *[1] * (len(TOKENS) - 2)]
    write(tmp_path / "model.gguf", weights(tied=True), **{"tokenizer.ggml.token_type": types})
    assert main(["export", str(tmp_path / "model.gguf"), "--out-dir", str(tmp_path / "out")]) == 0
    for name in ("model.gguf", "out"):
        tokenizer = load_model(tmp_path / name, "best", "cpu", print).tokenizer
        assert (tokenizer.special_tokens, tokenizer.added_tokens) == ({"<|endoftext|>": 0}, {"<|im_end|>": 1})
        assert tokenizer.encode_ordinary("hello<|im_end|>") == [TOKENS.index("hello"), 1]


def test_tokens_whose_type_the_file_does_not_say_are_ordinary(tmp_path):
    path = write(tmp_path / "model.gguf", weights(tied=True), **{"tokenizer.ggml.token_type": [3]})
    _, _, tokenizer = read_gguf(path, GPTConfig)
    assert tokenizer.special == {"<|endoftext|>": 0} and tokenizer.added == {}
    assert tokenizer.tokens == {token: id for id, token in enumerate(TOKENS) if id}


@pytest.mark.parametrize("entries", [
    {"rope.scaling.type": "none", "rope.scaling.factor": 4.0}, {"rope.scaling.factor": 1.0},
    {"rope.scaling.factor": 0.0, "rope.scale_linear": 4.0}])
def test_a_factor_of_rotary_rates_that_llama_cpp_does_not_heed_is_none(tmp_path, entries):
    config, _, _ = read_gguf(write(tmp_path / "model.gguf", weights(tied=True), **entries), GPTConfig)
    assert config.rope_scaling == "none"


def without(name):
    return {key: array for key, array in weights(tied=True).items() if key != name}


@pytest.mark.parametrize(("arrays", "changes", "words"), [
    (weights(True), {"architecture": "gemma"}, "its architecture is 'gemma'"),
    (without("blk.1.ffn_up.weight"), {}, " blk.1.ffn_up.weight is missing"),
    (weights(True) | {"blk.0.attn_q.bias": np.ones(C, "f4")}, {}, "a tensor 'blk.0.attn_q.bias'"),
    (weights(True) | {"blk.0.attn_post_norm.weight": np.ones(C, "f4")}, {},
     "a tensor 'blk.0.attn_post_norm.weight'"),
    (weights(True) | {"v.0.attn_q.weight": np.ones((H * D, C), "f4")}, {}, "a tensor 'v.0.attn_q.weight'"),
    (weights(True) | {"blk.0.attn_v.weight": np.ones((C, C), "f4")}, {},
     "blk.0.attn_v.weight has shape (32, 32)"),
    (weights(True) | {"rope_freqs.weight": np.ones(D // 2, "f4")}, {}, "scales its rotary rates"),
    (weights(True), {"rope.scaling.type": "yarn"}, "scales its rotary rates"),
    (weights(True), {"rope.scaling.factor": 4.0}, "scales its rotary rates"),
    (weights(True), {"rope.scale_linear": 4.0}, "scales its rotary rates"),
    (weights(True), {"rope.dimension_count": 4}, "turns 4 channels of each head"),
    (weights(True), {"rope.dimension_count": "x" * 1000}, "turns 'xxxx"),
    (weights(True, 6), {"attention.key_length": 6}, "turns 8 channels of each head"),
    (weights(True), {"attention.head_count_kv": 3}, "n_head must be a multiple of n_kv_head"),
    (weights(True), {"expert_count": 8}, "llama.expert_count"),
    (weights(True), {"attention.sliding_window": 8}, "llama.attention.sliding_window"),
    (weights(True), {"block_count": None}, "it has no llama.block_count\n"),
    (weights(True), {"attention.layer_norm_rms_epsilon": None}, "has no llama.attention.layer_norm_rms_eps"),
    (weights(True), {"tokenizer.ggml.pre": "llama-bpe", "tokenizer.ggml.bos_token_id": 3},
     "begins every text with token 3, which"),
    (weights(True), {"rope.freq_base": -1.0}, "its llama.rope.freq_base is -1.0, which is no number"),
    (weights(True), {"tokenizer.ggml.tokens": None}, "its number of tokenizer.ggml.tokens is 0"),
    (weights(True), {"tokenizer.ggml.model": "llama"}, "its tokenizer is 'llama', 'smollm'"),
    (weights(True), {"tokenizer.ggml.pre": "falcon"}, "its tokenizer is 'gpt2', 'falcon'"),
    (weights(True), {"tokenizer.ggml.pre": ["smollm"]}, "tokenizer.ggml.pre is ['smollm'], which is no text"),
    (weights(True), {"tokenizer.chat_template": 7}, "tokenizer.chat_template is 7, which is no text"),
    (weights(True), {"tokenizer.ggml.tokens": 7}, "ggml.tokens is 7, which is no list of texts"),
    (weights(True), {"tokenizer.ggml.tokens": [*TOKENS[:-1], "he"]}, "the token 'he' has two ids, "),
    (weights(True), {"tokenizer.ggml.merges": [7]}, "ggml.merges is [7], which is no list of texts"),
    (weights(True), {"tokenizer.ggml.token_type": 3}, "token_type is 3, which is no list of whole numbers"),
    (weights(True), {"tokenizer.ggml.eos_token_id": len(TOKENS)}, "none of its tokens"),
    (weights(True), {"tokenizer.ggml.eot_token_id": "<x>"}, "tokenizer.ggml.eot_token_id is '<x>', which"),
    (weights(True), {"tokenizer.ggml.bos_token_id": [0]}, "its tokenizer.ggml.bos_token_id is [0], which"),
])
def test_what_npgpt_has_not_is_refused_by_name(tmp_path, capsys, arrays, changes, words):
    path = write(tmp_path / "model.gguf", arrays, **changes)
    assert main(["export", str(path), "--out-dir", str(tmp_path / "out")]) == 1
    said = capsys.readouterr().err
    assert words in said and f"{path} cannot be used: " in said and said.count("\n") == 1 and len(said) < 600
    assert not (tmp_path / "out").exists()


def test_a_text_that_is_no_utf8_is_refused(tmp_path, capsys):
    path = write(tmp_path / "model.gguf", weights(True))
    path.write_bytes(path.read_bytes().replace("Ġhello".encode(), b"\xc4Ahello"))
    assert main(["export", str(path), "--out-dir", str(tmp_path / "out")]) == 1
    assert f"{path} cannot be used: it is no sound GGUF file" in capsys.readouterr().err


@pytest.mark.parametrize("data", [b"", b"GGUF", b"not a model at all, but long enough for a header" * 9,
                                  b"GGUF\x03\0\0\0" + b"\xff" * 64, b"GGUF\x03\0\0\0" + b"\x01" + b"\0" * 60])
def test_what_is_no_gguf_file_is_refused(tmp_path, capsys, data):
    path = tmp_path / "model.gguf"
    path.write_bytes(data)
    assert main(["export", str(path), "--out-dir", str(tmp_path / "out")]) == 1
    said = capsys.readouterr().err
    assert "model.gguf cannot be used" in said and said.count("\n") == 1
