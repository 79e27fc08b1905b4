"""A small GPT of weights of order 1, and its gradients, for tests of what is learned and what is not."""

import dataclasses

import numpy as np

from npgpt import GPT, GPTConfig
from npgpt.tensor import Key

CONFIG = GPTConfig(vocab_size=13, block_size=8, n_layer=3, n_head=2, n_embd=8, dropout=0.2)
LLAMA = {"norm": "rmsnorm", "activation": "swiglu", "position": "rotary", "bias": False,
         "tie_word_embeddings": False}
KEY = Key(1, step=2)


def gpt(dtype="float64", **options):
    """A GPT of weights of order 1."""
    model, rng = GPT(dataclasses.replace(CONFIG, **options), seed=1, dtype=dtype), np.random.default_rng(0)
    model.flat.data += 0.4 * rng.standard_normal(model.flat.size)
    return model


def tokens(seed=0, B=3, T=6):
    return np.random.default_rng(seed).integers(0, 13, (B, T))


def gradients(model, targets=None):
    """Of the parameters that are learned, by name."""
    model.zero_grad()
    _, saved = model.loss(tokens(), tokens(1) if targets is None else targets, KEY)
    model.backward(saved)
    return {name: parameter.grad.copy() for name, parameter in model.flat.parameters.items()}


def same_arrays(one, other):
    return all(other.parameters[name].data.__array_interface__["data"] ==
               parameter.data.__array_interface__["data"] for name, parameter in one.parameters.items())
