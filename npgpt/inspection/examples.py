"""One or more valid calls for every op, layer and model: what `npgpt gradcheck` and the tests run.

A case is built from sizes and a random generator, in float64. The data are chosen so that they cannot hide a
bug: weights of order 1, gains that are not 1 and offsets that are not 0 (never the initial values), all sizes
different, repeated tokens, targets that do not count, keys that are hidden, values away from the kinks of
relu and |w|.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from npgpt import layers, ops
from npgpt.models import GPT, GPTConfig
from npgpt.tensor import Key, to_device


class Sizes(NamedTuple):
    """B batch, T queries, S keys, H heads, D head size, C channels, V vocabulary."""

    B: int = 2
    T: int = 5
    S: int = 7
    H: int = 3
    D: int = 4
    C: int = 6
    V: int = 11


class Case(NamedTuple):
    """A call that can be checked: forward(*inputs) → (y, saved), backward(dy, saved) → gradients."""

    forward: Callable
    backward: Callable
    inputs: tuple
    parameters: Mapping[str, Any] = {}


Build = Callable[[Sizes, np.random.Generator, str], Case]        # sizes, generator, device


def _op(forward: Callable, backward: Callable, inputs: Callable[[Sizes, Any], tuple]) -> Build:
    """inputs(n, random) gives forward's arguments; random.normal(*shape) and the like make them."""
    def build(n: Sizes, rng: np.random.Generator, device: str = "cpu") -> Case:
        values = inputs(n, Draw(rng))
        return Case(forward, backward, _placed(values, device))
    return build


def _layer(make: Callable[[Sizes], Any], inputs: Callable[[Sizes, Any], tuple]) -> Build:
    def build(n: Sizes, rng: np.random.Generator, device: str = "cpu") -> Case:
        draw, module = Draw(rng), make(n).initialise(device=device, dtype="float64")
        draw.parameters(module)
        return Case(module.forward, module.backward, _placed(inputs(n, draw), device), module.parameters)
    return build


def _placed(values: tuple, device: str) -> tuple:
    """The arrays among the values on the device, the rest as it is."""
    return tuple(to_device(value, device) if isinstance(value, np.ndarray) else value for value in values)


def _gpt(**options) -> Build:
    def build(n: Sizes, rng: np.random.Generator, device: str = "cpu") -> Case:
        config = GPTConfig(n.V, block_size=n.T + 1, n_layer=2, n_head=n.H, n_embd=n.H * n.D, **options)
        draw, model = Draw(rng), GPT(config, device=device, dtype="float64")
        draw.parameters(model)
        tokens, targets, key = draw.tokens(n.V, n.B, n.T), draw.targets(n.V, n.B, n.T), Key(1, step=2)
        return Case(lambda: model.loss(tokens, targets, key), lambda dy, saved: model.backward(saved, dy), (),
                    model.parameters)
    return build


def _gpt_logits(n: Sizes, rng: np.random.Generator, device: str = "cpu") -> Case:
    config = GPTConfig(n.V, block_size=n.T, n_layer=1, n_head=n.H, n_embd=n.H * n.D)
    draw, model = Draw(rng), GPT(config, device=device, dtype="float64")
    draw.parameters(model)
    tokens = draw.tokens(n.V, n.B, n.T)
    return Case(lambda: model.forward(tokens), model.backward_logits, (), model.parameters)


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

    def parameters(self, module: layers.Module) -> None:
        """Weights that keep activations of order 1, gains around 1, offsets of order 1."""
        for parameter in module.parameters.values():
            shape = parameter.shape
            if len(shape) > 1:
                values = self.normal(*shape) * shape[0] ** -0.5
            else:
                values = self.gain(*shape) if parameter.constant else self.normal(*shape)
            parameter.data[...] = to_device(values, module.flat.device)


def _attention(inputs: Callable[[Sizes, Any], tuple]) -> Build:
    return _op(ops.attention_forward, ops.attention_backward, inputs)


def _qkv(n: Sizes, draw: Draw, keys: int) -> tuple:
    return tuple(draw.normal(n.B, n.H, length, n.D) for length in (n.T, keys, keys))


OPS: dict[str, Build] = {
    "linear": _op(ops.linear_forward, ops.linear_backward,
                  lambda n, r: (r.normal(n.B, n.T, n.C), r.normal(n.C, n.D), r.normal(n.D))),
    "linear, no bias": _op(ops.linear_forward, ops.linear_backward,
                           lambda n, r: (r.normal(n.T, n.C), r.normal(n.C, n.C))),
    "embedding": _op(ops.embedding_forward, ops.embedding_backward,
                     lambda n, r: (r.tokens(n.V, n.B, n.T), r.normal(n.V, n.C))),
    "layernorm": _op(ops.layernorm_forward, ops.layernorm_backward,
                     lambda n, r: (r.rows(n.B, n.T, n.C), r.gain(n.C), r.normal(n.C))),
    "layernorm, no beta": _op(ops.layernorm_forward, ops.layernorm_backward,
                              lambda n, r: (r.rows(n.B, n.H, n.T, n.C), r.gain(n.C))),
    "layernorm, variance near eps": _op(ops.layernorm_forward, ops.layernorm_backward,
                                        lambda n, r: (0.01 * r.rows(n.T, n.C), r.gain(n.C), r.normal(n.C),
                                                      1e-4)),
    "gelu_tanh": _op(ops.gelu_tanh_forward, ops.gelu_tanh_backward,
                     lambda n, r: (2 * r.normal(n.B, n.T, n.C),)),
    "gelu_erf": _op(ops.gelu_erf_forward, ops.gelu_erf_backward, lambda n, r: (2 * r.normal(n.B, n.T, n.C),)),
    "relu": _op(ops.relu_forward, ops.relu_backward, lambda n, r: (r.apart(n.B, n.T, n.C),)),
    "softmax": _op(ops.softmax_forward, ops.softmax_backward, lambda n, r: (r.normal(n.B, n.T, n.C),)),
    "attention, causal": _attention(lambda n, r: _qkv(n, r, n.T)),
    "attention, causal, T ≠ S": _attention(lambda n, r: _qkv(n, r, n.S)),
    "attention, causal, key mask": _attention(lambda n, r: (*_qkv(n, r, n.T), True, r.key_mask(n.B, n.T))),
    "attention, all to all, T ≠ S": _attention(lambda n, r: (*_qkv(n, r, n.S), False)),
    "attention, all to all, key mask": _attention(lambda n, r: (*_qkv(n, r, n.S), False,
                                                                r.key_mask(n.B, n.S))),
    "dropout": _op(ops.dropout_forward, ops.dropout_backward,
                   lambda n, r: (r.normal(n.B, n.T, n.C), 0.3, Key(5, step=3, example=2))),
    "residual": _op(ops.residual_forward, ops.residual_backward,
                    lambda n, r: (r.normal(n.B, n.T, n.C), r.normal(n.B, n.T, n.C))),
    "cross_entropy": _op(ops.cross_entropy_forward, ops.cross_entropy_backward,
                         lambda n, r: (2 * r.normal(n.B, n.T, n.V), r.targets(n.V, n.B, n.T))),
    "cross_entropy, part of a batch": _op(ops.cross_entropy_forward, ops.cross_entropy_backward,
                                          lambda n, r: (r.normal(n.T, n.V), r.targets(n.V, n.T), 29)),
    "linear_cross_entropy": _op(ops.linear_cross_entropy_forward, ops.linear_cross_entropy_backward,
                                lambda n, r: (r.normal(n.B, n.T, n.C), r.normal(n.V, n.C),
                                              r.targets(n.V, n.B, n.T))),
    "linear_cross_entropy, by 3 rows": _op(ops.linear_cross_entropy_forward,
                                           ops.linear_cross_entropy_backward,
                                           lambda n, r: (r.normal(n.B, n.T, n.C), r.normal(n.V, n.C),
                                                         r.targets(n.V, n.B, n.T), None, -100, 3)),
    "penalty": _op(ops.penalty_forward, ops.penalty_backward, lambda n, r: (r.apart(n.C, n.D), 0.3, 0.7)),
}

LAYERS: dict[str, Build] = {
    "Linear": _layer(lambda n: layers.Linear(n.C, n.D), lambda n, r: (r.normal(n.B, n.T, n.C),)),
    "Embedding": _layer(lambda n: layers.Embedding(n.V, n.C), lambda n, r: (r.tokens(n.V, n.B, n.T),)),
    "LayerNorm": _layer(lambda n: layers.LayerNorm(n.C), lambda n, r: (r.rows(n.B, n.T, n.C),)),
    "LearnedPosition": _layer(lambda n: layers.LearnedPosition(n.T + 1, n.C),
                              lambda n, r: (r.normal(n.B, n.T, n.C),)),
    "SinusoidalPosition": _layer(lambda n: layers.SinusoidalPosition(),
                                 lambda n, r: (r.normal(n.B, n.T, n.C),)),
    "SelfAttention": _layer(lambda n: layers.SelfAttention(n.H * n.D, n.H, dropout=0.2),
                            lambda n, r: (r.normal(n.B, n.T, n.H * n.D), Key(1), r.key_mask(n.B, n.T))),
    "SelfAttention, not causal": _layer(
        lambda n: layers.SelfAttention(n.H * n.D, n.H, bias=False, causal=False),
        lambda n, r: (r.normal(n.B, n.T, n.H * n.D),)),
    "FeedForward": _layer(lambda n: layers.FeedForward(n.C, dropout=0.2),
                          lambda n, r: (r.normal(n.B, n.T, n.C), Key(1))),
    "FeedForward, gelu_erf": _layer(lambda n: layers.FeedForward(n.C, bias=False, activation="gelu_erf"),
                                    lambda n, r: (r.normal(n.B, n.T, n.C),)),
    "Dropout": _layer(lambda n: layers.Dropout(0.4), lambda n, r: (r.normal(n.B, n.T, n.C), Key(3))),
    "Block": _layer(lambda n: layers.Block(n.H * n.D, n.H, dropout=0.1),
                    lambda n, r: (r.normal(n.B, n.T, n.H * n.D), Key(1))),
    "Block, no bias": _layer(lambda n: layers.Block(n.H * n.D, n.H, bias=False),
                             lambda n, r: (r.normal(n.B, n.T, n.H * n.D),)),
    "Checkpointed": _layer(lambda n: layers.Checkpointed(layers.Block(n.H * n.D, n.H, dropout=0.1)),
                           lambda n, r: (r.normal(n.B, n.T, n.H * n.D), Key(1))),
}

MODELS: dict[str, Build] = {
    "GPT": _gpt(dropout=0.1),
    "GPT, logits": _gpt_logits,
    "GPT, no bias, gelu_erf, sinusoidal, checkpointed": _gpt(
        bias=False, activation="gelu_erf", position="sinusoidal", gradient_checkpointing=True, dropout=0.1),
}

EXAMPLES: dict[str, Build] = OPS | LAYERS | MODELS
