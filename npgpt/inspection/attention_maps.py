"""Attention maps: which positions each head looks at (Bahdanau et al. 2015, figure 3; Vig 2019 for GPT-2).

    P = softmax(Q Kᵀ/√D + mask)        row t: how position t spreads its attention over the positions s ≤ t

A block's attention keeps no P (npgpt/ops/attention.py), so it is made again here from what the block read.
A map shows where a head looked, not what it did with what it found there: a weight on a position whose value
is small, or which later layers ignore, moves nothing (Jain & Wallace 2019). Heads with nothing to look for
often rest on the first position (Xiao et al. 2023).
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from npgpt.errors import ConfigError
from npgpt.inspection.residual_stream import ResidualStream
from npgpt.layers import Checkpointed, SelfAttention
from npgpt.layers.attention import split_heads
from npgpt.layers.block import Block, ParallelBlock, ParallelPostNormBlock, PostNormBlock
from npgpt.models import GPT
from npgpt.ops.attention import attention_scores
from npgpt.ops.rotary import rotary_forward
from npgpt.ops.softmax import softmax_forward
from npgpt.tensor import to_numpy

NORM_FIRST, NORM_LAST = Block | ParallelBlock, PostNormBlock | ParallelPostNormBlock


def attention_maps(model: GPT, stream: ResidualStream) -> Iterator[np.ndarray]:
    """P of one layer after the other: (B, H, T, T) each, rows that sum to 1, 0 above the diagonal

    Raises ConfigError for a block or attention of another class than npgpt's own, of which it could not tell.
    """
    blocks = [block.layer if isinstance(block, Checkpointed) else block for block in model.h]
    for n, block in enumerate(blocks):
        if not isinstance(block, NORM_FIRST | NORM_LAST):
            raise ConfigError(f"h.{n} is a {type(block).__name__}, and what attention reads in it is not "
                              "known: put the block itself in its place")
        if getattr(type(block.attn), "forward", None) is not SelfAttention.forward:
            raise ConfigError(f"h.{n}.attn is a {type(block.attn).__name__}, and may look elsewhere than the "
                              "SelfAttention that maps are made of: have it tell its own")
    for block, x in zip(blocks, stream.states[:-1], strict=True):
        if isinstance(block, NORM_FIRST):                                     # the others give it x itself
            x, _ = block.ln_1.forward(x)
        yield to_numpy(_probabilities(block.attn, x, stream.rotation))


def _probabilities(attn: Any, x: Any, rotation: Any) -> Any:
    """x: (B, T, C), what attention reads  →  P: (B, H, T, T)"""
    qkv, _  = attn.c_attn.forward(x)
    q, k, _ = split_heads(qkv, attn.heads)                                    # (B, H or G, T, D)
    if attn.q_norm:
        q, _ = attn.q_norm.forward(q)
        k, _ = attn.k_norm.forward(k)
    if rotation:
        q, _ = rotary_forward(q, rotation, attn.rope_interleaved)
        k, _ = rotary_forward(k, rotation, attn.rope_interleaved)
    p, _ = softmax_forward(attention_scores(q, k, attn.causal, None))
    return p
