"""The surprisal of tokens after those before them: what every measure of a language model is made of.

    s(tₙ) = −ln p(tₙ | t₀ … tₙ₋₁) = lse(zₙ) − zₙ,ₜₙ            nats, in float64 whatever the model's type is

A **span** is a stretch of tokens of which the last few are scored; the others only stand before them. Spans
of different lengths share a batch: the shorter are filled up at their right, which a causal model cannot see
from where it is asked.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from npgpt.errors import CheckpointError, DataError
from npgpt.ranges import check_range, is_whole
from npgpt.tensor import array_module, to_numpy

TOKENS_AT_ONCE = 1 << 12        # of a batch, where its size is not given
LOGITS_AT_ONCE = 1 << 26        # 256 MiB in float32
WIDENED_AT_ONCE = 1 << 22       # logits in float64: 32 MiB

Progress = Callable[[int, int], None]
"""Is told how many of how many tokens were scored."""


class Model(Protocol):
    """All that is asked of a model: tokens (B, T) → logits (B, T, V), each of what comes next."""

    def forward(self, tokens: np.ndarray) -> tuple[Any, Any]: ...


class Span(NamedTuple):
    """tokens: (n + 1,), of which the model reads all but the last.  scored: how many of the last count."""

    tokens: np.ndarray
    scored: int


def surprisals(model: Model, spans: Sequence[Span], batch_size: int | None = None,
               progress: Progress | None = None) -> list[np.ndarray]:
    """For each span the surprisals of its scored tokens: (scored,), nats, float64. Those of a text, or of a
    row of tokens (T,), that fits into the model's context:

        surprisals(model, [Span(row, len(row) - 1) for row in tokens])        # (T − 1,) each

    The longest come first, so that lengths within a batch differ little. batch_size: spans that go through
    the model at once; None: one, then as many as `batch_size_for` allows of their length.
    Raises DataError for a token that the model does not know or a span of which nothing can be scored,
    CheckpointError where the model gives no finite number.
    """
    try:
        spans = [Span(np.asarray(tokens), scored) for tokens, scored in spans]
    except (TypeError, ValueError):
        raise DataError("a span is tokens and how many of the last are scored: surprisals(model, "
                        "[Span(row, len(row) - 1) for row in tokens])") from None
    for n, (tokens, scored) in enumerate(spans):
        if tokens.ndim != 1 or tokens.dtype.kind not in "iu" or not is_whole(scored) \
                or not 0 < scored < len(tokens):
            raise DataError(f"of a span's tokens, (n + 1,), the last 1 to n are scored: span {n} has tokens "
                            f"of shape {tokens.shape}, {tokens.dtype}, and {scored} are asked for")
    if batch_size is not None:
        check_range("batch_size", batch_size, least=1)
    result: list[np.ndarray] = [np.empty(0)] * len(spans)
    order = sorted(range(len(spans)), key=lambda n: -len(spans[n].tokens))
    first, size, done, total = 0, batch_size or 1, 0, sum(span.scored for span in spans)
    while first < len(order):
        batch  = order[first:first + size]
        first += size
        inputs = np.zeros((len(batch), len(spans[batch[0]].tokens) - 1), np.int64)           # (B, T)
        for row, n in enumerate(batch):
            inputs[row, :len(spans[n].tokens) - 1] = spans[n].tokens[:-1]
        logits = model.forward(inputs)[0]                                                    # (B, T, V)
        for row, n in enumerate(batch):
            tokens, scored = spans[n]
            end = len(tokens) - 1
            result[n] = _surprisal(logits[row, end - scored:end], tokens[end + 1 - scored:])
            done += scored
        if batch_size is None and first < len(order):
            size = batch_size_for(len(spans[order[first]].tokens) - 1, logits.shape[-1])
        if progress is not None:
            progress(done, total)
        del logits                                                # before the next batch's are made
    return result


def batch_size_for(length: int, vocab_size: int) -> int:
    """How many spans of `length` tokens go through a model at once, where nobody says."""
    return max(1, min(TOKENS_AT_ONCE // length, LOGITS_AT_ONCE // (length * vocab_size)))


def _surprisal(logits: Any, targets: np.ndarray) -> np.ndarray:
    """logits: (n, V)  targets: (n,)  →  (n,)"""
    V  = logits.shape[-1]
    xp = array_module(logits)
    if targets.max() >= V:
        raise DataError(f"token {targets.max()} is not in the model's vocabulary of {V}: evaluate on data "
                        "made with the model's own tokenizer")
    rows, parts = max(1, WIDENED_AT_ONCE // V), []
    for start in range(0, len(targets), rows):
        t = xp.asarray(targets[start:start + rows].astype(np.int64))
        with np.errstate(invalid="ignore"):                       # what is not finite is told below
            z   = logits[start:start + rows].astype(np.float64)                              # (rows, V)
            z  -= z.max(-1, keepdims=True)
            lse = xp.log(xp.exp(z).sum(-1))                                                  # (rows,)
        parts.append(to_numpy(lse - z[xp.arange(len(t)), t]))
    result = np.concatenate(parts)
    if not np.isfinite(result).all():
        raise CheckpointError("the model gives a token a probability that is no number or 0: its weights are "
                              "damaged, or too large for their type")
    return result
