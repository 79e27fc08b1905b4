"""Models for the tests of generation: small ones with a will of their own, and a real one."""

import numpy as np

from npgpt import GPT, GPTConfig


class Function:
    """A model that is a function: tokens (B, T) → logits (B, V). It has no padding and no use for a cache."""

    def __init__(self, function):
        self.function = function

    def next_logits(self, tokens, kv_cache=None, attention_mask=None):
        assert attention_mask is None
        return np.asarray(self.function(tokens), float)

    def new_cache(self, max_length):
        return None


class Remembered:
    """A cache that holds the tokens themselves, and the padding."""

    def __init__(self, max_length):
        self.max_length, self.tokens, self.mask = max_length, None, None

    @property
    def length(self):
        return 0 if self.tokens is None else self.tokens.shape[1]

    def select(self, rows):
        self.tokens = self.tokens[rows]


class Hashed:
    """Logits that are a function of all real tokens of a sequence: one token that it should not have seen, or
    should have, and they are others altogether.

    It knows the past from its cache alone, if it has one, and counts what it reads.
    """

    def __init__(self, V, seed=0, dtype="float64"):
        self.V, self.seed, self.dtype, self.read, self.room = V, seed, dtype, [], []

    def new_cache(self, max_length):
        self.room.append(max_length)
        return Remembered(max_length)

    def next_logits(self, tokens, kv_cache=None, attention_mask=None):
        mask = np.ones(tokens.shape, bool) if attention_mask is None else attention_mask
        assert mask.shape == tokens.shape and mask[:, -1].all()
        if kv_cache is not None:
            tokens = tokens[:, kv_cache.length:]
            self.read.append(tokens.shape)
            kv_cache.tokens = tokens if kv_cache.length == 0 else np.concatenate([kv_cache.tokens, tokens], 1)
            tokens = kv_cache.tokens
            assert kv_cache.length <= kv_cache.max_length
        return np.stack([self.logits(row[real]) for row, real in zip(tokens, mask, strict=True)])

    def logits(self, tokens):
        rng = np.random.default_rng([self.seed, *map(int, tokens)])
        return 2 * rng.standard_normal(self.V).astype(self.dtype)


def random_gpt(dtype="float64", seed=17, **options):
    """With matrices of order 1, so that everything in the model acts and what is generated varies."""
    model = GPT(GPTConfig(**options), seed=3, dtype=dtype)
    rng = np.random.default_rng(seed)
    for parameter in model.parameters.values():
        parameter.data += (1 if parameter.data.ndim == 2 else 0.1) * rng.standard_normal(parameter.shape)
    return model
