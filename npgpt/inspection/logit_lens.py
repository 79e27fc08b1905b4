"""The logit lens (nostalgebraist 2020): what the model would say, if it had to answer after each layer.

    pₙ(· | position t) = softmax(head(ln_f(xₙ,ₜ)))        n = 0 … n_layer

Every block adds to one stream of vectors (residual_stream.py), and the head reads what the last leaves there.
The lens lets the head read it earlier, through the model's own final norm: layer 0 is the embedding, the last
layer the model's prediction. A model that norms after each block (post-norm) has no final norm, and none is
put in. An early layer that reads as nonsense may well hold what later ones need, in other directions than the
head's: the lens shows when a guess becomes legible, not when it is known (Belrose et al. 2023).

Surprisal is what the last layer says of the token that really came:  s = −log₂ p(tokenₜ₊₁), in bits: a token
of probability 1/2 costs one, of 1/1024 ten. The first token follows nothing and has none.
"""

from typing import Any, NamedTuple

import numpy as np

from npgpt.errors import CheckpointError, DataError
from npgpt.inspection.residual_stream import ResidualStream, checked_tokens
from npgpt.models import GPT
from npgpt.ranges import check_range
from npgpt.tensor import to_numpy

LOGITS_AT_ONCE = 1 << 22        # in float64: 32 MiB


class LogitLens(NamedTuple):
    """Of L + 1 layers, the embedding first, and T positions of one text.

    tokens, probability: (L + 1, T, K), the K best next tokens, the best first.
    bits, rank: (L + 1, T): −log₂ of the probability of the token that really came next, and how many tokens
    were held more likely. After the last position, of the last layer's best guess.
    """

    tokens: np.ndarray
    probability: np.ndarray
    bits: np.ndarray
    rank: np.ndarray

    @property
    def surprisal(self) -> np.ndarray:
        """(T − 1,): of the second token to the last, in bits."""
        return self.bits[-1, :-1]


def logit_lens(model: GPT, stream: ResidualStream, tokens: Any, best: int = 5) -> LogitLens:
    """tokens: (T,), the text of which `stream` is.  best: K, at most the vocabulary.

    Raises CheckpointError where the model gives no finite number, DataError as `residual_stream`, and for the
    stream of another text, ConfigError for a best below 1.
    """
    tokens = checked_tokens(model, tokens, 1)
    check_range("best", best, least=1)
    if stream.states[0].shape[:2] != (1, len(tokens)):
        raise DataError(f"the stream is of tokens {stream.states[0].shape[:2]}, and not of this text's "
                        f"{(1, len(tokens))}")
    best  = min(best, model.config.vocab_size)
    guess = _layer(model, stream.states[-1][:, -1:], tokens[-1:], 1)[0][0]
    following = np.concatenate([tokens[1:], guess])                           # (T,)
    rows = [_layer(model, x, following, best) for x in stream.states]
    return LogitLens(*(np.stack(part) for part in zip(*rows, strict=True)))


def _layer(model: GPT, x, following: np.ndarray, best: int) -> tuple[np.ndarray, ...]:
    """x: (1, T, C)  following: (T,)  →  tokens, probability: (T, K)  bits, rank: (T,)"""
    size  = max(1, LOGITS_AT_ONCE // model.config.vocab_size)
    parts = []
    if model.ln_f:
        x, _ = model.ln_f.forward(x)
    for start in range(0, len(following), size):
        logits, _ = model.lm_head.forward(x[:, start:start + size])
        parts.append(_read(to_numpy(logits)[0].astype(np.float64), following[start:start + size], best))
    top, probability, bits, rank = (np.concatenate(part) for part in zip(*parts, strict=True))
    return top, probability, bits, rank


def _read(z: np.ndarray, following: np.ndarray, best: int) -> tuple[np.ndarray, ...]:
    """z: (n, V)  following: (n,)"""
    with np.errstate(invalid="ignore"):                           # what is not finite is told below
        z   = z - z.max(-1, keepdims=True)
        log = z - np.log(np.exp(z).sum(-1, keepdims=True))        # ln p
    if not np.isfinite(log).all():
        raise CheckpointError("the model gives a token a probability that is no number: its weights are "
                              "damaged, or too large for their type")
    top  = np.argsort(-log, -1, kind="stable")[:, :best] if best == log.shape[-1] else _largest(log, best)
    came = np.take_along_axis(log, following[:, None], -1)                                 # (n, 1)
    rank = (log > came).sum(-1)
    return top, np.exp(np.take_along_axis(log, top, -1)), -came[:, 0] / np.log(2), rank


def _largest(values: np.ndarray, count: int) -> np.ndarray:
    """Where the largest of each row are, the largest first."""
    some  = np.argpartition(-values, count, -1)[:, :count]
    order = np.argsort(-np.take_along_axis(values, some, -1), -1, kind="stable")
    return np.take_along_axis(some, order, -1)
