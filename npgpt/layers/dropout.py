"""Dropout: active when it is handed a key, the identity when it is not."""

from npgpt.layers.module import Module
from npgpt.ops.dropout import dropout_backward, dropout_forward
from npgpt.ranges import check_range


class Dropout(Module):
    """p: the chance that an element becomes 0, 0 ≤ p < 1.   x: (B, ...) → y: (B, ...)"""

    def __init__(self, p: float):
        self.p = chance(p)

    def forward(self, x, key=None):
        return (x, None) if key is None or self.p == 0 else dropout_forward(x, self.p, key)

    def backward(self, dy, saved):
        return dy if saved is None else dropout_backward(dy, saved)


def chance(p: float) -> float:
    """p, if something can be dropped with that chance and what is left make up for it. Raises ConfigError."""
    check_range("the chance of dropout", p, least=0, below=1)
    return p
