"""From logits to a distribution to a token. On the host, in NumPy, one row a sequence."""

import numpy as np

from npgpt.errors import ConfigError


def next_token_probabilities(logits, temperature: float = 1.0, top_k: int | None = None,
                             top_p: float = 1.0) -> np.ndarray:
    """logits: (B, V)  →  the distribution to draw from: (B, V), float64, rows that sum to 1

    temperature: logits are divided by it; below 1 sharpens.
    top_k: only the k most likely tokens stay, and all that tie with the k-th.
    top_p: of those, only the smallest set of the most likely whose probabilities reach p (nucleus sampling,
    Holtzman et al. 2020); the most likely token always stays.
    Raises ConfigError.
    """
    if temperature <= 0:
        raise ConfigError(f"temperature must be above 0, not {temperature}; for the most likely token turn "
                          "sampling off (do_sample=False)")
    if top_k is not None and top_k < 1:
        raise ConfigError(f"top_k must be at least 1, not {top_k}")
    if not 0 < top_p <= 1:
        raise ConfigError(f"top_p must be above 0 and at most 1, not {top_p}")
    z = np.asarray(logits, np.float64) / temperature
    if top_k is not None and top_k < z.shape[-1]:
        kth = np.partition(z, -top_k, axis=-1)[:, -top_k, None]
        z = np.where(z < kth, -np.inf, z)
    p = np.exp(z - z.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    if top_p < 1:
        order  = np.argsort(-p, axis=-1, kind="stable")                       # most likely first
        ranked = np.take_along_axis(p, order, -1)
        ranked[np.cumsum(ranked, -1) - ranked >= top_p] = 0              # the set before it reached p already
        np.put_along_axis(p, order, ranked, -1)
        p /= p.sum(-1, keepdims=True)
    return p


def draw(probabilities, uniform) -> np.ndarray:
    """probabilities: (B, V)  uniform: (B,) in [0, 1)  →  tokens: (B,), by inverting the distribution"""
    cumulative = np.cumsum(probabilities, -1)
    tokens = (cumulative <= np.asarray(uniform)[:, None] * cumulative[:, -1:]).sum(-1)
    return np.minimum(tokens, probabilities.shape[-1] - 1)
