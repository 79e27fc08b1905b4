"""Positions: attention cannot tell first from last. Either each place adds a vector to what stands there
(learned, sinusoidal), or it turns the queries and keys (rotary).

`places`, in forward: integers on the host, (T,) where all examples stand alike, else (B, T).
"""

import math

import numpy as np

from npgpt.errors import ConfigError
from npgpt.layers.module import Module, Parameter
from npgpt.ops.embedding import embedding_backward, embedding_forward
from npgpt.tensor import array_module
from npgpt.tensor.precision import accumulator

ROPE_SCALINGS = ("none", "linear", "llama3")


class LearnedPosition(Module):
    """weight: (block_size, n_embd), learned, as in GPT-2.   x, y: (B, T, n_embd), places < block_size"""

    def __init__(self, block_size: int, n_embd: int, std: float = 0.02):
        self.weight = Parameter(block_size, n_embd, std=std)

    def forward(self, x, places):
        position, saved = embedding_forward(array_module(x).asarray(places), self.weight.data)
        return x + position, saved                                            # (T, C) or (B, T, C)

    def backward(self, dy, saved):
        places, _ = saved
        if not self.weight.frozen:
            dposition = dy.sum(0) if places.ndim == 1 else dy                 # all examples used these rows
            embedding_backward(dposition, saved, add_to=self.weight.grad)
        return dy


class SinusoidalPosition(Module):
    """Fixed waves of geometrically growing length (Vaswani et al. 2017).   x, y: (B, T, n_embd), any T

    position[t, 2i] = sin(t/10000^(2i/C))    position[t, 2i+1] = cos(t/10000^(2i/C))    nothing to learn
    """

    def forward(self, x, places):
        return x + array_module(x).asarray(sinusoidal_table(places, x.shape[-1])).astype(x.dtype), None

    def backward(self, dy, saved):
        return dy


class RotaryPosition:
    """The angles of npgpt.ops.rotary: place t turns pair i by t θᵢ, θᵢ = base^(−2i/D).   D: head_dim, even

    Longer contexts than a model was trained on are reached by slower rates (scaling), all wavelengths
    stretched by `factor` (Chen et al. 2023, "linear"), or those alone that do not fit into the context of
    `original_block_size` tokens (Llama 3.1, "llama3"): wavelengths above its low_freq_factor-th part are
    stretched, those below its high_freq_factor-th part stay, in between the two rates are mixed.
    Raises ConfigError.
    """

    def __init__(self, head_dim: int, base: float = 10000.0, scaling: str = "none", factor: float = 1.0,
                 low_freq_factor: float = 1.0, high_freq_factor: float = 4.0,
                 original_block_size: int = 8192):
        if head_dim % 2:
            raise ConfigError(f"rotary positions turn pairs of channels: heads of {head_dim} have none")
        if scaling not in ROPE_SCALINGS:
            raise ConfigError(f"unknown rope scaling {scaling!r}: use one of {', '.join(ROPE_SCALINGS)}")
        rates = base ** (-np.arange(0, head_dim, 2) / head_dim)               # θ   (D/2,)
        if scaling == "linear":
            rates = rates / factor
        if scaling == "llama3":
            turns = original_block_size * rates / (2 * math.pi)               # within the original context
            fits  = np.clip((turns - low_freq_factor) / (high_freq_factor - low_freq_factor), 0, 1)
            rates = (1 - fits) * rates / factor + fits * rates
        self.rates = rates

    def rotation(self, places: np.ndarray, like):
        """places: (T,) or (B, T)  →  cos, sin of the angles: (T, D/2) or (B, 1, T, D/2), where `like` is"""
        angles = places[..., None] * self.rates
        if places.ndim == 2:
            angles = angles[:, None]                                          # the same in all heads
        return tuple(array_module(like).asarray(f(angles).astype(accumulator(like.dtype)))
                     for f in (np.cos, np.sin))


def sinusoidal_table(places, C: int) -> np.ndarray:
    """The waves at these places, (..., C), in float64."""
    rates = np.exp(np.arange(0, C, 2) * (-math.log(10000) / C))               # 1/10000^(2i/C)   (⌈C/2⌉,)
    angles = np.asarray(places)[..., None] * rates                            # (..., ⌈C/2⌉)
    table = np.empty((*angles.shape[:-1], C))
    table[..., 0::2] = np.sin(angles)
    table[..., 1::2] = np.cos(angles[..., :C // 2])
    return table
