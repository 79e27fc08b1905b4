"""Beam search: the likeliest continuation, looked for among num_beams at a time.

A beam is a continuation with the sum of its tokens' log-probabilities. At each step every beam is followed by
every token, and the best that have not ended are the next step's beams. A continuation that ends is worth

    score = Σ log p / length ** length_penalty              length: of the new tokens, the last included

and the num_beams best of those are kept. A prompt is done with when there are so many, and

    early_stopping = True       at once
    early_stopping = False      when no beam, ended now, would be worth more than the worst of them
    early_stopping = "never"    when none could ever be worth more. As log-probabilities only fall, with a
                                length_penalty above 0 the most that a beam can become is its sum of now
                                over the largest length

as transformers has it. With do_sample=True the followers are not the best but drawn without replacement, each
with its probability: the best after adding to each log-probability a number of the Gumbel distribution (Kool,
van Hoof & Welling 2019).
"""

from typing import NamedTuple

import numpy as np

from npgpt.errors import ConfigError
from npgpt.generation.output import GenerationOutput
from npgpt.generation.processors import process, processors
from npgpt.generation.sampling import check_largest, narrowed
from npgpt.generation.sequences import Columns, Model, Sequences
from npgpt.generation.settings import GenerationSettings
from npgpt.generation.stopping import Ending
from npgpt.tensor.random import SAMPLING, Key


class Ended(NamedTuple):
    """A continuation that has ended, the prompt not in it."""

    score: float
    tokens: np.ndarray          # (new,)
    beams: np.ndarray           # (new,), the row in which each token was chosen


def beam_search(model: Model, tokens, mask, s: GenerationSettings, ending: Ending) -> GenerationOutput:
    """tokens: (B, T)  mask: bool (B, T) or None  →  the s.num_return_sequences best continuations of each"""
    (B, T), (_, most), K = tokens.shape, s.new_tokens(tokens.shape[1]), s.num_beams
    rules     = processors(s, T, ending.tokenizer)
    sequences = Sequences(model, tokens, mask, T + most, s.use_cache)
    rows      = np.repeat(np.arange(B), K)                                    # K beams a prompt, side by side
    origins   = Columns(np.zeros((B * K, 0), np.int64))
    sums: np.ndarray = np.tile([0.0] + [-np.inf] * (K - 1), (B, 1))           # of K equal beams, one counts
    ended: list[list[Ended]] = [[] for _ in range(B)]
    going     = np.ones(B, bool)
    if most == 0:
        ended = [[Ended(0.0, origins.array[0], origins.array[0])] * K] * B
    each_step: list[tuple[np.ndarray, np.ndarray]] = []
    for n in range(most):
        logits = sequences.next_logits() if n else sequences.first_logits(s, rows)
        log_p  = process(rules, sequences.tokens, log_softmax(logits))        # (B·K, V)
        if s.do_sample:
            log_p = narrowed(log_p, s.temperature, s.top_k, s.top_p, s.min_p, _ways_to_end(s) + 1)
        if s.output_scores or s.output_logits:
            each_step.append((log_p, logits))
        parents, new, sums = followers(log_p, sums, s, n)                     # (B, M) each, best first
        ends = ending(sequences.tokens, parents.ravel(), new.ravel()).reshape(new.shape) | (n + 1 == most)

        for b, m in zip(*np.nonzero(ends[:, :K] & going[:, None] & (sums[:, :K] > -np.inf)), strict=True):
            row = parents[b, m]
            ended[b].append(Ended(sums[b, m] / (n + 1) ** s.length_penalty,
                                  np.append(sequences.tokens[row, T:], new[b, m]),
                                  np.append(origins.array[row], row)))
            ended[b].sort(key=lambda one: -one.score)
        for those in ended:
            del those[K:]

        order = np.argsort(ends, -1, kind="stable")[:, :K]                    # the K best that have not ended
        parents, new, sums = (np.take_along_axis(of, order, 1) for of in
                              (parents, new, np.where(ends, -np.inf, sums)))
        going &= [could_improve(ended[b], sums[b, 0], n + 1, most, s) for b in range(B)]
        if not going.any():
            break
        sequences.select(parents.ravel())
        origins.select(parents.ravel())
        sequences.append(new.ravel())
        origins.append(parents.ravel())
    return _output(tokens, ended, each_step, s)


def followers(log_p, sums, s: GenerationSettings, n: int):
    """log_p: (B·K, V), of every token after every beam  sums: (B, K), of the beams
    →  the M best of each prompt: the rows they follow, their tokens, their sums, (B, M) each, best first

    M: so many that K of them have not ended.
    """
    (B, K), V = sums.shape, log_p.shape[-1]
    M    = min((_ways_to_end(s) + 1) * K, K * V)
    sums = (log_p.reshape(B, K, V) + sums[:, :, None].astype(log_p.dtype)).reshape(B, K * V)
    rank = sums
    if s.do_sample:
        key  = Key(s.seed, SAMPLING, step=n)
        rank = sums + [np.random.Generator(key.philox(b)).gumbel(size=K * V) for b in range(B)]
    best = np.argpartition(rank, -M, -1)[:, -M:]
    best = np.take_along_axis(best, np.argsort(-np.take_along_axis(sums, best, 1), 1, kind="stable"), 1)
    beams, new = np.divmod(best, V)
    return beams + K * np.arange(B)[:, None], new, np.take_along_axis(sums, best, 1)


def could_improve(ended: list[Ended], best_sum: float, length: int, most: int, s: GenerationSettings) -> bool:
    """Whether a prompt is gone on with, whose best beam has this sum and this length."""
    if best_sum == -np.inf:
        return False                                       # all have ended, or nothing may follow them
    if len(ended) < s.num_beams:
        return True
    if s.early_stopping is True:
        return False
    if s.early_stopping == "never" and s.length_penalty > 0:
        length = most
    return best_sum / length ** s.length_penalty > ended[-1].score


def log_softmax(logits) -> np.ndarray:
    """(R, V) → (R, V), of the same type.  Raises as check_largest does."""
    largest = logits.max(-1, keepdims=True)
    check_largest(largest)
    z = logits - largest
    return z - np.log(np.exp(z).sum(-1, keepdims=True))


def _ways_to_end(s: GenerationSettings) -> int:
    """Of tokens after one beam that end it; 1 at least, as transformers has it."""
    return max(1, len(s.eos_token_ids))


def _output(tokens, ended: list[list[Ended]], each_step, s: GenerationSettings) -> GenerationOutput:
    """The best of those that have ended, filled up to one length."""
    if (fewest := min(map(len, ended))) < s.num_return_sequences:
        raise ConfigError(f"beam search found only {fewest} different continuations of a prompt, not "
                          f"num_return_sequences = {s.num_return_sequences}: lower it, or forbid less")
    best  = [one for those in ended for one in those[:s.num_return_sequences]]
    shape = len(best), max(len(one.tokens) for one in best)
    new, beams = np.full(shape, s.pad or 0), np.full(shape, -1)
    for r, one in enumerate(best):
        new[r, :len(one.tokens)], beams[r, :len(one.beams)] = one.tokens, one.beams
    prompts   = np.repeat(tokens, s.num_return_sequences, 0)
    sequences = np.concatenate([prompts, new], 1)
    return GenerationOutput(sequences,
                            tuple(log_p for log_p, _ in each_step) if s.output_scores else None,
                            tuple(logits for _, logits in each_step) if s.output_logits else None,
                            np.array([one.score for one in best]) if s.output_scores else None, beams)
