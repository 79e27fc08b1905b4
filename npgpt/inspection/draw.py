"""Random inputs that cannot hide a bug: weights of order 1, gains that are not 1 and offsets that are not 0
(never the initial values), repeated tokens, targets that do not count, keys that are hidden, values away from
the kinks of relu and |w|.
"""

import numpy as np

from npgpt import layers
from npgpt.tensor import to_device


class Draw:
    """Random inputs."""

    def __init__(self, rng: np.random.Generator):
        self.rng = rng

    def normal(self, *shape: int) -> np.ndarray:
        return self.rng.standard_normal(shape)

    def gain(self, *shape: int) -> np.ndarray:
        """Around 1, none of them 1."""
        return 1 + 0.5 * self.apart(*shape)

    def rows(self, *shape: int) -> np.ndarray:
        """Rows with any mean and a standard deviation from 0.5 to 2: where two numbers all but coincide, the
        third derivative of normalising them is too large for differences.
        """
        x = self.normal(*shape)
        x -= x.mean(-1, keepdims=True)
        x /= np.maximum(x.std(-1, keepdims=True), 1e-300)
        return self.rng.uniform(0.5, 2, (*shape[:-1], 1)) * x + self.normal(*shape[:-1], 1)

    def apart(self, *shape: int) -> np.ndarray:
        """Normal, but at least 0.01 away from 0."""
        x = self.normal(*shape)
        return x + np.where(x < 0, -0.01, 0.01)

    def tokens(self, V: int, *shape: int) -> np.ndarray:
        """From the lower half of the vocabulary, so that some repeat and some are never used."""
        return self.rng.integers(0, V // 2 + 1, shape)

    def targets(self, V: int, *shape: int) -> np.ndarray:
        """Some of them −100; the last always counts."""
        targets = self.rng.integers(0, V, shape)
        targets[self.rng.random(shape) < 0.3] = -100
        targets.reshape(-1)[-1:] = V - 1
        return targets

    def key_mask(self, B: int, S: int) -> np.ndarray:
        """Hides about a third, and the first key of example 0: if causal, its first query sees nothing."""
        mask = self.rng.random((B, S)) < 0.7
        mask[:1, 0] = False
        return mask

    def segments(self, B: int, S: int) -> np.ndarray:
        """Numbers that rise along each row by 0 or 1."""
        return np.cumsum(self.rng.random((B, S)) < 0.4, 1)

    def parameters(self, module: layers.Module) -> None:
        """Weights that keep activations of order 1, gains around 1, offsets of order 1."""
        for parameter in module.parameters.values():
            shape = parameter.shape
            if len(shape) > 1:
                values = self.normal(*shape) * shape[0] ** -0.5
            else:
                values = self.gain(*shape) if parameter.constant else self.normal(*shape)
            parameter.data[...] = to_device(values, module.flat.device)
