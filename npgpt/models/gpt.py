"""GPT (Radford et al. 2018, 2019): a stack of causal blocks that predicts each next token.

    x = wte[token] + wpe[place]        x = h_n(… h_0(x))        logits = ln_f(x) wteᵀ

The head is tied: the table that turns tokens into vectors also scores them (Press & Wolf 2017). Names and
initial values are GPT-2's: Normal(0, 0.02²), the projections that end in a residual addition scaled by
1/√(2·n_layer), for there are 2·n_layer of them; biases 0, gains 1.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from npgpt.errors import ConfigError, DataError
from npgpt.generation import decoding
from npgpt.generation.kv_cache import KVCache
from npgpt.layers import (
    Block,
    Checkpointed,
    Dropout,
    Embedding,
    LayerNorm,
    LearnedPosition,
    Module,
    SinusoidalPosition,
)
from npgpt.layers.feed_forward import ACTIVATIONS
from npgpt.ops.linear import linear_backward, linear_forward
from npgpt.ops.linear_cross_entropy import linear_cross_entropy_backward, linear_cross_entropy_forward
from npgpt.tensor import array_module, to_device, to_numpy

IGNORE_INDEX = -100         # a target that does not count, as in PyTorch


@dataclass(frozen=True)
class GPTConfig:
    """The shape of a GPT; the defaults are GPT-2 124M. Raises ConfigError for a shape that cannot be."""

    vocab_size: int = 50257
    block_size: int = 1024                  # the longest sequence, in tokens
    n_layer: int = 12
    n_head: int = 12
    n_embd: int = 768
    dropout: float = 0.0                    # on the embeddings and on what each block adds
    bias: bool = True                       # in linear maps and layer norms
    activation: str = "gelu_tanh"           # or gelu_erf, relu
    position: str = "learned"               # or sinusoidal
    gradient_checkpointing: bool = False    # keep each block's input only: less memory, a third more work

    def __post_init__(self):
        for name in ("vocab_size", "block_size", "n_layer", "n_head", "n_embd"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.n_embd % self.n_head:
            raise ConfigError(f"n_embd must be a multiple of n_head, so that heads are of one size: "
                              f"{self.n_embd} is no multiple of {self.n_head}")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout must be at least 0 and below 1, not {self.dropout}")
        for name, allowed in (("activation", tuple(ACTIVATIONS)), ("position", ("learned", "sinusoidal"))):
            if getattr(self, name) not in allowed:
                raise ConfigError(f"{name} must be {' or '.join(allowed)}, not {getattr(self, name)!r}")

    @property
    def flops_per_token(self) -> int:
        """Operations of forward and backward, a token of a sequence of block_size tokens: 6 for each weight
        of a matrix product, and attention's 12 L C T, as if nothing were hidden (Chowdhery et al. 2022, B).
        """
        L, C, T = self.n_layer, self.n_embd, self.block_size
        return 6 * (12 * L * C**2 + self.vocab_size * C) + 12 * L * C * T


class GPT(Module):
    """tokens: integers (B, T), T ≤ block_size.  `forward` gives logits, `loss` their cross-entropy.

    `key` (npgpt.tensor.Key) turns dropout on; without it nothing is dropped.
    """

    def __init__(self, config: GPTConfig, seed: int = 1337, device: str = "cpu", dtype: str = "float32",
                 data: Any = None):
        self.config = c = config
        proj_std = 0.02 / math.sqrt(2 * c.n_layer)
        self.wte  = Embedding(c.vocab_size, c.n_embd)
        self.wpe: LearnedPosition | SinusoidalPosition = \
            LearnedPosition(c.block_size, c.n_embd) if c.position == "learned" else SinusoidalPosition()
        self.drop = Dropout(c.dropout)
        self.h: list = [Block(c.n_embd, c.n_head, c.dropout, c.bias, c.activation, proj_std)
                        for _ in range(c.n_layer)]
        if c.gradient_checkpointing:
            self.h = [Checkpointed(block) for block in self.h]
        self.ln_f = LayerNorm(c.n_embd, c.bias)
        self.initialise(seed, device, dtype, data)

    def replica(self) -> "GPT":
        """A GPT on the very same parameters with gradients of its own: what another thread's rank trains."""
        flat = self.flat
        return GPT(self.config, device=flat.device, dtype=str(flat.data.dtype), data=flat.data)

    def forward(self, tokens, key=None, kv_cache: KVCache | None = None):
        """tokens: (B, T)  →  logits: (B, T, vocab_size), saved for `backward_logits`

        kv_cache: holds what earlier calls read; the tokens are those that follow, and join it. It is for
        decoding: without a key, and with no backward.
        """
        x, body = self._body_forward(self._checked(tokens, kv_cache=kv_cache), key, kv_cache)
        logits, head = linear_forward(x, self.wte.weight.data.T)
        return logits, (body, head)

    def backward_logits(self, dlogits, saved) -> None:
        """dlogits: (B, T, vocab_size), saved: from `forward`.  Adds to every gradient."""
        body, head = saved
        dx, dweight, _ = linear_backward(dlogits, head)
        self.wte.weight.add_grad(dweight.T)
        self._body_backward(dx, body)

    def loss(self, tokens, targets, key=None, num_items_in_batch: int | None = None):
        """tokens, targets: (B, T)  →  mean cross-entropy over targets ≠ −100: 0-d, nats; saved for `backward`

        num_items_in_batch: what to divide the sum by instead, where the batch is part of a larger one. The
        losses and gradients of the parts then add up to those of the whole.
        """
        tokens, targets = self._checked(tokens), self._checked(targets, "target")
        if tokens.shape != targets.shape:
            raise DataError(f"targets must have the shape of tokens, {tokens.shape}, not {targets.shape}")
        x, body = self._body_forward(tokens, key)
        loss, head = linear_cross_entropy_forward(x, self.wte.weight.data, targets, num_items_in_batch)
        return loss, (body, head)

    def backward(self, saved, dloss=1.0) -> None:
        """saved: from `loss`.  Adds to every gradient."""
        body, head = saved
        dloss = array_module(self.flat.data).asarray(dloss, self.flat.data.dtype)
        dx, dweight = linear_cross_entropy_backward(dloss, head, out=self.wte.weight.unwritten_grad)
        self.wte.weight.add_grad(dweight)
        self._body_backward(dx, body)

    def next_logits(self, tokens, kv_cache: KVCache | None = None, attention_mask=None):
        """tokens: (B, T), of which the last block_size are read  →  logits of the next token: NumPy (B, V)

        kv_cache: holds what earlier calls read of the same sequence; only the tokens after that are read, and
        join it. A sequence longer than block_size is read without it: each further token moves all that are
        read to other places, and the keys held were computed in the old ones.
        attention_mask: (B, T), as in `forward`. Padding counts in T.
        """
        if tokens.shape[1] > self.config.block_size:
            tokens, kv_cache = tokens[:, -self.config.block_size:], None
            attention_mask = None if attention_mask is None else attention_mask[:, -self.config.block_size:]
        elif kv_cache:
            tokens = tokens[:, kv_cache.length:]
        x, _ = self._body_forward(self._checked(tokens, kv_cache=kv_cache), None, kv_cache)
        logits, _ = linear_forward(x[:, -1], self.wte.weight.data.T)
        return to_numpy(logits)

    def decoder(self) -> Callable[..., np.ndarray]:
        """`next_logits` with a cache of its own: for one batch of sequences, asked again as they grow."""
        return functools.partial(self.next_logits, kv_cache=self.new_cache(self.config.block_size))

    def new_cache(self, max_length: int) -> KVCache:
        """An empty cache for a batch of sequences of up to max_length tokens, and at most block_size."""
        return KVCache(self.config.n_layer, min(max_length, self.config.block_size))

    def generate(self, tokens, max_new_tokens: int | None = None, **settings):
        """tokens: (B, T), or B lists of ids of different lengths  →  (B, T + new): prompts and continuations

        The settings are transformers': max_length, do_sample, temperature, top_k, top_p, num_beams,
        eos_token_id, attention_mask, streamer, …; see npgpt.generation.settings and decoding.generate.
        """
        return decoding.generate(self, tokens, max_new_tokens=max_new_tokens, **settings)

    def _body_forward(self, tokens, key, kv_cache=None):
        x, s_wte  = self.wte.forward(tokens)                                  # (B, T, C)
        x, s_wpe  = self.wpe.forward(x, kv_cache.length if kv_cache else 0)
        x, s_drop = self.drop.forward(x, key and key.child(0))
        s_h = []
        for n, block in enumerate(self.h):
            x, s = block.forward(x, key and key.child(1 + n), kv_cache=kv_cache and kv_cache.layers[n])
            s_h.append(s)
        x, s_ln_f = self.ln_f.forward(x)
        return x, (s_wte, s_wpe, s_drop, s_h, s_ln_f)

    def _body_backward(self, dx, saved) -> None:
        s_wte, s_wpe, s_drop, s_h, s_ln_f = saved
        dx = self.ln_f.backward(dx, s_ln_f)
        for block, s in zip(reversed(self.h), reversed(s_h), strict=True):
            dx = block.backward(dx, s)
        dx = self.drop.backward(dx, s_drop)
        self.wte.backward(self.wpe.backward(dx, s_wpe), s_wte)

    def _checked(self, tokens, what="token", kv_cache=None):
        """The tokens on the model's device. Those in host memory are checked, a GPU's taken as they are."""
        if array_module(tokens) is np:
            tokens = np.asarray(tokens)
            if tokens.ndim != 2 or not np.issubdtype(tokens.dtype, np.integer):
                raise DataError(f"{what}s must be integers of shape (B, T), "
                                f"not {tokens.dtype} of shape {tokens.shape}")
            B, T = tokens.shape
            held = kv_cache.length if kv_cache else 0
            if self.config.block_size < held + T or B * T == 0:
                length = f"{T} after {held} in the cache" if held else T
                raise DataError(f"{what}s must be 1 to block_size = {self.config.block_size} long, "
                                f"not {length}, in a batch of at least 1, not {B}")
            wrong = (tokens < 0) | (tokens >= self.config.vocab_size)
            if what == "target":
                wrong &= tokens != IGNORE_INDEX
            if wrong.any():
                raise DataError(f"{what} {tokens[wrong][0]} is not in the vocabulary "
                                f"of {self.config.vocab_size}")
        return to_device(tokens, self.flat.device)
