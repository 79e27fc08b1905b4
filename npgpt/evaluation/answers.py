"""Language modelling of answers: how well a model foretells what it is taught of records, and no more.

What counts is what npgpt/data/examples.py says: of a pair the completion and its end, of a conversation
each of the assistant's answers to its end. The masked ratio is the share of tokens that do not count.
"""

from typing import NamedTuple

import numpy as np

from npgpt.data.examples import Examples
from npgpt.errors import DataError
from npgpt.evaluation.language_modelling import LanguageModelling, summary
from npgpt.evaluation.scoring import Model, Progress, Span, surprisals


class Answers(NamedTuple):
    """tokens: of each example, to the last that counts: (n,).  counted: which do, (n,) bool, never the first.
    masked_ratio: of these."""

    tokens: list[np.ndarray]
    counted: list[np.ndarray]
    masked_ratio: float


def answers_of(examples: Examples, limit: int | None = None) -> Answers:
    """limit: of tokens that count, the first. Raises DataError if there is none."""
    counts = examples.counted & (limit is None or np.cumsum(examples.counted) <= limit)
    tokens, counted = [], []
    for start, stop in zip(examples.starts[:-1].tolist(), examples.starts[1:].tolist(), strict=True):
        if counts[start:stop].any():
            last = start + int(np.flatnonzero(counts[start:stop])[-1])
            tokens.append(examples.tokens[start:last + 1].astype(np.int64))
            counted.append(counts[start:last + 1])
    if not tokens:
        raise DataError("there is no answer to score: give records whose answers the model can read whole")
    return Answers(tokens, counted, 1 - float(np.concatenate(counted).mean()))


def measure(model: Model, answers: Answers, lengths: np.ndarray, batch_size: int | None = None, seed: int = 0,
            resamples: int = 1000, progress: Progress | None = None) -> LanguageModelling:
    """lengths: id → bytes. Raises as `surprisals` does."""
    first = [int(own.argmax()) for own in answers.counted]
    spans = [Span(tokens, len(tokens) - n) for tokens, n in zip(answers.tokens, first, strict=True)]
    nats  = [own[counted[n:]] for own, counted, n in
             zip(surprisals(model, spans, batch_size, progress), answers.counted, first, strict=True)]
    sizes = [lengths[tokens[counted]] for tokens, counted in
             zip(answers.tokens, answers.counted, strict=True)]
    return summary(nats, sizes, None, seed, resamples, "records")
