"""Activation checkpointing (Chen et al. 2016): keep a layer's input only, and run it again in backward.

Costs one more forward, and saves the memory of everything that the layer would have saved. The second run
equals the first, for dropout too: its masks are a function of the key.
"""

from typing import Any

from npgpt.layers.module import Module


class Checkpointed(Module):
    """Wraps a layer with `forward(x, key, **context)`; parameters, names and parts stay the layer's:
    `checkpointed.mlp` is the layer's, also where another is put in its place.

    kv_cache, in forward: for a layer that takes one. A second run would append to it once more, so nothing
    is saved then, and there is no backward.
    """

    def __init__(self, layer):
        vars(self)["layer"] = layer

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "layer" not in vars(self):      # as while it is being copied
            raise AttributeError(name)
        return getattr(self.layer, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ("layer", "flat"):
            vars(self)[name] = value
        else:
            setattr(self.layer, name, value)

    def places(self, prefix: str = ""):
        return self.layer.places(prefix)

    def forward(self, x, key=None, kv_cache=None, **context):
        if kv_cache is not None:
            return self.layer.forward(x, key, kv_cache=kv_cache, **context)[0], None
        y, _ = self.layer.forward(x, key, **context)
        return y, (x, key, context)

    def backward(self, dy, saved):
        x, key, context = saved
        _, saved = self.layer.forward(x, key, **context)
        return self.layer.backward(dy, saved)
