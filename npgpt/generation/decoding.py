"""Decoding: one token after another, each chosen from what the model says of those before it."""

from collections.abc import Callable, Iterator

import numpy as np

from npgpt.errors import ConfigError
from npgpt.generation.sampling import draw, next_token_probabilities
from npgpt.tensor.random import SAMPLING, Key, uniform


def stream(next_logits: Callable[[np.ndarray], np.ndarray], tokens, max_new_tokens: int,
           do_sample: bool = False, temperature: float = 1.0, top_k: int | None = None, top_p: float = 1.0,
           seed: int = 0) -> Iterator[np.ndarray]:
    """Yields the next token of every sequence, (B,), up to max_new_tokens times.

    next_logits: (B, T) → (B, V).  tokens: the prompts, (B, T), T ≥ 1.
    do_sample=False takes the most likely token. With do_sample=True tokens are drawn, with temperature, top_k
    and top_p as in npgpt.generation.sampling; the random number for the n-th token of sequence b is a
    function of (seed, n, b).  Raises ConfigError.
    """
    tokens = np.asarray(tokens)
    if tokens.ndim != 2 or tokens.size == 0:
        raise ConfigError(f"a prompt must have at least one token, in an array (B, T), not {tokens.shape}")
    if max_new_tokens < 0:
        raise ConfigError(f"max_new_tokens must not be negative: {max_new_tokens}")
    for n in range(max_new_tokens):
        logits = next_logits(tokens)
        if do_sample:
            p   = next_token_probabilities(logits, temperature, top_k, top_p)
            key = Key(seed, SAMPLING, step=n)
            new = draw(p, [uniform(key, b) for b in range(len(tokens))])
        else:
            new = np.argmax(logits, -1)
        tokens = np.concatenate([tokens, new[:, None].astype(tokens.dtype)], 1)
        yield new


def generate(next_logits: Callable[[np.ndarray], np.ndarray], tokens, max_new_tokens: int, *,
             eos_token_id: int | None = None, **settings) -> np.ndarray:
    """tokens: (B, T)  →  (B, T + new), new ≤ max_new_tokens: prompts and continuations

    The settings are those of `stream`. A sequence ends with eos_token_id, and is filled up with it while
    others of the batch go on.
    """
    tokens = np.asarray(tokens)
    ended  = np.zeros(len(tokens), bool)
    for new in stream(next_logits, tokens, max_new_tokens, **settings):
        if eos_token_id is not None:
            new = np.where(ended, eos_token_id, new)
            ended |= new == eos_token_id
        tokens = np.concatenate([tokens, new[:, None].astype(tokens.dtype)], 1)
        if ended.all():
            break
    return tokens
