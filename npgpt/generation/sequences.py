"""Prompts as one array, and sequences that grow token by token.

Prompts of different lengths are filled up on the left, so that the next token of all comes in the same
column. The model is told by attention_mask what is padding, and neither attends to it nor counts it as a
place. Here padding is PADDING instead of some token's id, which might also be in the text: so no rule about
tokens that were there before ever takes it for one.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from npgpt.errors import ConfigError
from npgpt.generation.kv_cache import KVCache
from npgpt.generation.settings import GenerationSettings

PADDING = -1


class Model(Protocol):
    """What generation asks of a model."""

    def next_logits(self, tokens, kv_cache: KVCache | None = None, attention_mask=None) -> np.ndarray:
        """tokens: (B, T)  attention_mask: bool (B, T), False is padding, or None  →  (B, V)

        kv_cache: holds what earlier calls read; only the tokens after that are read, and join it.
        """

    def new_cache(self, max_length: int) -> KVCache:
        """An empty cache for sequences of up to max_length tokens."""


class Columns:
    """A two-dimensional array that gains columns. Its room is doubled when used up, so that a further column
    does not copy those before it.
    """

    def __init__(self, array):
        self._room = np.array(array)                       # (R, at least length)
        self.length = self._room.shape[1]

    @property
    def array(self) -> np.ndarray:
        """(R, length), a view."""
        return self._room[:, :self.length]

    def append(self, column) -> None:
        if self.length == self._room.shape[1]:
            more = np.zeros((len(self._room), max(16, self.length)), self._room.dtype)
            self._room = np.concatenate([self._room, more], 1)
        self._room[:, self.length] = column
        self.length += 1

    def select(self, rows) -> None:
        """Row r becomes what row rows[r] was; there may be more rows than before, or fewer."""
        self._room = self._room[rows]


class Sequences:
    """The prompts and what follows them, PADDING in the place of padding, with the model's cache of them."""

    def __init__(self, model: Model, tokens, mask, max_length: int, use_cache: bool):
        self._model    = model
        self._tokens   = Columns(tokens if mask is None else np.where(mask, tokens, PADDING))
        self._mask     = None if mask is None else Columns(mask)
        self._kv_cache = model.new_cache(max_length) if use_cache else None

    @property
    def tokens(self) -> np.ndarray:
        """(R, T), a view."""
        return self._tokens.array

    def next_logits(self) -> np.ndarray:
        """(R, V), float64 from a float64 model, else float32"""
        if self._mask is None:
            logits = self._model.next_logits(self.tokens, self._kv_cache)
        else:
            logits = self._model.next_logits(np.maximum(self.tokens, 0), self._kv_cache, self._mask.array)
        return logits if logits.dtype == np.float64 else logits.astype(np.float32, copy=False)

    def first_logits(self, settings: GenerationSettings, rows) -> np.ndarray:
        """Reads each prompt once, and then goes on with the rows `rows` of them: (R,)  →  (R, V)

        Raises ConfigError for settings that name a token which the model does not have.
        """
        logits = self.next_logits()
        settings.check_vocabulary(logits.shape[1])
        self.select(rows)
        return logits[rows]

    def append(self, new) -> None:
        """new: (R,)"""
        self._tokens.append(new)
        if self._mask is not None:
            self._mask.append(True)

    def select(self, rows) -> None:
        """Row r becomes what row rows[r] was; there may be more rows than before, or fewer."""
        self._tokens.select(rows)
        if self._mask is not None:
            self._mask.select(rows)
        if self._kv_cache is not None:
            self._kv_cache.select(rows)


def as_one_array(prompts, attention_mask=None, pad_token_id: int | None = None):
    """prompts: an array (B, T), or B lists of ids  →  tokens int64 (B, T), mask bool (B, T) or None

    Lists of different lengths are filled up on the left with pad_token_id. attention_mask: of an array, 1 for
    tokens and 0 for padding, which must be on the left. The mask is None where there is no padding.
    Raises ConfigError.
    """
    ragged = attention_mask is None and not isinstance(prompts, np.ndarray) \
        and isinstance(prompts, Sequence) and len({_length(prompt) for prompt in prompts}) > 1
    if ragged:
        if not all(_length(prompt) > 0 for prompt in prompts):
            raise ConfigError("every prompt must have at least one token")
        if pad_token_id is None:
            raise ConfigError("prompts of different lengths are filled up: say with what by pad_token_id "
                              "(or eos_token_id)")
        T = max(map(len, prompts))
        attention_mask = np.array([[n >= T - len(prompt) for n in range(T)] for prompt in prompts])
        prompts = [[pad_token_id] * (T - len(prompt)) + list(prompt) for prompt in prompts]
    tokens = np.asarray(prompts)
    if tokens.ndim != 2 or tokens.size == 0:
        raise ConfigError(f"a prompt must have at least one token, in an array (B, T), not {tokens.shape}")
    if not np.issubdtype(tokens.dtype, np.integer):
        raise ConfigError(f"a prompt's tokens must be integers, not {tokens.dtype}")
    tokens = tokens.astype(np.int64, copy=False)           # what follows may be a larger number than any here
    if attention_mask is None:
        return tokens, None
    mask = np.asarray(attention_mask)
    if mask.shape != tokens.shape or not ((mask == 0) | (mask == 1)).all():
        raise ConfigError("attention_mask must be zeros and ones of the shape of the tokens, "
                          f"{tokens.shape}, not {mask.dtype} of shape {mask.shape}")
    mask = mask.astype(bool)
    if not mask[:, -1].all() or (mask[:, :-1] & ~mask[:, 1:]).any():
        raise ConfigError("attention_mask must have its zeros, for padding, on the left of every prompt, "
                          "and no prompt may be padding alone")
    if (tokens[mask] < 0).any():
        raise ConfigError(f"a prompt's tokens must be ids, not {tokens[mask].min()}")
    return tokens, None if mask.all() else mask


def _length(prompt) -> int:
    return len(prompt) if isinstance(prompt, Sequence | np.ndarray) else -1
