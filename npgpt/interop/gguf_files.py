"""GGUF: llama.cpp's file of a whole model: weights, mostly quantised, tokenizer and chat template in one.

The package gguf (extra `gguf`) reads the file and turns quantised weights into float32. Here the names of its
tensors and entries become those of Llama in Hugging Face's layout, for which families.py has the rest. But
llama.cpp turns neighbouring channels of queries and keys, and its files have their rows in that order.
"""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from npgpt.errors import CheckpointError, shortened, shown
from npgpt.interop.entries import Entries
from npgpt.interop.families import llama_places, llama_settings
from npgpt.interop.huggingface import made
from npgpt.interop.layouts import Assembled
from npgpt.interop.untrusted import refused

SUFFIX = ".gguf"
ENTRIES = {                 # of llama.cpp's Llama → of Hugging Face's
    "context_length": "max_position_embeddings", "block_count": "num_hidden_layers",
    "embedding_length": "hidden_size", "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads", "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim", "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "rope.freq_base": "rope_theta",
}
TENSORS = {                 # Hugging Face's → llama.cpp's
    "embed_tokens.weight": "token_embd.weight", "norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
LAYER_TENSORS = {
    "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}
PATTERNS = {                # tokenizer.ggml.pre → how npgpt calls that way to split text
    "gpt-2": "gpt2", "smollm": "smollm", "llama-bpe": "llama3", "qwen2": "qwen2", "gpt-4o": "o200k",
}
TURNS   = ("eot_token_id", "eom_token_id")
BEGIN   = "llama-bpe"       # of these alone begins every text with bos_token where the file does not say
ENDS    = ("<|eot_id|>", "<|im_end|>", "<|end|>", "<|endoftext|>", "<|end_of_text|>", "<|eom_id|>")
SPECIAL, ADDED = 3, 4       # tokenizer.ggml.token_type: control and user-defined
TEXTS = ("tokenizer.ggml.model", "tokenizer.ggml.pre", "tokenizer.chat_template")
LISTS = {"tokenizer.ggml.tokens": str, "tokenizer.ggml.merges": str, "tokenizer.ggml.token_type": int}

C = TypeVar("C")


class GGUFTokenizer(NamedTuple):
    """tokens: token → id, in GPT-2's symbols for bytes, all but the special and added ones.
    merges: (left, right).  further_ends: what else ends a text: the entries for the end of a turn and of a
    message, and tokens whose text says so (ENDS), for llama.cpp ends there too, and many files say but one.
    """

    tokens: dict[str, int]
    special: dict[str, int]
    added: dict[str, int]
    merges: list[tuple[str, str]]
    pattern: str
    eos_token_id: int | None
    further_ends: tuple[int, ...]
    bos_token_id: int | None
    prefix_token: str | None
    chat_template: str | None


class _Tensor:
    """A tensor of the file, made float32 when its numbers are asked for."""

    dtype = "F32"

    def __init__(self, path: Path, name: str, tensor: Any):
        self.path, self.name, self._tensor = path, name, tensor
        self.shape = tuple(int(size) for size in reversed(tensor.shape))

    def values(self) -> np.ndarray:
        import gguf
        try:
            return gguf.dequantize(self._tensor.data, self._tensor.tensor_type).reshape(self.shape)
        except (NotImplementedError, ValueError) as error:
            raise refused(self.path, f"{self.name} cannot be read: {error}") from error


def is_gguf(path: Path) -> bool:
    return path.suffix == SUFFIX and path.is_file()


def read_gguf(path: Path, make_config: Callable[..., C]) -> tuple[C, dict[str, Assembled], GGUFTokenizer]:
    """The configuration, the tensors by npgpt's names, still in the file, and what makes up its tokenizer.

    make_config: takes GPTConfig's arguments.  Raises CheckpointError, ConfigError, naming the file.
    """
    entries, found = _open(path)
    settings = _settings(path, entries, {tensor.name for tensor in found})
    config   = made(path, make_config, settings)
    left     = {tensor.name: _Tensor(path, tensor.name, tensor) for tensor in found}
    tensors, arranged = {}, {}
    for place in llama_places(settings):
        for piece in place.pieces:
            name   = _translated(piece.name)
            tensor = left.pop(name, None)
            if tensor is None or tensor.shape != piece.shape:
                raise refused(path, f"{name} is missing" if tensor is None else
                              f"{name} has shape {tensor.shape}, not {piece.shape} as its entries say")
            tensors[piece.name] = tensor
        arranged[place.name] = Assembled(place, tensors)
    for name in sorted(left):
        raise refused(path, f"it has a tensor {shown(name)}, for which Llama has no place")
    return config, arranged, _tokenizer(path, entries)


def _open(path: Path) -> tuple[dict[str, Any], list[Any]]:
    """Its entries, by their names, and its tensors."""
    try:
        import gguf
    except ImportError as error:
        raise CheckpointError(f"{path} is a GGUF file, and reading it needs the package gguf: "
                              "pip install 'npgpt[gguf]'") from error
    try:
        reader  = gguf.GGUFReader(path)
        entries = {name: field.contents() for name, field in reader.fields.items()}
    except OSError as error:
        raise refused(path, error.strerror or str(error)) from error
    except (ValueError, LookupError, OverflowError, MemoryError) as error:
        raise refused(path, f"it is no sound GGUF file: {shortened(str(error), 200)}") from error
    for name in TEXTS:
        if not isinstance(entries.get(name, ""), str):
            raise refused(path, f"its {name} is {shown(entries[name])}, which is no text")
    for name, kind in LISTS.items():
        value = entries.get(name, [])
        if not isinstance(value, list) or not all(type(item) is kind for item in value):
            raise refused(path, f"its {name} is {shown(value)}, which is no list of "
                                f"{'texts' if kind is str else 'whole numbers'}")
    return entries, reader.tensors


def _settings(path: Path, entries: dict[str, Any], tensors: Iterable[str]) -> dict[str, Any]:
    if entries.get("general.architecture") != "llama":
        raise refused(path, f"its architecture is {shown(entries.get('general.architecture'))}, and of GGUF "
                            "files npgpt reads llama")
    for name in ("llama.expert_count", "llama.attention.sliding_window"):
        if entries.get(name):
            raise refused(path, f"it asks for {name}, which npgpt has not")
    if _scales_rates(entries) or "rope_freqs.weight" in tensors:
        raise refused(path, "it scales its rotary rates, which npgpt does not read from GGUF files")
    theirs = {name: _rounded(entries[f"llama.{entry}"]) for entry, name in ENTRIES.items()
              if f"llama.{entry}" in entries}
    if "rms_norm_eps" not in theirs:                        # which llama.cpp demands, too
        raise refused(path, "it has no llama.attention.layer_norm_rms_epsilon")
    theirs |= {"vocab_size": len(entries.get("tokenizer.ggml.tokens", [])),
               "tie_word_embeddings": "output.weight" not in tensors}
    names  = {name: f"llama.{entry}" for entry, name in ENTRIES.items()}
    names["vocab_size"] = "number of tokenizer.ggml.tokens"
    settings = llama_settings(Entries(path, theirs, names=names)) | {"rope_interleaved": True}
    turned = entries.get("llama.rope.dimension_count", 0)
    if turned and turned != (settings["head_dim"] or settings["n_embd"] // settings["n_head"]):
        raise refused(path, f"it turns {shown(turned)} channels of each head, and npgpt turns whole "
                            "heads only")
    return settings


def _scales_rates(entries: dict[str, Any]) -> bool:
    """As llama.cpp takes it: a factor counts where no type is said, and an old name of it too."""
    kind   = entries.get("llama.rope.scaling.type")
    factor = entries.get("llama.rope.scaling.factor", entries.get("llama.rope.scale_linear", 1))
    return kind != "none" and (kind is not None or factor not in (0, 1))


def _rounded(value: Any) -> Any:
    """The shortest number that is this one in float32, as the file has it: 1e-05, not 9.999999747e-06."""
    return float(str(np.float32(value))) if isinstance(value, float) else value


def _translated(name: str) -> str:
    """What the file calls a tensor of Hugging Face's layout."""
    if name in TENSORS:
        return TENSORS[name]
    _, number, rest = name.split(".", 2)
    part, _, end = rest.rpartition(".")
    return f"blk.{number}.{LAYER_TENSORS[part]}.{end}"


def _tokenizer(path: Path, entries: dict[str, Any]) -> GGUFTokenizer:
    def entry(name: str, default: Any = None) -> Any:
        return entries.get(f"tokenizer.ggml.{name}", default)

    if entry("model") != "gpt2" or entry("pre") not in PATTERNS:
        raise refused(path, f"its tokenizer is {shown(entry('model'))}, {shown(entry('pre'))}, and npgpt "
                            f"reads gpt2 with {', '.join(PATTERNS)}")
    for name in ("eos_token_id", "bos_token_id", *TURNS):
        if entry(name) is not None and entry(name) not in range(len(entry("tokens"))):
            raise refused(path, f"its tokenizer.ggml.{name} is {shown(entry(name))}, which is none of its "
                                "tokens")
    kinds   = entry("token_type", [])
    tokens: dict[str, int] = {}
    for id, token in enumerate(entry("tokens")):
        if tokens.setdefault(token, id) != id:              # which llama.cpp refuses, too
            raise refused(path, f"the token {shown(token)} has two ids, {tokens[token]} and {id}")
    special, added = ({token: id for token, id in tokens.items() if id < len(kinds) and kinds[id] == kind}
                      for kind in (SPECIAL, ADDED))
    merges  = [(left, right) for left, _, right in (merge.partition(" ") for merge in entry("merges", []))]
    begin   = entry("bos_token_id") if entry("add_bos_token", entry("pre") == BEGIN) else None
    prefix  = next((token for token, id in (special | added).items() if id == begin), None)
    if begin is not None and prefix is None:
        raise refused(path, f"it begins every text with token {begin}, which its tokenizer.ggml.token_type "
                            "has among its ordinary ones")
    plain   = {token: id for token, id in tokens.items() if token not in special and token not in added}
    ends    = [*(entry(name) for name in TURNS), *((special | added).get(token) for token in ENDS)]
    return GGUFTokenizer(plain, special, added, merges, PATTERNS[entry("pre")], entry("eos_token_id"),
                         tuple(id for id in ends if id is not None), entry("bos_token_id"), prefix,
                         entries.get("tokenizer.chat_template"))
