"""Language modelling of answers: how well a model foretells what follows a prompt, and that it ends there.

    prompt ids | ids of the answer, the token that ends a text            all after | is scored

The two are encoded apart, for in generation too the prompt stands alone when it is encoded. The masked ratio
is the share of an example's tokens that are not scored. An example with more tokens than the model reads is
left out and counted, never cut.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from npgpt.errors import DataError
from npgpt.evaluation.language_modelling import LanguageModelling, summary
from npgpt.evaluation.prompts import Prompt
from npgpt.evaluation.scoring import Model, Progress, Span, surprisals
from npgpt.tokenizers.files import Tokenizer


class Answers(NamedTuple):
    """spans: of the examples, in order.  too_long: examples left out.  masked_ratio: of the others."""

    spans: list[Span]
    too_long: int
    masked_ratio: float


def encode_answers(prompts: Sequence[Prompt], tokenizer: Tokenizer, end: int | None, context: int,
                   limit: int | None = None) -> Answers:
    """The examples that the model can read whole.

    end: the token that ends a text, scored too.  context: tokens read at once.  limit: of scored tokens; the
    last example is cut there. Raises DataError if there is none.
    """
    spans: list[Span] = []
    too_long = 0
    for prompt in prompts:
        answer = tokenizer.encode_ordinary(prompt.answer) + ([] if end is None else [end])
        tokens = np.array(prompt.tokens + answer, np.int64)
        if len(tokens) - 1 > context:
            too_long += 1
            continue
        if limit is not None:
            excess = max(0, len(answer) - limit)
            tokens, answer = tokens[:len(tokens) - excess], answer[:len(answer) - excess]
            limit -= len(answer)
        if answer:
            spans.append(Span(tokens, len(answer)))
    if not spans:
        raise DataError(f"there is no answer to score: of {len(prompts):,}, {too_long:,} are longer with "
                        f"their prompts than the {context:,} tokens that the model reads at once")
    scored, tokens_of_all = sum(span.scored for span in spans), sum(len(span.tokens) for span in spans)
    return Answers(spans, too_long, 1 - scored / tokens_of_all)


def measure(model: Model, spans: Sequence[Span], lengths: np.ndarray, batch_size: int | None = None,
            seed: int = 0, resamples: int = 1000, progress: Progress | None = None) -> LanguageModelling:
    """lengths: id → bytes. Raises as `surprisals` does."""
    nats = surprisals(model, spans, batch_size, progress)
    return summary(nats, [lengths[span.tokens[len(span.tokens) - span.scored:]] for span in spans], None,
                   seed, resamples, "answers")
