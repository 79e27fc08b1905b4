"""Language modelling: how well a model foretells each token of a text from those before it.

    loss = (1/N) Σₙ s(tₙ)  nats a token    perplexity = e^loss    bits per byte = Σₙ s(tₙ) / (ln 2 · bytes)

Loss and perplexity compare models of one tokenizer only; bits per byte compares any, for the bytes of a text
are the same to all. Texts are longer than what a model reads at once, so a window slides over them:

    tokens      a b c d e f g h i        context 4, stride 2: each window foretells its last 2 tokens, the
    1st window  a b c d e                first one all of its own, and the last ends where the text does
    2nd window      c d e f g
    3rd window          e f g h i        every token is scored once, with at least context − stride before it

A small stride gives each token more to go by, and so a lower loss, at context/stride the work: a loss means
little without the two. A document's first token follows the end-of-text token, where there is one; elsewhere
nothing stands before it, and it is not scored.
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from npgpt.errors import ConfigError, DataError
from npgpt.evaluation.bootstrap import Interval, ratio_interval
from npgpt.evaluation.scoring import Model, Progress, Span, surprisals

ENOUGH_DOCUMENTS = 30       # for the bootstrap to draw from; of fewer, stretches of a context's length


class LanguageModelling(NamedTuple):
    """surprisals: of each document's scored tokens, the last of it, in nats.  tokens, bytes: scored.
    perplexity: inf where e^loss is no float64.  bits_per_byte: None where the tokens stand for no bytes.
    intervals: of 95 %, by the name of the number.  units: what the bootstrap drew, and how many.
    """

    surprisals: list[np.ndarray]
    tokens: int
    bytes: int
    loss: float
    perplexity: float
    bits_per_byte: float | None
    intervals: dict[str, Interval | None]
    units: tuple[str, int]


def measure(model: Model, documents: Sequence[np.ndarray], lengths: np.ndarray, context: int, stride: int,
            prefix: int | None = None, batch_size: int | None = None, seed: int = 0,
            resamples: int = 1000, progress: Progress | None = None) -> LanguageModelling:
    """documents: the ids of each, (n,).  lengths: id → bytes.  context: tokens read at once, at most the
    model's block_size.  prefix: the id that a document's first token follows.

    Raises ConfigError for a stride that skips tokens, DataError if there is nothing to score, and as
    `surprisals` does.
    """
    if not 1 <= stride <= context:
        raise ConfigError(f"stride must be 1 to the context of {context} tokens, not {stride}")
    if prefix is not None:
        documents = [np.concatenate([[prefix], tokens]) for tokens in documents]
    documents = [tokens for tokens in documents if len(tokens) > 1]
    if not documents:
        raise DataError("there is no token to score: give a text of at least two tokens")
    spans, counts = [], []
    for tokens in documents:
        own = [Span(tokens[start:stop], scored)
               for start, stop, scored in windows(len(tokens), context, stride)]
        spans += own
        counts.append(len(own))
    parts = iter(surprisals(model, spans, batch_size, progress))
    nats  = [np.concatenate([next(parts) for _ in range(count)]) for count in counts]
    return summary(nats, [lengths[tokens[1:]] for tokens in documents], context, seed, resamples)


def windows(length: int, context: int, stride: int) -> Iterator[tuple[int, int, int]]:
    """(start, stop, scored) of each window over `length` tokens: of tokens[start:stop], at most context + 1,
    the last `scored` are foretold. All but the first token are, once each."""
    done = min(context, length - 1)
    if done > 0:
        yield 0, done + 1, done
    while done < length - 1:
        last = min(done + stride, length - 1)
        yield last - context, last + 1, last - done
        done = last


def summary(nats: Sequence[np.ndarray], lengths: Sequence[np.ndarray], context: int | None, seed: int = 0,
            resamples: int = 1000, name: str = "documents") -> LanguageModelling:
    """nats, lengths: of each document's scored tokens.  context: how long the stretches are into which few
    documents are cut for the bootstrap; None: it draws whole documents even then.  name: of these."""
    tokens, size = sum(map(len, nats)), int(sum(own.sum() for own in lengths))
    total  = math.fsum(map(math.fsum, nats))
    loss   = total / tokens
    whole  = context is None or len(nats) >= ENOUGH_DOCUMENTS
    step   = max(map(len, nats)) if whole or context is None else context
    units  = [(n, start) for n, own in enumerate(nats) for start in range(0, len(own), step)]
    sums, counts, sizes = (np.array([function(own[n][start:start + step]) for n, start in units], np.float64)
                           for function, own in ((np.sum, nats), (len, nats), (np.sum, lengths)))
    loss_interval = ratio_interval(sums, counts, seed, resamples)
    byte_interval = ratio_interval(sums / math.log(2), sizes, seed, resamples)
    return LanguageModelling(
        list(nats), tokens, size, loss, _exp(loss), total / math.log(2) / size if size else None,
        {"loss": loss_interval,
         "perplexity": None if loss_interval is None else (_exp(loss_interval[0]), _exp(loss_interval[1])),
         "bits_per_byte": byte_interval},
        (name if whole else f"stretches of {context} tokens", len(units)))


def _exp(x: float) -> float:
    try:
        return math.exp(x)
    except OverflowError:
        return math.inf
