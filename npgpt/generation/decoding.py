"""Decoding: one token after another, each chosen from what the model says of those before it."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from npgpt.errors import ConfigError
from npgpt.generation.beam_search import beam_search
from npgpt.generation.output import GenerationOutput, Streamer
from npgpt.generation.processors import process, processors
from npgpt.generation.sampling import check_largest, draw, narrowed, softmax
from npgpt.generation.sequences import Model, Sequences, as_one_array
from npgpt.generation.settings import GenerationSettings
from npgpt.generation.stopping import Ending
from npgpt.tensor.random import SAMPLING, Key, uniform


def generate(model: Model, prompts, attention_mask=None, tokenizer: Any = None,
             streamer: Streamer | None = None, **settings) -> Any:
    """prompts: (B, T)  →  int64 (B · num_return_sequences, T + new): prompts and continuations

    prompts: an array, or B lists of ids, of different lengths; see sequences.as_one_array.
    settings: those of GenerationSettings.  tokenizer: for stop_strings; and an id that it has no token for
    never comes.
    A sequence that has ended is filled up while others go on. With return_dict_in_generate=True the result is
    a GenerationOutput. Raises ConfigError.
    """
    s = GenerationSettings.of(**settings)
    tokens, mask = as_one_array(prompts, attention_mask, s.pad)
    ending = _ending(s, tokenizer, len(tokens) * s.num_return_sequences)
    if s.num_beams == 1:
        output = _generate(model, tokens, mask, s, ending, streamer)
    elif streamer is None:
        output = beam_search(model, tokens, mask, s, ending)
    else:
        raise ConfigError("beam search has no token to stream before it has them all: leave out the "
                          "streamer, or set num_beams=1")
    return output if s.return_dict_in_generate else output.sequences


def stream(model: Model, prompts, attention_mask=None, tokenizer: Any = None,
           **settings) -> Iterator[np.ndarray]:
    """Yields the next token of every sequence, (R,), until all have ended. As `generate`, without beams."""
    s = GenerationSettings.of(**settings)
    if s.num_beams > 1:
        raise ConfigError("beam search has no token to stream before it has them all: use generate")
    tokens, mask = as_one_array(prompts, attention_mask, s.pad)
    ending = _ending(s, tokenizer, len(tokens) * s.num_return_sequences)
    return (step.new for step in _steps(model, tokens, mask, s, ending))


class _Step(NamedTuple):
    new: np.ndarray             # (R,)
    scores: np.ndarray          # (R, V)
    logits: np.ndarray          # (R, V)


def _steps(model: Model, tokens, mask, s: GenerationSettings, ending: Ending) -> Iterator[_Step]:
    (B, T), (_, most) = tokens.shape, s.new_tokens(tokens.shape[1])
    rules     = processors(s, T, ending.tokenizer)
    sequences = Sequences(model, tokens, mask, T + most, s.use_cache)
    rows      = np.repeat(np.arange(B), s.num_return_sequences)               # (R,)
    ended     = np.zeros(len(rows), bool)
    for n in range(most):
        logits  = sequences.next_logits() if n else sequences.first_logits(s, rows)
        running = np.flatnonzero(~ended)
        scores  = process(rules, sequences.tokens[running], logits[running])
        new     = np.full(len(rows), s.pad or 0)
        if s.do_sample:
            scores = narrowed(scores, s.temperature, s.top_k, s.top_p, s.min_p)
            key    = Key(s.seed, SAMPLING, step=n)
            new[running] = draw(softmax(scores), [uniform(key, int(row)) for row in running])
        else:
            check_largest(scores.max(-1))
            new[running] = np.argmax(scores, -1)
        ended[running] = ending(sequences.tokens, running, new[running])
        yield _Step(new, _of_all(scores, running, logits), logits)
        if ended.all():
            break
        sequences.append(new)


def _generate(model: Model, tokens, mask, s: GenerationSettings, ending: Ending,
              streamer: Streamer | None) -> GenerationOutput:
    """`_steps` gathered, and told to the streamer."""
    columns = [np.repeat(tokens, s.num_return_sequences, 0)]                  # (R, T)
    scores, logits = [], []
    if streamer is not None:
        streamer.put(columns[0])
    for step in _steps(model, tokens, mask, s, ending):
        columns.append(step.new[:, None])
        if streamer is not None:
            streamer.put(step.new)
        if s.output_scores:
            scores.append(step.scores)
        if s.output_logits:
            logits.append(step.logits)
    if streamer is not None:
        streamer.end()
    return GenerationOutput(np.concatenate(columns, 1), tuple(scores) if s.output_scores else None,
                            tuple(logits) if s.output_logits else None)


def _of_all(scores, running, logits):
    """The scores of the running rows, and of the others the logits: (R, V)"""
    if len(running) == len(logits):
        return scores
    every = logits.copy()
    every[running] = scores
    return every


def _ending(s: GenerationSettings, tokenizer: Any, rows: int) -> Ending:
    if s.stop_strings and s.pad is None and rows > 1:
        raise ConfigError("sequences that stop_strings end at different times are filled up: say with what "
                          "by pad_token_id (or eos_token_id)")
    return Ending(s, tokenizer)
