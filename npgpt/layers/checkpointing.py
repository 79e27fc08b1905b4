"""Activation checkpointing (Chen et al. 2016): keep a layer's input only, and run it again in backward.

Costs one more forward, and saves the memory of everything that the layer would have saved. The second run
equals the first, for dropout too: its masks are a function of the key.
"""

from npgpt.layers.module import Module


class Checkpointed(Module):
    """Wraps a layer with `forward(x, key)`; the parameters and their names stay the layer's."""

    def __init__(self, layer):
        self.layer = layer

    def named_parameters(self, prefix: str = ""):
        return self.layer.named_parameters(prefix)

    def forward(self, x, key=None):
        y, _ = self.layer.forward(x, key)
        return y, (x, key)

    def backward(self, dy, saved):
        _, saved = self.layer.forward(*saved)
        return self.layer.backward(dy, saved)
