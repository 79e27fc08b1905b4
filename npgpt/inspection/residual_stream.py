"""The residual stream of a text: what stands at every position before the first block and after each.

    x₀ = wte[token] + wpe[place]        xₙ₊₁ = blockₙ(xₙ)

Attention maps, the logit lens and saliency all read it. Nothing is dropped, and nothing is kept of a block
but what it hands on.
"""

from typing import Any, NamedTuple

import numpy as np

from npgpt.errors import DataError
from npgpt.models import GPT
from npgpt.tensor import to_device, to_numpy


class ResidualStream(NamedTuple):
    """states: n_layer + 1 arrays (B, T, C).  rotation: what the blocks' attention turns by, or None."""

    states: list[Any]
    rotation: Any


def residual_stream(model: GPT, tokens: Any) -> ResidualStream:
    """tokens: integers (B, T)  →  the states of each of B texts.  Raises DataError as `checked_tokens`."""
    tokens = checked_tokens(model, tokens, 2)
    places = np.arange(tokens.shape[1])
    x, _   = model.wte.forward(to_device(tokens, model.flat.device))          # (B, T, C)
    if model.wpe:
        x, _ = model.wpe.forward(x, places)
    rotation, states = model.rotary.rotation(places, x) if model.rotary else None, [x]
    for block in model.h:
        x, _ = block.forward(x, rotation=rotation)
        states.append(x)
    return ResidualStream(states, rotation)


def checked_tokens(model: GPT, tokens: Any, ndim: int) -> np.ndarray:
    """The tokens as an array on the host.  ndim: 1, of one text, or 2, of a batch.

    Raises DataError for a text that is empty or too long, or what is no token that the model knows.
    """
    tokens = to_numpy(tokens)
    if tokens.size == 0:
        raise DataError("the text is empty: give at least one token to look at")
    if tokens.ndim != ndim or tokens.dtype.kind not in "iu":
        raise DataError(f"tokens must be integers of shape {'(T,)' if ndim == 1 else '(B, T)'}, not "
                        f"{tokens.dtype} of shape {tokens.shape}")
    T, block_size = tokens.shape[-1], model.config.block_size
    if block_size < T:
        raise DataError(f"the text has {T:,} tokens, and the model reads at most {block_size:,}: shorten it")
    wrong = (tokens < 0) | (tokens >= model.config.vocab_size)
    if wrong.any():
        raise DataError(f"token {tokens[wrong][0]} is not in the model's vocabulary of "
                        f"{model.config.vocab_size:,}: the tokenizer belongs to another model")
    return tokens
