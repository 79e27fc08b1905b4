"""Where a sequence ends: with a token that says so, or as soon as its text holds one of some strings.

A string may span tokens, and may end in the middle of one. What counts is where it ends: in the newest
token. A string that was in the prompt already ends nothing, but one that the prompt begins and a new token
completes does.
"""

from typing import Any

import numpy as np

from npgpt.errors import ConfigError
from npgpt.generation.settings import GenerationSettings


class Ending:
    """Whether a token ends the sequence that it is added to.

    tokenizer: with token_bytes(id), and `id in tokenizer`.  Raises ConfigError if there are stop strings
    and no tokenizer.
    """

    def __init__(self, settings: GenerationSettings, tokenizer: Any = None):
        self._eos_token_ids = settings.eos_token_ids
        self._stops = [text.encode() for text in settings.texts_to_stop_at]
        if self._stops and tokenizer is None:
            raise ConfigError("stop_strings need the tokenizer: pass tokenizer=")
        self.tokenizer = tokenizer

    def __call__(self, sequences, rows, new) -> np.ndarray:
        """new[n] is added to sequences[rows[n]]: new, rows (N,), sequences (R, T)  →  bool (N,)"""
        ended = np.isin(new, self._eos_token_ids)
        if self._stops:
            ended |= [self._completes(sequences[row], int(token))
                      for row, token in zip(rows, new, strict=True)]
        return ended

    def _completes(self, sequence, token: int) -> bool:
        newest = text = self.tokenizer.token_bytes(token)
        needed = len(newest) + max(map(len, self._stops)) - 1      # no string that ends in it began earlier
        for id in reversed(sequence):
            if len(text) >= needed or id < 0:                                 # id < 0: padding
                break
            text = self.tokenizer.token_bytes(int(id)) + text
        before = len(text) - len(newest)
        return any(text.find(stop, max(0, before - len(stop) + 1)) >= 0 for stop in self._stops)
