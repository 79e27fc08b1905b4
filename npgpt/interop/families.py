"""The families of models that npgpt shares with transformers: what their config.json says, in GPTConfig's
words and back, and where their tensors go. What a family has and npgpt has not is refused by name.

gpt2                            GPT-2 (Radford et al. 2019); weights are (in, out), as npgpt's
llama mistral qwen2 qwen3       Llama (Touvron et al. 2023) and its like: weights are (out, in), queries, keys
                                and values apart, gate and up apart; they differ in biases and norms
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from npgpt.interop.entries import Entries
from npgpt.interop.layouts import Piece, Place

Settings = Mapping[str, Any]

GPT2_ACTIVATIONS = {"gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu_erf",
                    "relu": "relu"}


class Family(NamedTuple):
    """settings: config.json → GPTConfig's arguments.  places: all parameters, of such arguments.
    ignored: the ends of names of tensors that hold no parameter.
    """

    architectures: tuple[str, ...]
    classifier: str                             # the architecture with a head `score` on the last token
    prefix: str                                 # of all names but the head's; base models leave it away
    settings: Callable[[Entries], dict[str, Any]]
    places: Callable[[Settings], Iterator[Place]]
    ignored: tuple[str, ...]


class Sizes(NamedTuple):
    """C channels, H heads, G key/value heads, D size of a head, F width of the feed-forward, V vocabulary"""

    C: int
    H: int
    G: int
    D: int
    F: int
    V: int


def sizes(settings: Settings) -> Sizes:
    C, H = settings["n_embd"], settings["n_head"]
    return Sizes(C, H, settings["n_kv_head"] or H, settings["head_dim"] or C // H,
                 settings["n_inner"] or 4 * C, settings["vocab_size"])


def biases(settings: Settings) -> tuple[bool, bool, bool]:
    """of all linear maps but attention's, of its query/key/value map, of its output map"""
    bias, qkv, proj = settings["bias"], settings["qkv_bias"], settings["attn_proj_bias"]
    return bias, bias if qkv is None else qkv, bias if proj is None else proj


# GPT-2

def gpt2_settings(e: Entries) -> dict[str, Any]:
    for name, value in (("scale_attn_weights", True), ("scale_attn_by_inverse_layer_idx", False),
                        ("reorder_and_upcast_attn", False), ("add_cross_attention", False)):
        e.only(name, value)
    dropout = e.number("resid_pdrop", 0.1)
    if dropout != e.number("embd_pdrop", 0.1):
        raise e.refused("its resid_pdrop and embd_pdrop differ, and npgpt has one dropout for both: "
                        "make them equal")
    return {
        "vocab_size": e.whole("vocab_size"), "n_embd": e.whole("n_embd"),
        "block_size": e.whole("n_ctx" if e.get("n_positions") is None and e.get("n_ctx") else "n_positions"),
        "n_layer": e.whole("n_layer"), "n_head": e.whole("n_head"), "n_inner": e.whole("n_inner", None),
        "dropout": dropout,
        "attention_dropout": e.number("attn_pdrop", 0.1), "norm_eps": e.number("layer_norm_epsilon", 1e-5),
        "activation": e.one_of("activation_function", GPT2_ACTIVATIONS, "gelu_new"),
        "tie_word_embeddings": e.flag("tie_word_embeddings", True),
        "n_kv_head": None, "head_dim": None, "bias": True, "qkv_bias": None, "attn_proj_bias": None,
        "norm": "layernorm", "block": "pre", "position": "learned", "logit_softcap": 0.0, "qk_norm": False,
    }


def gpt2_config(settings: Settings) -> dict[str, Any]:
    s, (C, H, _, _, _, V) = settings, sizes(settings)
    activation = next(theirs for theirs, ours in GPT2_ACTIVATIONS.items() if ours == s["activation"])
    return {
        "vocab_size": V, "n_positions": s["block_size"], "n_embd": C, "n_layer": s["n_layer"], "n_head": H,
        "n_inner": s["n_inner"], "activation_function": activation,
        "resid_pdrop": s["dropout"], "embd_pdrop": s["dropout"], "attn_pdrop": s["attention_dropout"],
        "layer_norm_epsilon": s["norm_eps"], "tie_word_embeddings": s["tie_word_embeddings"],
    }


def gpt2_places(settings: Settings) -> Iterator[Place]:
    C, _, _, _, F, V = sizes(settings)

    def same(name, *shape):
        return Place(name, (Piece(name, shape),))

    yield same("wte.weight", V, C)
    yield same("wpe.weight", settings["block_size"], C)
    for n in range(settings["n_layer"]):
        for name, shape in (("ln_1", (C,)), ("attn.c_attn", (C, 3 * C)), ("attn.c_proj", (C, C)),
                            ("ln_2", (C,)), ("mlp.c_fc", (C, F)), ("mlp.c_proj", (F, C))):
            yield same(f"h.{n}.{name}.weight", *shape)
            yield same(f"h.{n}.{name}.bias", shape[-1])
    yield same("ln_f.weight", C)
    yield same("ln_f.bias", C)
    if not settings["tie_word_embeddings"]:
        yield same("lm_head.weight", V, C)


def gpt2_misfit(settings: Settings, exact: bool) -> str | None:
    """The first option that GPT-2 has no place for, or None. exact: missing biases may not become zeros."""
    C, H, G, D, _, _ = sizes(settings)
    fits = {"norm": settings["norm"] == "layernorm", "block": settings["block"] == "pre",
            "position": settings["position"] == "learned", "n_kv_head": H == G, "head_dim": H * D == C,
            "activation": settings["activation"] in GPT2_ACTIVATIONS.values(),
            "logit_softcap": not settings["logit_softcap"], "qk_norm": not settings["qk_norm"],
            "bias": not exact or all(biases(settings))}
    return next((name for name, fit in fits.items() if not fit), None)


# Llama and its like

def llama_settings(e: Entries, model_type: str = "llama") -> dict[str, Any]:
    for name in ("num_local_experts", "num_experts", "n_routed_experts"):
        e.only(name, None)
    e.only("hidden_act", "silu")
    H, block_size = e.whole("num_attention_heads"), e.whole("max_position_embeddings")
    if model_type != "llama" and "num_key_value_heads" not in e.entries:
        raise e.refused("it has no num_key_value_heads")
    _refuse_windows(e, model_type, block_size)
    has_bias = e.flag("attention_bias", False) if model_type in ("llama", "qwen3") else model_type == "qwen2"
    return {
        "vocab_size": e.whole("vocab_size"), "block_size": block_size,
        "n_layer": e.whole("num_hidden_layers"), "n_head": H, "n_kv_head": e.whole("num_key_value_heads", H),
        "n_embd": e.whole("hidden_size"), "n_inner": e.whole("intermediate_size"),
        "head_dim": e.whole("head_dim", 128 if model_type == "qwen3" else None),
        "dropout": 0.0, "attention_dropout": e.number("attention_dropout", 0.0),
        "bias": model_type == "llama" and e.flag("mlp_bias", False), "qkv_bias": has_bias,
        "attn_proj_bias": has_bias and model_type != "qwen2",
        "norm": "rmsnorm", "norm_eps": e.number("rms_norm_eps", 1e-6), "qk_norm": model_type == "qwen3",
        "block": "pre", "activation": "swiglu", "logit_softcap": 0.0,
        "tie_word_embeddings": e.flag("tie_word_embeddings", False),
        "position": "rotary", "rope_interleaved": False, **_rotary_settings(e, block_size),
    }


def _refuse_windows(e: Entries, model_type: str, block_size: int) -> None:
    """A window as long as the context hides nothing. Qwen's counts only where use_sliding_window says so."""
    default = None if model_type == "llama" or "sliding_window" in e.entries else 4096
    if not model_type.startswith("qwen") or e.flag("use_sliding_window", False):
        window = e.whole("sliding_window", default)
        if window is not None and window < block_size:
            raise e.refused(f"its sliding_window of {window:,} tokens is less than its context of "
                            f"{block_size:,}, and npgpt's attention has no window")
    kinds = e.get("layer_types")
    if kinds is not None and (not isinstance(kinds, list) or any(kind != "full_attention" for kind in kinds)):
        raise e.refused("its layer_types are not all full_attention, and npgpt knows no other")


def _rotary_settings(e: Entries, block_size: int) -> dict[str, Any]:
    """From rope_parameters, as transformers 5 writes it, or rope_theta and rope_scaling, as those before."""
    top = e.number("rope_theta", 10000.0)
    old, new = e.inside("rope_scaling"), e.inside("rope_parameters")
    rope = old if old.entries else new
    if e.number("partial_rotary_factor", 1.0) != 1 or rope.number("partial_rotary_factor", 1.0) != 1:
        raise e.refused("its partial_rotary_factor is not 1, and npgpt turns whole heads only")
    kind = rope.one_of("rope_type", {"default": "none", "linear": "linear", "llama3": "llama3"},
                       rope.get("type") or "default")
    settings: dict[str, Any] = {"rope_theta": rope.number("rope_theta", new.number("rope_theta", top)),
                                "rope_scaling": kind}
    if kind != "none":
        settings["rope_factor"] = rope.number("factor")
    if kind == "llama3":
        settings["rope_low_freq_factor"]  = rope.number("low_freq_factor")
        settings["rope_high_freq_factor"] = rope.number("high_freq_factor")
        name = "original_max_position_embeddings"              # outside it goes before, as in transformers
        settings["rope_original_block_size"] = e.whole(name, rope.whole(name, block_size))
    return settings


def llama_config(settings: Settings) -> dict[str, Any]:
    s, (C, H, G, D, F, V) = settings, sizes(settings)
    bias, qkv_bias, _ = biases(settings)
    rope = {"rope_theta": s["rope_theta"], "rope_type": s["rope_scaling"]}
    if s["rope_scaling"] == "none":
        rope["rope_type"] = "default"
    else:
        rope["factor"] = s["rope_factor"]
    if s["rope_scaling"] == "llama3":
        rope |= {"low_freq_factor": s["rope_low_freq_factor"], "high_freq_factor": s["rope_high_freq_factor"],
                 "original_max_position_embeddings": s["rope_original_block_size"]}
    return {
        "vocab_size": V, "max_position_embeddings": s["block_size"], "num_hidden_layers": s["n_layer"],
        "num_attention_heads": H, "num_key_value_heads": G, "hidden_size": C,
        "intermediate_size": F, "hidden_act": "silu", "rms_norm_eps": s["norm_eps"],
        "attention_dropout": s["attention_dropout"], "attention_bias": qkv_bias, "mlp_bias": bias,
        "tie_word_embeddings": s["tie_word_embeddings"], "use_sliding_window": False, "sliding_window": None,
        "rope_theta": s["rope_theta"], "rope_scaling": None if s["rope_scaling"] == "none" else rope,
        "rope_parameters": rope, **({"head_dim": D} if s["head_dim"] or s["qk_norm"] else {}),
    }


def llama_places(settings: Settings) -> Iterator[Place]:
    C, H, G, D, F, V = sizes(settings)
    bias, qkv_bias, proj_bias = biases(settings)

    def vector(ours, theirs, size, rotary=0):
        return Place(ours, (Piece(theirs, (size,), rotary=rotary),))

    def linear(ours, n_in, has_bias, *parts):
        """parts: (name in the file, columns, size of heads that are turned)"""
        yield Place(f"{ours}.weight", tuple(Piece(f"{name}.weight", (size, n_in), True, rotary)
                                            for name, size, rotary in parts))
        if has_bias:
            yield Place(f"{ours}.bias", tuple(Piece(f"{name}.bias", (size,), False, rotary)
                                              for name, size, rotary in parts))

    yield Place("wte.weight", (Piece("embed_tokens.weight", (V, C)),))
    for n in range(settings["n_layer"]):
        h, layer = f"h.{n}", f"layers.{n}"
        yield vector(f"{h}.ln_1.weight", f"{layer}.input_layernorm.weight", C)
        yield from linear(f"{h}.attn.c_attn", C, qkv_bias, (f"{layer}.self_attn.q_proj", H * D, D),
                          (f"{layer}.self_attn.k_proj", G * D, D), (f"{layer}.self_attn.v_proj", G * D, 0))
        if settings["qk_norm"]:
            yield vector(f"{h}.attn.q_norm.weight", f"{layer}.self_attn.q_norm.weight", D, D)
            yield vector(f"{h}.attn.k_norm.weight", f"{layer}.self_attn.k_norm.weight", D, D)
        yield from linear(f"{h}.attn.c_proj", H * D, proj_bias, (f"{layer}.self_attn.o_proj", C, 0))
        yield vector(f"{h}.ln_2.weight", f"{layer}.post_attention_layernorm.weight", C)
        yield from linear(f"{h}.mlp.c_fc", C, bias, (f"{layer}.mlp.gate_proj", F, 0),
                          (f"{layer}.mlp.up_proj", F, 0))
        yield from linear(f"{h}.mlp.c_proj", F, bias, (f"{layer}.mlp.down_proj", C, 0))
    yield vector("ln_f.weight", "norm.weight", C)
    if not settings["tie_word_embeddings"]:
        yield Place("lm_head.weight", (Piece("lm_head.weight", (V, C)),))


def llama_kind(settings: Settings) -> str:
    """Which of the like holds these biases and norms: llama where it can."""
    bias, qkv_bias, proj_bias = biases(settings)
    if settings["qk_norm"]:
        return "qwen3"
    return "qwen2" if qkv_bias and not proj_bias and not bias else "llama"


def llama_misfit(settings: Settings) -> str | None:
    """The first option that none of Llama's like has a place for, or None."""
    bias, qkv_bias, proj_bias = biases(settings)
    kind = llama_kind(settings)
    fits = {"norm": settings["norm"] == "rmsnorm", "block": settings["block"] == "pre",
            "position": settings["position"] == "rotary", "activation": settings["activation"] == "swiglu",
            "logit_softcap": not settings["logit_softcap"], "bias": kind == "llama" or not bias,
            "attn_proj_bias": kind == "qwen2" or qkv_bias == proj_bias,
            "n_head": kind != "llama" or settings["n_embd"] % settings["n_head"] == 0}
    return next((name for name, fit in fits.items() if not fit), None)


def _llama_like(model_type: str, name: str) -> Family:
    return Family((f"{name}ForCausalLM", f"{name}Model"), f"{name}ForSequenceClassification", "model.",
                  lambda e: llama_settings(e, model_type), llama_places, (".rotary_emb.inv_freq",))


FAMILIES = {
    "gpt2": Family(("GPT2LMHeadModel", "GPT2Model"), "GPT2ForSequenceClassification", "transformer.",
                   gpt2_settings, gpt2_places, (".attn.bias", ".attn.masked_bias")),
    "llama": _llama_like("llama", "Llama"), "mistral": _llama_like("mistral", "Mistral"),
    "qwen2": _llama_like("qwen2", "Qwen2"), "qwen3": _llama_like("qwen3", "Qwen3"),
}


def family_for(settings: Settings, exact: bool) -> tuple[str, dict[str, Any]] | str:
    """model_type and the entries of config.json for such a model; or the option that no family can hold.

    exact: what is read back has the same parameters; else GPT-2's biases may be filled up with zeros. Dropout
    on a Llama is not told, for it changes nothing that a trained model computes.
    """
    if (misfit := gpt2_misfit(settings, exact)) is None:
        return "gpt2", gpt2_config(settings)
    if (other := llama_misfit(settings)) is None:
        return llama_kind(settings), llama_config(settings)
    return misfit if settings["norm"] == "layernorm" else other
