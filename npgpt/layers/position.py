"""Positions: attention cannot tell first from last, so each place adds a vector to what stands there.

`start`, in forward: the place of the first of the T positions, where those before it were read earlier.
"""

import math

import numpy as np

from npgpt.layers.module import Module, Parameter
from npgpt.ops.embedding import embedding_backward, embedding_forward
from npgpt.tensor import array_module


class LearnedPosition(Module):
    """weight: (block_size, n_embd), learned, as in GPT-2.   x, y: (B, T, n_embd), start + T ≤ block_size"""

    def __init__(self, block_size: int, n_embd: int, std: float = 0.02):
        self.weight = Parameter(block_size, n_embd, std=std)

    def forward(self, x, start=0):
        places = array_module(x).arange(start, start + x.shape[1])            # (T,)
        position, saved = embedding_forward(places, self.weight.data)         # (T, C)
        return x + position, saved

    def backward(self, dy, saved):
        embedding_backward(dy.sum(0), saved, add_to=self.weight.grad)         # all examples used these rows
        return dy


class SinusoidalPosition(Module):
    """Fixed waves of geometrically growing length (Vaswani et al. 2017).   x, y: (B, T, n_embd), any T

    position[t, 2i] = sin(t/10000^(2i/C))    position[t, 2i+1] = cos(t/10000^(2i/C))    nothing to learn
    """

    def forward(self, x, start=0):
        xp = array_module(x)
        T, C = x.shape[1:]
        return x + xp.asarray(sinusoidal_table(T, C, start)).astype(x.dtype), None

    def backward(self, dy, saved):
        return dy


def sinusoidal_table(T: int, C: int, start: int = 0) -> np.ndarray:
    """The waves from place `start` on, (T, C), in float64."""
    rates = np.exp(np.arange(0, C, 2) * (-math.log(10000) / C))               # 1/10000^(2i/C)   (⌈C/2⌉,)
    angles = np.arange(start, start + T)[:, None] * rates                     # (T, ⌈C/2⌉)
    table = np.empty((T, C))
    table[:, 0::2] = np.sin(angles)
    table[:, 1::2] = np.cos(angles[:, :C // 2])
    return table
