"""Input-gradient saliency: which earlier tokens a prediction hangs on. With eₛ the embedding of the token at
position s (its row of wte) and y the token whose prediction is asked about, at position n:

    gₛ = ∂ log p(y | tokens before n) / ∂eₛ        (C,)        s < n

    sensitivity   ‖gₛ‖        how fast the log-probability changes, in the direction that changes it most,
                              per unit of length of a small push of eₛ (Simonyan et al. 2013; for text Li et
                              al. 2016)
    contribution  gₛ · eₛ     to first order, what the log-probability would lose if eₛ were shrunk to nothing
                              (gradient × input, Denil et al. 2014, Shrikumar et al. 2016): above 0 the token
                              speaks for y, below 0 against it.  nats

Both are first-order: they say what a small change would do, in a function that bends. A position is added to
eₛ, or turns what is made of it, so the gradient of the sum is that of eₛ. Later tokens have none: causality.

The derivation is the model's own backward pass, begun not at a loss but at log p = z_y − log Σⱼ e^zⱼ, whose
gradient in the logits z is  dz = 1_y − softmax(z).
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from npgpt.errors import DataError
from npgpt.inspection.residual_stream import checked_tokens
from npgpt.models import GPT
from npgpt.ops.softcap import softcap_backward
from npgpt.ops.softmax import softmax_forward
from npgpt.tensor import array_module, to_device, to_numpy

TOKENS_AT_ONCE = 256            # whose activations are held at a time

Progress = Callable[[int, int], None]
"""Is told how many of how many predictions were explained."""


class Saliency(NamedTuple):
    """sensitivity, contribution: (N, T), a row a target; 0 from its position on."""

    sensitivity: np.ndarray
    contribution: np.ndarray


def saliency(model: GPT, tokens: Any, targets: Sequence[tuple[int, int]],
             progress: Progress | None = None) -> Saliency:
    """tokens: (T,)  targets: N pairs of a position 1 … T and the token asked about there; T is what follows.

    The model's gradients stay as they are. Raises DataError for a text as `residual_stream` does, or for a
    position or a token out of range.
    """
    tokens = checked_tokens(model, tokens, 1)
    T, V = len(tokens), model.config.vocab_size
    for position, token in targets:
        if not 1 <= position <= T:
            raise DataError(f"a target's position must be 1 to {T}, for the text has {T:,} "
                            f"token{'s' * (T > 1)}, not {position}")
        if not 0 <= token < V:
            raise DataError(f"token {token} is not in the model's vocabulary of {V:,}")
    worker = _input_only(model)
    result = Saliency(np.zeros((len(targets), T)), np.zeros((len(targets), T)))
    order  = sorted(range(len(targets)), key=lambda n: -targets[n][0])
    done   = 0
    while done < len(order):
        end   = targets[order[done]][0]                                       # the longest prefix left
        batch = order[done:done + max(1, TOKENS_AT_ONCE // end)]
        e, _  = worker.wte.forward(to_device(np.tile(tokens[:end], (len(batch), 1)), worker.flat.device))
        g     = _input_gradients(worker, e, [targets[n] for n in batch])      # (N, end, C), as e
        result.sensitivity[batch, :end]  = np.sqrt((g * g).sum(-1))
        result.contribution[batch, :end] = (g * to_numpy(e)).sum(-1)
        done += len(batch)
        if progress is not None:
            progress(done, len(order))
    return result


def _input_only(model: GPT) -> GPT:
    """The model with gradients of its own, on the same arrays, whose backward computes those of one small
    parameter alone (one must be learned), on its way down to the embeddings.
    """
    worker = model.replica()
    sizes  = {name: parameter.data.size for name, parameter in worker.parameters.items()}
    small  = min(sizes, key=sizes.__getitem__)
    worker.freeze(lambda name: name == small)
    return worker


def _input_gradients(model: GPT, embeddings: Any, targets: list[tuple[int, int]]) -> np.ndarray:
    """embeddings: (N, T, C)  targets: N pairs  →  g: (N, T, C), float64.  Overwrites the model's gradients.

    All prefixes go through the model at once, with the tokens after them, which none of them sees.
    """
    x, saved = model.body_forward(embeddings)
    xp   = array_module(x)
    rows = xp.arange(len(x)), xp.asarray([position - 1 for position, _ in targets])   # which predict them
    dx   = xp.zeros_like(x)
    dx[rows] = _head_gradient(model, x[rows], [token for _, token in targets])
    model.zero_grad()
    return to_numpy(model.body_backward(dx, saved)).astype(np.float64)


def _head_gradient(model: GPT, x: Any, tokens: list[int]) -> Any:
    """x: (N, C), what the head reads  →  ∂ log p(token)/∂x: (N, C)"""
    xp = array_module(x)
    logits, (_, capped) = model.lm_head.forward(x[None])
    p, _ = softmax_forward(logits[0])                                         # (N, V)
    dz   = -p
    dz[xp.arange(len(tokens)), xp.asarray(tokens)] += 1
    if capped:
        dz = softcap_backward(dz, capped)
    return dz @ model.lm_head.weight.data
