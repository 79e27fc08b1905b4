"""One or more valid calls for every op, layer and model: what `npgpt gradcheck` and the tests run.

A case is built from sizes, all different, and a random generator, in float64; its numbers are those of
draw.py, which cannot hide a bug.
"""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from npgpt import layers, ops
from npgpt.inspection.draw import Draw
from npgpt.models import GPT, GPTConfig, SequenceClassifier
from npgpt.tensor import Key, array_module, to_device
from npgpt.tensor.precision import map_arrays


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


def _pair(forward: Callable, backward: Callable, inputs: Callable[[Sizes, Any], tuple]) -> Build:
    """Of an op whose y is two arrays of one shape: here they are stacked."""
    def stacked(op: Callable, *args: Any) -> tuple:
        pair, saved = op(*args)
        return array_module(*pair).stack(pair), saved

    function: Any = functools.partial(stacked, forward)
    function.op, function.__name__ = forward, getattr(forward, "__name__", "")
    function.__signature__ = inspect.signature(forward)                       # for the inputs' names
    function.reference = functools.partial(stacked, getattr(forward, "reference", forward))
    return _op(function, backward, inputs)


def _layer(make: Callable[[Sizes], Any], inputs: Callable[[Sizes, Any], tuple]) -> Build:
    def build(n: Sizes, rng: np.random.Generator, device: str = "cpu") -> Case:
        draw, module = Draw(rng), make(n).initialise(device=device, dtype="float64")
        draw.parameters(module)
        return Case(module.forward, module.backward, _placed(inputs(n, draw), device), module.parameters)
    return build


def as_type(dtype: str, values: tuple) -> tuple:
    """The values with their floats of another type."""
    return map_arrays(lambda array: array.astype(dtype) if array.dtype.kind == "f" else array, values)


def _placed(values: tuple, device: str) -> tuple:
    return map_arrays(lambda array: to_device(array, device), values)


def _gpt(change: Callable[[GPT], None] = lambda model: None, **options) -> Build:
    """change: what is done to the model, of which then not all is learned."""
    def build(n: Sizes, rng: np.random.Generator, device: str = "cpu") -> Case:
        config = GPTConfig(n.V, block_size=n.T + 1, n_layer=2, n_head=n.H, n_embd=n.H * n.D, **options)
        draw, model = Draw(rng), GPT(config, device=device, dtype="float64")
        change(model)
        draw.parameters(model)
        tokens, targets, key = draw.tokens(n.V, n.B, n.T), draw.targets(n.V, n.B, n.T), Key(1, step=2)
        learned = {name: p for name, p in model.parameters.items() if not p.frozen}
        return Case(model.loss, lambda dy, saved: model.backward(saved, dy), (tokens, targets, key), learned)
    return build


def _gpt_logits(n: Sizes, rng: np.random.Generator, device: str = "cpu") -> Case:
    config = GPTConfig(n.V, block_size=n.T, n_layer=1, n_head=n.H, n_embd=n.H * n.D)
    draw, model = Draw(rng), GPT(config, device=device, dtype="float64")
    draw.parameters(model)
    tokens = draw.tokens(n.V, n.B, n.T)
    return Case(model.forward, model.backward_logits, (tokens,), model.parameters)


def _classifier(**options) -> Build:
    def build(n: Sizes, rng: np.random.Generator, device: str = "cpu") -> Case:
        config = GPTConfig(n.V, block_size=n.T, n_layer=2, n_head=n.H, n_embd=n.H * n.D, **options)
        draw   = Draw(rng)
        model  = SequenceClassifier(config, [str(label) for label in range(n.C + 1)], device=device,
                                    dtype="float64")
        draw.parameters(model)
        tokens, targets, key = draw.tokens(n.V, n.B, n.T), rng.integers(0, n.C + 1, n.B), Key(1, step=2)
        mask = rng.random((n.B, n.T)) < 0.7
        mask[np.arange(n.B), rng.integers(0, n.T, n.B)] = True                # one token at least
        return Case(model.loss, lambda dy, saved: model.backward(saved, dy),
                    (tokens, targets, key, None, mask), model.parameters)
    return build


def _attention(inputs: Callable[[Sizes, Any], tuple]) -> Build:
    return _op(ops.attention_forward, ops.attention_backward, inputs)


def _qkv(n: Sizes, draw: Draw, keys: int, queries_a_key: int = 1) -> tuple:
    return (draw.normal(n.B, queries_a_key * n.H, n.T, n.D),
            *(draw.normal(n.B, n.H, keys, n.D) for _ in range(2)))


def _angles(draw: Draw, *shape: int) -> tuple:
    angles = 3 * draw.normal(*shape)
    return np.cos(angles), np.sin(angles)


OPS: dict[str, Build] = {
    "linear": _op(ops.linear_forward, ops.linear_backward,
                  lambda n, r: (r.normal(n.B, n.T, n.C), r.normal(n.C, n.D), r.normal(n.D))),
    "linear, no bias": _op(ops.linear_forward, ops.linear_backward,
                           lambda n, r: (r.normal(n.T, n.C), r.normal(n.C, n.C))),
    "lora": _op(ops.lora_forward, ops.lora_backward,
                lambda n, r: (r.normal(n.B, n.T, n.C), r.normal(n.C, n.D), r.normal(n.D), r.normal(n.C, n.H),
                              r.normal(n.H, n.D), 0.7)),
    "lora, no bias": _op(ops.lora_forward, ops.lora_backward,
                         lambda n, r: (r.normal(n.T, n.C), r.normal(n.C, n.C), None, r.normal(n.C, n.B),
                                       r.normal(n.B, n.C), 1.5)),
    "embedding": _op(ops.embedding_forward, ops.embedding_backward,
                     lambda n, r: (r.tokens(n.V, n.B, n.T), r.normal(n.V, n.C))),
    "layernorm": _op(ops.layernorm_forward, ops.layernorm_backward,
                     lambda n, r: (r.rows(n.B, n.T, n.C), r.gain(n.C), r.normal(n.C))),
    "layernorm, no beta": _op(ops.layernorm_forward, ops.layernorm_backward,
                              lambda n, r: (r.rows(n.B, n.H, n.T, n.C), r.gain(n.C))),
    "layernorm, variance near eps": _op(ops.layernorm_forward, ops.layernorm_backward,
                                        lambda n, r: (0.01 * r.rows(n.T, n.C), r.gain(n.C), r.normal(n.C),
                                                      1e-4)),
    "rmsnorm": _op(ops.rmsnorm_forward, ops.rmsnorm_backward,
                   lambda n, r: (r.rows(n.B, n.T, n.C), r.gain(n.C))),
    "rmsnorm, mean square near eps": _op(ops.rmsnorm_forward, ops.rmsnorm_backward,
                                         lambda n, r: (0.01 * r.rows(n.T, n.C), r.gain(n.C), 1e-4)),
    "gelu_tanh": _op(ops.gelu_tanh_forward, ops.gelu_tanh_backward,
                     lambda n, r: (2 * r.normal(n.B, n.T, n.C),)),
    "gelu_erf": _op(ops.gelu_erf_forward, ops.gelu_erf_backward, lambda n, r: (2 * r.normal(n.B, n.T, n.C),)),
    "relu": _op(ops.relu_forward, ops.relu_backward, lambda n, r: (r.apart(n.B, n.T, n.C),)),
    "swiglu": _op(ops.swiglu_forward, ops.swiglu_backward,
                  lambda n, r: (2 * r.normal(n.B, n.T, 2 * n.C),)),
    "softcap": _op(ops.softcap_forward, ops.softcap_backward,
                   lambda n, r: (3 * r.normal(n.B, n.T, n.C), 2.5)),
    "softmax": _op(ops.softmax_forward, ops.softmax_backward, lambda n, r: (r.normal(n.B, n.T, n.C),)),
    "attention, causal": _attention(lambda n, r: _qkv(n, r, n.T)),
    "attention, causal, T ≠ S": _attention(lambda n, r: _qkv(n, r, n.S)),
    "attention, causal, key mask": _attention(lambda n, r: (*_qkv(n, r, n.T), True, r.key_mask(n.B, n.T))),
    "attention, all to all, T ≠ S": _attention(lambda n, r: (*_qkv(n, r, n.S), False)),
    "attention, all to all, key mask": _attention(lambda n, r: (*_qkv(n, r, n.S), False,
                                                                r.key_mask(n.B, n.S))),
    "attention, causal, grouped queries": _attention(lambda n, r: _qkv(n, r, n.S, 2)),
    "attention, all to all, one key head, key mask": _attention(
        lambda n, r: (*_qkv(n._replace(H=1), r, n.S, n.H), False, r.key_mask(n.B, n.S))),
    "attention, causal, grouped queries, dropout": _attention(
        lambda n, r: (*_qkv(n, r, n.T, 3), True, None, None, 0.3, Key(6, step=1, example=4))),
    "attention, causal, segments": _attention(
        lambda n, r: (*_qkv(n, r, n.T + n.S, 3), True, None, r.segments(n.B, n.T + n.S))),
    "attention, all to all, segments, key mask, dropout": _attention(
        lambda n, r: (*_qkv(n, r, n.T), False, r.key_mask(n.B, n.T), r.segments(n.B, n.T), 0.3, Key(6))),
    "rotary": _op(ops.rotary_forward, ops.rotary_backward,
                  lambda n, r: (r.normal(n.B, n.H, n.T, 2 * n.D), _angles(r, n.T, n.D))),
    "rotary, interleaved, places of their own": _op(
        ops.rotary_forward, ops.rotary_backward,
        lambda n, r: (r.normal(n.B, n.H, n.T, 2 * n.D), _angles(r, n.B, 1, n.T, n.D), True)),
    "dropout": _op(ops.dropout_forward, ops.dropout_backward,
                   lambda n, r: (r.normal(n.B, n.T, n.C), 0.3, Key(5, step=3, example=2))),
    "residual": _op(ops.residual_forward, ops.residual_backward,
                    lambda n, r: (r.normal(n.B, n.T, n.C), r.normal(n.B, n.T, n.C))),
    "residual_layernorm": _pair(ops.residual_layernorm_forward, ops.residual_layernorm_backward,
                                lambda n, r: (r.rows(n.B, n.T, n.C), r.normal(n.B, n.T, n.C), r.gain(n.C),
                                              r.normal(n.C))),
    "residual_layernorm, no beta": _pair(ops.residual_layernorm_forward, ops.residual_layernorm_backward,
                                         lambda n, r: (r.rows(n.T, n.C), r.normal(n.T, n.C), r.gain(n.C),
                                                       None, 1e-3)),
    "residual_rmsnorm": _pair(ops.residual_rmsnorm_forward, ops.residual_rmsnorm_backward,
                              lambda n, r: (r.rows(n.B, n.T, n.C), r.normal(n.B, n.T, n.C), r.gain(n.C),
                                            1e-3)),
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


def _attention_layer(n: Sizes, **options) -> layers.SelfAttention:
    return layers.SelfAttention(n.H * n.D, n.H, **options)


def _block_parts(n: Sizes) -> tuple:
    """Norm, attention, norm, feed-forward, every one with its options turned."""
    C = n.H * n.D
    return (layers.LayerNorm(C), _attention_layer(n, dropout=0.1, attention_dropout=0.1), layers.RMSNorm(C),
            layers.FeedForward(C, n.C, dropout=0.1))


def _pre_norm(n: Sizes) -> layers.Block:
    return layers.Block(*_block_parts(n))


def _post_norm(n: Sizes) -> layers.PostNormBlock:
    ln_1, attn, ln_2, mlp = _block_parts(n)
    return layers.PostNormBlock(attn, ln_1, mlp, ln_2)


def _parallel(n: Sizes) -> layers.ParallelBlock:
    ln_1, attn, _, mlp = _block_parts(n)
    return layers.ParallelBlock(ln_1, attn, mlp)


def _parallel_post_norm(n: Sizes) -> layers.ParallelPostNormBlock:
    _, attn, norm, mlp = _block_parts(n)
    return layers.ParallelPostNormBlock(attn, mlp, norm)


def _frozen(make: Callable[[Sizes], Any], trained: Callable[[str], bool],
            inputs: Callable[[Sizes, Any], tuple]) -> Build:
    """A layer of which some parameters only are learned."""
    def build(n: Sizes, rng: np.random.Generator, device: str = "cpu") -> Case:
        case = _layer(make, inputs)(n, rng, device)
        module = case.forward.__self__                       # type: ignore[attr-defined]
        module.freeze(trained)
        return case._replace(parameters=module.flat.parameters)
    return build


def _head(n: Sizes, softcap: float = 0.0) -> layers.LanguageModelHead:
    return layers.LanguageModelHead(layers.Parameter(n.V, n.C, std=0.02), softcap)


def _head_loss(softcap: float) -> Build:
    def build(n: Sizes, rng: np.random.Generator, device: str = "cpu") -> Case:
        draw, head = Draw(rng), _head(n, softcap).initialise(device=device, dtype="float64")
        draw.parameters(head)
        inputs = (draw.normal(n.B, n.T, n.C), draw.targets(n.V, n.B, n.T))
        return Case(head.loss, head.loss_backward, _placed(inputs, device), head.parameters)
    return build


LAYERS: dict[str, Build] = {
    "Linear": _layer(lambda n: layers.Linear(n.C, n.D), lambda n, r: (r.normal(n.B, n.T, n.C),)),
    "Linear, frozen but for its bias": _frozen(lambda n: layers.Linear(n.C, n.D), lambda name: name == "bias",
                                               lambda n, r: (r.normal(n.B, n.T, n.C),)),
    "LoRALinear": _layer(lambda n: layers.LoRALinear(layers.Linear(n.C, n.D), n.H, 1.5 * n.H),
                         lambda n, r: (r.normal(n.B, n.T, n.C),)),
    "LoRALinear, frozen but for the addition": _frozen(
        lambda n: layers.LoRALinear(layers.Linear(n.C, n.D, bias=False), n.H, 0.7),
        lambda name: "lora" in name, lambda n, r: (r.normal(n.B, n.T, n.C),)),
    "Embedding": _layer(lambda n: layers.Embedding(n.V, n.C), lambda n, r: (r.tokens(n.V, n.B, n.T),)),
    "LayerNorm": _layer(lambda n: layers.LayerNorm(n.C), lambda n, r: (r.rows(n.B, n.T, n.C),)),
    "RMSNorm": _layer(lambda n: layers.RMSNorm(n.C), lambda n, r: (r.rows(n.B, n.T, n.C),)),
    "LearnedPosition": _layer(lambda n: layers.LearnedPosition(n.T + 3, n.C),
                              lambda n, r: (r.normal(n.B, n.T, n.C), range(2, n.T + 2))),
    "LearnedPosition, places of their own": _layer(
        lambda n: layers.LearnedPosition(n.T + 1, n.C),
        lambda n, r: (r.normal(n.B, n.T, n.C), r.tokens(n.T, n.B, n.T))),
    "SinusoidalPosition": _layer(lambda n: layers.SinusoidalPosition(),
                                 lambda n, r: (r.normal(n.B, n.T, n.C), range(n.T))),
    "SelfAttention": _layer(lambda n: _attention_layer(n, dropout=0.2),
                            lambda n, r: (r.normal(n.B, n.T, n.H * n.D), Key(1), None,
                                          r.key_mask(n.B, n.T))),
    "SelfAttention, segments": _layer(lambda n: _attention_layer(n),
                                      lambda n, r: (r.normal(n.B, n.T, n.H * n.D), None, None, None,
                                                    r.segments(n.B, n.T))),
    "SelfAttention, not causal": _layer(lambda n: _attention_layer(n, bias=False, causal=False),
                                        lambda n, r: (r.normal(n.B, n.T, n.H * n.D),)),
    "SelfAttention, one key head, rotary, interleaved": _layer(
        lambda n: _attention_layer(n, n_kv_head=1, head_dim=2 * n.C, rope_interleaved=True, proj_bias=False),
        lambda n, r: (r.normal(n.B, n.T, n.H * n.D), None, _angles(r, n.T, n.C))),
    "SelfAttention, qk_norm, rotary, attention dropout": _layer(
        lambda n: _attention_layer(n, head_dim=2 * n.D, qk_norm=1e-2, attention_dropout=0.3),
        lambda n, r: (r.normal(n.B, n.T, n.H * n.D), Key(2), _angles(r, n.B, 1, n.T, n.D))),
    "FeedForward": _layer(lambda n: layers.FeedForward(n.C, dropout=0.2),
                          lambda n, r: (r.normal(n.B, n.T, n.C), Key(1))),
    "FeedForward, gelu_erf": _layer(lambda n: layers.FeedForward(n.C, bias=False, activation="gelu_erf"),
                                    lambda n, r: (r.normal(n.B, n.T, n.C),)),
    "FeedForward, swiglu": _layer(lambda n: layers.FeedForward(n.C, n.D, activation="swiglu"),
                                  lambda n, r: (r.normal(n.B, n.T, n.C),)),
    "Dropout": _layer(lambda n: layers.Dropout(0.4), lambda n, r: (r.normal(n.B, n.T, n.C), Key(3))),
    "Block": _layer(_pre_norm, lambda n, r: (r.normal(n.B, n.T, n.H * n.D), Key(1))),
    "PostNormBlock": _layer(_post_norm, lambda n, r: (r.normal(n.B, n.T, n.H * n.D), Key(1))),
    "ParallelBlock": _layer(_parallel, lambda n, r: (r.normal(n.B, n.T, n.H * n.D), Key(1))),
    "ParallelPostNormBlock": _layer(_parallel_post_norm,
                                    lambda n, r: (r.normal(n.B, n.T, n.H * n.D), Key(1))),
    "Checkpointed": _layer(lambda n: layers.Checkpointed(_pre_norm(n)),
                           lambda n, r: (r.normal(n.B, n.T, n.H * n.D), Key(1))),
    "LanguageModelHead": _layer(_head, lambda n, r: (r.normal(n.B, n.T, n.C),)),
    "LanguageModelHead, capped": _layer(lambda n: _head(n, 1.5), lambda n, r: (r.normal(n.B, n.T, n.C),)),
    "LanguageModelHead, loss": _head_loss(0.0),
    "LanguageModelHead, loss, capped": _head_loss(1.5),
}

LLAMA: dict[str, Any] = {"norm": "rmsnorm", "activation": "swiglu", "position": "rotary", "bias": False,
                         "tie_word_embeddings": False}

MODELS: dict[str, Build] = {
    "GPT": _gpt(dropout=0.1),
    "GPT, logits": _gpt_logits,
    "GPT, no bias, gelu_erf, sinusoidal, checkpointed": _gpt(
        bias=False, activation="gelu_erf", position="sinusoidal", gradient_checkpointing=True, dropout=0.1),
    "GPT, as Llama": _gpt(**LLAMA, n_kv_head=1, head_dim=4, n_inner=7),
    "GPT, as Qwen 3, checkpointed": _gpt(**LLAMA, n_kv_head=1, head_dim=6, qk_norm=True, qkv_bias=True,
                                         gradient_checkpointing=True),
    "GPT, post-norm, no positions, untied, capped": _gpt(
        block="post", position="none", tie_word_embeddings=False, logit_softcap=2.0, dropout=0.1),
    "GPT, parallel, rotary, interleaved": _gpt(
        block="parallel", position="rotary", rope_interleaved=True, rope_scaling="linear", rope_factor=2.0,
        head_dim=4, attention_dropout=0.2),
    "GPT, its last block and norm alone": _gpt(
        lambda model: model.freeze(lambda name: name.startswith(("h.1", "ln_f"))), dropout=0.1),
    "GPT, LoRA": _gpt(lambda model: layers.add_lora(model, 2, 3.0, ("c_attn", "c_proj")), dropout=0.1),
    "GPT, as Llama, LoRA, checkpointed": _gpt(
        lambda model: layers.add_lora(model, 2, 3.0, ("c_attn", "c_fc")), **LLAMA, n_kv_head=1, head_dim=4,
        gradient_checkpointing=True),
    "SequenceClassifier": _classifier(dropout=0.1),
    "SequenceClassifier, as Llama": _classifier(**LLAMA, n_kv_head=1, head_dim=4, n_inner=7),
    "GPT, parallel, post-norm": _gpt(block="parallel_post", norm="rmsnorm", attn_proj_bias=False),
}

EXAMPLES: dict[str, Build] = OPS | LAYERS | MODELS
