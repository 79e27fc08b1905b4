"""The KV cache: the keys and values of the positions read so far, so that none is read twice.

What follows a position cannot reach back to it through causal attention. So the keys and values that a layer
computed there stay what they are, however the sequence goes on, and a further token costs a pass of one
position, whose query asks the keys that are held, instead of a pass of them all.
"""

import numpy as np

from npgpt.errors import DataError
from npgpt.tensor import array_module
from npgpt.tensor.device import Array


class KVCache:
    """layers[n] is the part of the n-th layer, for up to max_length positions of one batch of sequences."""

    def __init__(self, n_layer: int, max_length: int):
        self.layers = [LayerCache(max_length) for _ in range(n_layer)]

    @property
    def length(self) -> int:
        """The number of positions held; a smaller one may be set. Raises DataError if a pass broke off
        between two layers.
        """
        lengths = [layer.length for layer in self.layers]
        if min(lengths) < max(lengths):
            raise DataError(f"a pass broke off with {max(lengths)} positions in one layer of the cache and "
                            f"{min(lengths)} in another: begin with a new cache")
        return lengths[0]

    @length.setter
    def length(self, length: int) -> None:
        """What follows is forgotten, as a draft of which the beginning alone was taken."""
        if not 0 <= length <= self.length:
            raise DataError(f"a cache that holds {self.length} positions can be cut to 0 to {self.length}, "
                            f"not {length}")
        for layer in self.layers:
            layer.length = length

    def select(self, rows) -> None:
        """rows: (R,), on the host.  Sequence r becomes what rows[r] was; R may be other than before."""
        for layer in self.layers:
            layer.select(np.asarray(rows))


class LayerCache:
    """Keys and values of one layer: (B, H, max_length, D) each, of which the first `length` positions count.

    They are made at the first `append`, as what it is given: of its B, H and D, its type, on its device.
    """

    def __init__(self, max_length: int):
        self.max_length, self.length = max_length, 0
        self.keys: Array = None
        self.values: Array = None

    def append(self, k, v):
        """k, v: those of the next T positions, (B, H, T, D)  →  of all S so far, views (B, H, S, D)

        Raises DataError where there is no room, or for another B, H or D than before; nothing changes then.
        """
        B, H, T, D = k.shape
        S, shape   = self.length + T, (B, H, self.max_length, D)
        if self.max_length < S:
            raise DataError(f"a cache for {self.max_length} positions holds {self.length} already and has no "
                            f"room for {T} more: make a longer one")
        if self.keys is None:
            xp = array_module(k)
            self.keys, self.values = xp.empty(shape, k.dtype), xp.empty(shape, v.dtype)
        if self.keys.shape != shape:
            raise DataError(f"a cache of keys {self.keys.shape} has no place for keys {k.shape}: "
                            "make a new one for another batch")
        self.keys[:, :, self.length:S]   = k
        self.values[:, :, self.length:S] = v
        self.length = S
        return self.keys[:, :, :S], self.values[:, :, :S]

    def select(self, rows) -> None:
        """As KVCache.select. Of as many sequences as before, only those that change are copied."""
        if self.keys is None:
            return
        xp, B, S = array_module(self.keys), len(self.keys), self.length
        changed  = np.arange(len(rows)) if len(rows) != B else np.flatnonzero(rows != np.arange(B))
        if not len(changed):
            return
        to, origin = xp.asarray(changed), xp.asarray(rows[changed])
        for name in ("keys", "values"):
            past = getattr(self, name)
            room = past if len(rows) == B else xp.empty((len(rows), *past.shape[1:]), past.dtype)
            room[to, :, :S] = past[origin, :, :S]
            setattr(self, name, room)
