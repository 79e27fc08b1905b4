"""What a model writes after prompts: the likeliest token each time, or by beam search.

Prompts of about the same length share a batch, filled up on the left (npgpt/generation/sequences.py). A
text ends with one of the model's tokens that end one, or where it holds one of some strings; neither belongs
to it.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from npgpt.evaluation.scoring import TOKENS_AT_ONCE, Progress
from npgpt.tokenizers.files import Tokenizer


class Written(NamedTuple):
    """ended: whether the text ended by itself, and not for want of room."""

    text: str
    ended: bool


def write_on(model: Any, tokenizer: Tokenizer, prompts: Sequence[Sequence[int]], max_new_tokens: int,
             num_beams: int = 1, ends: Sequence[int] = (), stops: Sequence[str] = (),
             batch_size: int | None = None, progress: Progress | None = None) -> list[Written]:
    """What the model writes after each prompt, in their order.

    model: a GPT.  prompts: ids, at least one each, and with max_new_tokens at most block_size.  ends, stops:
    the tokens and strings that end a text.  batch_size: prompts that go through the model at once.
    progress: is told how many prompts are done. Raises ConfigError as `GPT.generate` does.
    """
    result: list[Written] = [Written("", False)] * len(prompts)
    order = sorted(range(len(prompts)), key=lambda n: -len(prompts[n]))
    first = 0
    while first < len(order):
        T     = len(prompts[order[first]])                                       # of the batch's longest
        size  = batch_size or max(1, TOKENS_AT_ONCE // ((T + max_new_tokens) * num_beams))
        batch = order[first:first + size]
        first += size
        tokens = model.generate([list(prompts[n]) for n in batch], max_new_tokens, num_beams=num_beams,
                                eos_token_id=ends, pad_token_id=ends[0] if ends else 0,
                                stop_strings=stops, tokenizer=tokenizer)                     # (B, T + new)
        for n, row in zip(batch, tokens[:, T:].tolist(), strict=True):
            result[n] = cut_at_end(prompts[n], row, tokenizer, ends, stops)
        if progress is not None:
            progress(min(first, len(order)), len(order))
    return result


def cut_at_end(prompt: Sequence[int], new: Sequence[int], tokenizer: Tokenizer, ends: Sequence[int] = (),
               stops: Sequence[str] = ()) -> Written:
    """The text of the new tokens up to where it ends. A string that the prompt begins and a new token
    completes ends it too, as in npgpt/generation/stopping.py."""
    count   = next((n for n, id in enumerate(new) if id in ends), len(new))
    longest = max(map(len, stops), default=0)
    before  = tokenizer.decode(prompt)[-longest:] if longest else ""
    text    = before + tokenizer.decode(new[:count])
    found   = [at for stop in stops if (at := text.find(stop, max(0, len(before) - len(stop) + 1))) >= 0]
    return Written(text[len(before):min(found, default=len(text))], bool(found) or count < len(new))
