"""Configurations of GPT in which every value of every option occurs, alone and together with others."""

import numpy as np

SHAPE = {"vocab_size": 11, "block_size": 8, "n_layer": 2, "n_head": 4, "n_embd": 16}

VALUES = {
    "n_kv_head": [None, 1, 2],
    "head_dim": [None, 6],
    "n_inner": [None, 9],
    "bias": [True, False],
    "qkv_bias": [None, True, False],
    "attn_proj_bias": [None, True, False],
    "norm": ["layernorm", "rmsnorm"],
    "norm_eps": [1e-5, 1e-2],
    "block": ["pre", "post", "parallel", "parallel_post"],
    "activation": ["gelu_tanh", "gelu_erf", "relu", "swiglu"],
    "qk_norm": [False, True],
    "position": ["learned", "sinusoidal", "rotary", "none"],
    "rope_theta": [10000.0, 7.0],
    "rope_interleaved": [False, True],
    "tie_word_embeddings": [True, False],
    "logit_softcap": [0.0, 2.0],
    "gradient_checkpointing": [False, True],
}
ROTARY = {"position": "rotary", "rope_original_block_size": 6}
ALONE = [{name: value} for name, values in VALUES.items() for value in values[1:]] + [
    {"n_embd": 14, "head_dim": 6},                          # no multiple of n_head
    {**ROTARY, "rope_interleaved": True},
    {**ROTARY, "rope_theta": 7.0},
    {**ROTARY, "rope_scaling": "linear", "rope_factor": 3.0},
    {**ROTARY, "rope_scaling": "llama3", "rope_factor": 3.0, "rope_theta": 5.0},
    {**ROTARY, "rope_scaling": "llama3", "rope_factor": 8.0, "rope_low_freq_factor": 0.5,
     "rope_high_freq_factor": 2.0},
]


def together(count: int, seed: int = 0) -> list[dict]:
    """So many configurations with every option drawn."""
    rng = np.random.default_rng(seed)
    return [{name: values[rng.integers(len(values))] for name, values in VALUES.items()}
            for _ in range(count)]


def label(options: dict) -> str:
    """Names a test: what is not as the first of its values, GPT-2's."""
    changed = {name: value for name, value in options.items() if value != VALUES.get(name, [0])[0]}
    return ",".join(f"{name}={value}" for name, value in changed.items()) or "GPT-2"
