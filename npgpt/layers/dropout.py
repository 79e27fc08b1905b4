"""Dropout: active when it is handed a key, the identity when it is not."""

from npgpt.layers.module import Module
from npgpt.ops.dropout import dropout_backward, dropout_forward


class Dropout(Module):
    """p: the chance that an element becomes 0.   x: (B, ...) → y: (B, ...)"""

    def __init__(self, p: float):
        self.p = p

    def forward(self, x, key=None):
        return (x, None) if key is None or self.p == 0 else dropout_forward(x, self.p, key)

    def backward(self, dy, saved):
        return dy if saved is None else dropout_backward(dy, saved)
