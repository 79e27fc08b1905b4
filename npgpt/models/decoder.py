"""The body of a decoder: embeddings, causal blocks and the last norm; a head is for its children to add.

    x = wte[token] + wpe[place]        x = hₙ₋₁(… h₀(x))        ln_f(x)        n: n_layer

GPT-2 is the default; npgpt/models/config.py names what others do otherwise. Names and initial values are
transformers' for GPT-2: Normal(0, 0.02²), the projections that end in a residual addition scaled by
1/√(2·n_layer), for there are 2·n_layer of them, whose sum is to vary as much at any depth; biases 0, gains 1.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from npgpt.errors import ConfigError, DataError
from npgpt.generation.kv_cache import KVCache
from npgpt.interop.peft_files import write_adapter
from npgpt.layers import (
    Block,
    Checkpointed,
    Dropout,
    Embedding,
    FeedForward,
    LayerNorm,
    LearnedPosition,
    LoRALinear,
    Module,
    ParallelBlock,
    ParallelPostNormBlock,
    PostNormBlock,
    RMSNorm,
    RotaryPosition,
    SelfAttention,
    SinusoidalPosition,
    lora_layers,
)
from npgpt.layers.lora import ADDED
from npgpt.models.config import GPTConfig
from npgpt.ranges import is_whole
from npgpt.tensor import Key, array_module, to_device, to_numpy

IGNORE_INDEX = -100         # a target that does not count, as in PyTorch
CACHED = "forward with a KV cache"
SAVE_INSTEAD = "keep model.state_dict() and the code that makes it instead"


class Decoder(Module):
    """tokens: integers (B, T), T ≤ block_size  →  x: (B, T, C), what a head reads of each place.

    Tokens may also be given as embeddings, floats (B, T, C): those that model.wte.forward(tokens) gives, or
    with a soft prompt before them. Backward then returns their gradient.

    `key` (npgpt.tensor.Key) turns dropout on; without it nothing is dropped.
    `attention_mask`: bool or 0 and 1, (B, T), or (B, S) with the S − T positions of the cache before them; 0
    is padding, which nobody attends to and which counts no place: the first real token of a row stands at 0.
    In training it may tell packed texts apart: each has a number of its own, such as 1 1 1 2 2 3 3 0, begins
    at place 0 and sees nothing of the others.

    Its parts are wte, wpe (or None), drop, the blocks h[n], each with attn, mlp and norms, ln_f (or None);
    print(model) has all names. Another may take the place of each, with the same forward and backward:
    then `initialise` again, which makes what is new and keeps the rest.
    """

    def __init__(self, config: GPTConfig):
        if not isinstance(config, GPTConfig):
            raise ConfigError(f"a model is made of an npgpt.GPTConfig, and not of a {type(config).__name__}: "
                              "one that is trained is read by npgpt.load or from_pretrained")
        self.config = c = config
        self.wte  = Embedding(c.vocab_size, c.n_embd)
        self.wpe: LearnedPosition | SinusoidalPosition | None = None
        self.rotary: RotaryPosition | None = None
        if c.position == "learned":
            self.wpe = LearnedPosition(c.block_size, c.n_embd)
        elif c.position == "sinusoidal":
            self.wpe = SinusoidalPosition()
        elif c.position == "rotary":
            self.rotary = RotaryPosition(c.head_size, c.rope_theta, c.rope_scaling, c.rope_factor,
                                         c.rope_low_freq_factor, c.rope_high_freq_factor,
                                         c.rope_original_block_size)
        self.drop = Dropout(c.dropout)
        self.h: list = [make_block(c) for _ in range(c.n_layer)]
        if c.gradient_checkpointing:
            self.h = [Checkpointed(block) for block in self.h]
        self.ln_f = None if c.block in ("post", "parallel_post") else make_norm(c)     # those end with one

    def _head_shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Name → shape of the parameters that the configuration makes and that are not the body's."""
        return {}

    def check_as_configured(self, instead: str) -> None:
        """That the configuration alone would make this model, up to LoRA, for what knows nothing else of it.
        A part of another kind would be lost there, or be taken for what it is not.

        instead: what else to do, for the ConfigError that is raised.
        """
        made  = {name: parameter.shape for name, parameter in Decoder(self.config).parameters.items()}
        made |= self._head_shapes()
        own   = {name: parameter.shape for name, parameter in self.parameters.items()
                 if not name.endswith(ADDED)}
        odd   = [f"there is {which} parameter {name} of shape {shape}"
                 for which, these, those in (("a", own, made), ("no", made, own))
                 for name, shape in sorted(these.items() - those.items())]
        if found := self.own_part() or "".join(odd[:1]):
            raise ConfigError(f"the model's configuration does not tell that {found}: {instead}")

    def own_part(self) -> str:
        """The first part of another kind than the configuration makes, up to LoRA, in words; "" if none."""
        return _foreign_part("", Decoder(self.config), self)                  # of shapes, without arrays

    def save_adapter(self, path: str | Path, base_model: str | None = None) -> None:
        """Writes the model's LoRA, and a classifier's head, into a folder that PEFT reads: `write_adapter`.

        base_model: the name or folder of the model without it.  Raises ConfigError, also for a model with
        parts of your own, which that has not; CheckpointError.
        """
        arrays = {name: parameter.data for name, parameter in self.parameters.items()
                  if not parameter.frozen or name.endswith((".lora_A", ".lora_B", "score.weight"))}
        layers = lora_layers(self)
        if not layers:
            raise ConfigError("the model has no LoRA to save")
        self.check_as_configured(SAVE_INSTEAD)
        write_adapter(path, asdict(self.config), arrays, next(iter(layers.values())).alpha, base_model)

    def body_forward(self, tokens, key=None, kv_cache: KVCache | None = None, attention_mask=None):
        """tokens: (B, T), or embeddings, as from `checked`  →  x: (B, T, C), saved for `body_backward`"""
        if key is not None and not (isinstance(key, Key)
                                    and all(is_whole(n) and 0 <= n < 2**64 for n in key)):
            raise ConfigError("key must be an npgpt.Key, which turns dropout on, of whole numbers at least 0 "
                              f"and below 2⁶⁴, or None, not {key!r}")
        if key is not None and kv_cache is not None:
            raise ConfigError("a KV cache is for decoding, and a key turns training's dropout on: give one")
        places, key_mask, segments = self._places(tokens.shape[:2], kv_cache.length if kv_cache else 0,
                                                  attention_mask)
        s_wpe = s_ln_f = rotation = None
        embedded = tokens.ndim == 3
        x, s_wte = (tokens, None) if embedded else self.wte.forward(tokens)   # (B, T, C)
        if self.wpe:
            x, s_wpe = self.wpe.forward(x, places)
        if self.rotary:
            rotation = self.rotary.rotation(places, x)
        x, s_drop = self.drop.forward(x, key and key.child(0))
        lowest, s_h = -1 if embedded else self._lowest_that_learns(), []
        for n, block in enumerate(self.h):
            x, s = block.forward(x, key and key.child(1 + n), rotation=rotation, key_mask=key_mask,
                                 segments=segments, kv_cache=kv_cache and kv_cache.layers[n])
            s_h.append(s if n >= lowest else None)
        if self.ln_f:
            x, s_ln_f = self.ln_f.forward(x)
        return x, ((s_wte, s_wpe, s_drop) if lowest < 0 else None, s_h, s_ln_f, (x.shape, x.dtype))

    def body_backward(self, dx, saved, after_block: Callable[[Module], None] | None = None):
        """dx: (B, T, C), saved: from `body_forward`, which is used up: a block's is dropped once it has been
        passed.  Adds to the gradients of all that is learned.  Returns the gradient of embeddings, (B, T, C),
        where forward was given those, and None of tokens.

        after_block: called with each block when its gradients are complete.  Raises DataError for a dx of
        another shape.
        """
        s_embedding, s_h, s_ln_f, like = saved
        dx = self.checked_gradient(dx, like, "dx")
        if self.ln_f:
            dx = self.ln_f.backward(dx, s_ln_f)
        for block in reversed(self.h):
            if s_h[-1] is None:
                return None
            dx = block.backward(dx, s_h.pop())
            if after_block:
                after_block(block)
        if s_embedding is None:
            return None
        s_wte, s_wpe, s_drop = s_embedding
        dx = self.drop.backward(dx, s_drop)
        if self.wpe:
            dx = self.wpe.backward(dx, s_wpe)
        if s_wte is None:
            return dx
        self.wte.backward(dx, s_wte)
        return None

    def _lowest_that_learns(self) -> int:
        """The number of the lowest block that learns, −1 for the embeddings: backward goes no further down,
        so nothing is saved for it there.
        """
        if self.wte.learns or (self.wpe and self.wpe.learns):
            return -1
        return next((n for n, block in enumerate(self.h) if block.learns), len(self.h))

    def _places(self, shape, held: int, attention_mask) -> tuple[np.ndarray, Any, Any]:
        """The places of T tokens after `held` others, (T,), or (B, T) where rows differ in them; then, on the
        model's device, key_mask and segments for attention, each None where it would hide nothing.
        """
        B, T = shape
        if attention_mask is None:
            return np.arange(held, held + T), None, None
        mask = to_numpy(attention_mask)
        if mask.shape != (B, held + T):
            raise DataError(f"attention_mask must be of shape {B, held + T}, as the tokens with those in the "
                            f"cache, not {mask.shape}")
        if not (mask >= 0).all():                                             # one that is added to scores
            raise DataError("attention_mask must be 1 for tokens and 0 for padding, or the numbers of packed "
                            f"texts, not {mask.min()}")
        places = np.cumsum(mask != 0, 1) - 1                                  # real tokens before it
        if mask.max() > 1:
            new     = np.diff(mask, axis=1, prepend=0) != 0                   # where a text begins
            places -= np.maximum.accumulate(np.where(new, places, 0), 1)
            return np.maximum(places, 0)[:, held:], None, to_device(mask.astype(np.int64), self.flat.device)
        if mask.all():
            return np.arange(held, held + T), None, None
        return np.maximum(places, 0)[:, held:], to_device(mask.astype(bool), self.flat.device), None

    def checked(self, tokens, what="token", kv_cache=None):
        """The tokens, or targets, on the model's device. Those in host memory are checked, a GPU's taken as
        they are.  Embeddings in the place of tokens come in the model's type.
        Raises DataError for what is no token, or does not fit into the context.
        """
        if array_module(tokens) is np:
            try:
                tokens = np.asarray(tokens)
            except ValueError:
                raise DataError(f"{what}s must be integers of shape (B, T): rows of one length") from None
            if what == "token" and tokens.ndim == 3:
                if tokens.dtype.kind != "f" or tokens.shape[2] != self.config.n_embd:
                    raise DataError("embeddings in the place of tokens must be floats of shape (B, T, "
                                    f"{self.config.n_embd}), not {tokens.dtype} of shape {tokens.shape}")
            elif tokens.ndim != 2 or not np.issubdtype(tokens.dtype, np.integer):
                raise DataError(f"{what}s must be integers of shape (B, T), "
                                f"not {tokens.dtype} of shape {tokens.shape}")
            B, T = tokens.shape[:2]
            held = kv_cache.length if kv_cache else 0
            if self.config.block_size < held + T or B * T == 0:
                length = f"{T} after {held} in the cache" if held else T
                raise DataError(f"{what}s must be 1 to block_size = {self.config.block_size} long, "
                                f"not {length}, in a batch of at least 1, not {B}")
            if tokens.ndim == 2:
                wrong = (tokens < 0) | (tokens >= self.config.vocab_size)
                if what == "target":
                    wrong &= tokens != IGNORE_INDEX
                if wrong.any():
                    raise DataError(f"{what} {tokens[wrong][0]} is not in the vocabulary "
                                    f"of {self.config.vocab_size}")
        tokens = to_device(tokens, self.flat.device)
        _, first = next(self.named_parameters())
        return tokens if tokens.ndim == 2 else tokens.astype(first.data.dtype, copy=False)

    def checked_gradient(self, gradient, like: tuple[tuple[int, ...], Any], name: str):
        """The gradient on the model's device, in the type of what it is of.  like: shape and type of that.

        Raises DataError for what is no array of real numbers, or of another shape.
        """
        shape, dtype = like
        if getattr(gradient, "shape", None) != shape or gradient.dtype.kind in "cOSU":
            given = f"{gradient.dtype} of shape {gradient.shape}" if hasattr(gradient, "dtype") else \
                f"a {type(gradient).__name__}"
            raise DataError(f"{name} must be floats of shape {shape}, as what it is the gradient of, and not "
                            f"{given}")
        return to_device(gradient, self.flat.device).astype(dtype, copy=False)


def _foreign_part(name: str, plain: Any, own: Any) -> str:
    """What in `own` is of another kind than in `plain`, "" if nothing is.  name: where the two stand."""
    plain, own = (part.layer if isinstance(part, Checkpointed) else part for part in (plain, own))
    if isinstance(plain, list):
        inside = [(f"{name}.{n}", *pair) for n, pair in enumerate(zip_longest(plain, own))]
    elif not isinstance(plain, Module):
        added = plain is None and isinstance(own, Module)
        return f"{name} is there, a {type(own).__name__}" if added else ""
    elif isinstance(own, LoRALinear):
        return ""
    elif name and type(own) is not type(plain):
        return f"{name} is of class {type(own).__name__}" if own else f"there is no {name}"
    else:
        inside = [(f"{name}.{attribute}".strip("."), part, getattr(own, attribute, None))
                  for attribute, part in vars(plain).items()]
    return next((found for parts in inside if (found := _foreign_part(*parts))), "")


def take(saved: list, of: str) -> list:
    """What forward or loss saved; from then on it is only the caller's. Raises DataError.

    of: which of the two it is to be from; the first thing in `saved` is that name.
    """
    if not isinstance(saved, list):
        raise DataError(f"backward takes `saved`, the second thing that forward or loss gives, and not a "
                        f"{type(saved).__name__}")
    if saved[0] == CACHED:
        raise DataError("there is no backward through a KV cache, for what it holds was computed elsewhere: "
                        "call forward without one")
    if saved[0] != of:
        raise DataError(f"this `saved` is from {saved[0]}, and what is called here takes that from {of}: "
                        "backward goes with loss, and backward_logits with forward")
    if len(saved) == 1:
        raise DataError("a backward has used this `saved` up already: let forward or loss make another")
    taken = saved[1:]
    del saved[1:]
    return taken


def make_norm(c: GPTConfig) -> LayerNorm | RMSNorm:
    return RMSNorm(c.n_embd, c.norm_eps) if c.norm == "rmsnorm" else LayerNorm(c.n_embd, c.bias, c.norm_eps)


def make_block(c: GPTConfig) -> Block | PostNormBlock | ParallelBlock | ParallelPostNormBlock:
    """A block of the model's kind, of parts with the model's options."""
    proj_std = 0.02 / math.sqrt(2 * c.n_layer)
    attn = SelfAttention(c.n_embd, c.n_head, c.n_kv_head, c.head_dim, c.dropout, c.attention_dropout,
                         bias=c.bias if c.qkv_bias is None else c.qkv_bias,
                         proj_bias=c.bias if c.attn_proj_bias is None else c.attn_proj_bias,
                         qk_norm=c.norm_eps if c.qk_norm else None, rope_interleaved=c.rope_interleaved,
                         proj_std=proj_std)
    mlp  = FeedForward(c.n_embd, c.n_inner, c.dropout, c.bias, c.activation, proj_std)
    if c.block == "post":
        return PostNormBlock(attn, make_norm(c), mlp, make_norm(c))
    if c.block == "parallel":
        return ParallelBlock(make_norm(c), attn, mlp)
    if c.block == "parallel_post":
        return ParallelPostNormBlock(attn, mlp, make_norm(c))
    return Block(make_norm(c), attn, make_norm(c), mlp)
