"""What generation gives, as transformers names it, and whom it tells of each token."""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np


@dataclass(frozen=True)
class GenerationOutput:
    """R continuations of B prompts: R = B · num_return_sequences, those of one prompt side by side.

    sequences: (R, T + new): prompts and continuations, filled up with pad_token_id.
    scores, logits: for each new token (R, V), or (B · num_beams, V) in beam search: what it was chosen by,
    and the model's own; of a sequence that has ended, the model's both times. In beam search the scores are
    log-probabilities, which the settings have changed; the beams' own are not in them.
    sequences_scores: (R,): what beam search ranks by.  beam_indices: (R, new): the row of `scores` in which
    each token was chosen, −1 after the end.
    """

    sequences: np.ndarray
    scores: tuple[np.ndarray, ...] | None = None
    logits: tuple[np.ndarray, ...] | None = None
    sequences_scores: np.ndarray | None = None
    beam_indices: np.ndarray | None = None


class Streamer(Protocol):
    """As transformers' BaseStreamer: gets the prompts, (R, T), then each step's new tokens, (R,), then the
    end.
    """

    def put(self, value: Any) -> None: ...

    def end(self) -> None: ...
