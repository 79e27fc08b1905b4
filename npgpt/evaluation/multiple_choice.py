"""Multiple choice: which ending of a text does the model hold likeliest?

    acc         the ending with the highest  ln p(ending | context) = −Σ s(tₙ)  is the right one
    acc_norm    the same of  ln p / characters  of the ending: a longer one is not held to be less likely for
                that. lm-evaluation-harness (Gao et al. 2021) calls this acc_norm, and counts characters
    acc_bytes   the same of  ln p / bytes,  as the harness's acc_bytes

Questions are JSONL in HellaSwag's layout (Zellers et al. 2019), one a line: the context is "query" or "ctx",
the endings are "choices" or "endings", the right one's number, from 0, is "gold" or "label". Texts are taken
as they are: the harness cleans HellaSwag's before it asks.

Context and ending are tokenised as the harness does it: a delimiter goes before the ending, spaces at the
context's end go over to it, and of the tokens of both together those after as many as the context alone has
are the ending's. Of more tokens than the model reads, the first are dropped.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from npgpt.data.packed import opened
from npgpt.errors import DataError
from npgpt.evaluation.bootstrap import Interval, mean_interval
from npgpt.evaluation.scoring import Model, Progress, Span, surprisals
from npgpt.tokenizers.checks import checked_text
from npgpt.tokenizers.files import Tokenizer

FIELDS = {"context": ("query", "ctx"), "endings": ("choices", "endings"), "answer": ("gold", "label")}
"""Under which names each may stand; the first that is there counts."""


class Question(NamedTuple):
    """answer: the number of the right ending.  place: file and line, for errors."""

    context: str
    endings: tuple[str, ...]
    answer: int
    place: str


class Questions(NamedTuple):
    """questions: at least one.  sha256: of the whole file."""

    questions: list[Question]
    sha256: str


class MultipleChoice(NamedTuple):
    """log_likelihoods: of each question's endings, (endings,), nats.  tokens: of how many.
    numbers, intervals: acc, acc_norm and acc_bytes, and their 95 % intervals over questions.
    truncated: endings before which the context did not fit whole.
    """

    log_likelihoods: list[np.ndarray]
    tokens: int
    numbers: dict[str, float]
    intervals: dict[str, Interval | None]
    truncated: int


def read_questions(path: Path, limit: int | None = None) -> Questions:
    """The first `limit` questions of a file, packed or not, or all. Empty lines are passed over. Raises
    DataError, naming file and line, for one that is no question."""
    with opened(path) as stream:
        data = stream.read()
    questions: list[Question] = []
    for number, line in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        if limit is not None and len(questions) == limit:
            break
        if line.strip():
            questions.append(_question(line, f"{path}:{number}"))
    if not questions:
        raise DataError(f"{path} has no question: give JSONL with a context, endings and the answer")
    return Questions(questions, hashlib.sha256(data).hexdigest())


def measure(model: Model, questions: Sequence[Question], tokenizer: Tokenizer, context: int,
            prefix: int | None = None, delimiter: str = " ", batch_size: int | None = None, seed: int = 0,
            resamples: int = 1000, progress: Progress | None = None) -> MultipleChoice:
    """context: tokens that the model reads at once.  prefix: the id that an ending follows whose context is
    empty.  Raises DataError, naming the question, and as `surprisals` does."""
    spans, truncated = [], 0
    for question in questions:
        for number in range(len(question.endings)):
            before, after = _encoded(question, number, tokenizer, prefix, delimiter, context)
            tokens     = np.array((before + after)[-(context + 1):], np.int64)
            truncated += len(before) + len(after) > len(tokens)
            spans.append(Span(tokens, len(after)))
    scores = iter([-float(nats.sum()) for nats in surprisals(model, spans, batch_size, progress)])
    likely = [np.array([next(scores) for _ in question.endings]) for question in questions]
    hits: dict[str, np.ndarray] = {}
    for name, length in (("acc", _one), ("acc_norm", len), ("acc_bytes", _bytes)):
        best = [np.argmax(own / [length(ending) for ending in question.endings])
                for own, question in zip(likely, questions, strict=True)]
        hits[name] = np.equal(best, [question.answer for question in questions]).astype(np.float64)
    numbers   = {name: float(own.mean()) for name, own in hits.items()}
    intervals = {name: mean_interval(own, seed, resamples) for name, own in hits.items()}
    return MultipleChoice(likely, sum(span.scored for span in spans), numbers, intervals, truncated)


def encode_pair(context: str, ending: str, tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """The ids of the context and of the ending after it, as lm-evaluation-harness cuts them."""
    bare   = context.rstrip()
    before = tokenizer.encode_ordinary(bare)
    return [*tokenizer.prefix, *before], tokenizer.encode_ordinary(context + ending)[len(before):]


def _encoded(question: Question, number: int, tokenizer: Tokenizer, prefix: int | None, delimiter: str,
             context: int) -> tuple[list[int], list[int]]:
    """The ids of the context, at least one, and of an ending of the question."""
    ending = f"ending {number} at {question.place}"
    before, after = encode_pair(question.context, delimiter + question.endings[number], tokenizer)
    if not before:
        if prefix is None:
            raise DataError(f"{ending} has no context, and the tokenizer no end of text that could stand for "
                            "one: give it a context")
        before = [prefix]
    if not after:
        raise DataError(f"{ending} has no token of its own: it melts into the context's last; end the "
                        "context with a whole word")
    if len(after) > context:
        raise DataError(f"{ending} has {len(after)} tokens, more than the {context} that the model reads at "
                        "once: leave the question out")
    return before, after


def _question(line: bytes, place: str) -> Question:
    try:
        entries = json.loads(line.decode())
    except (ValueError, RecursionError) as error:          # UnicodeDecodeError is a ValueError too
        reason = f"{error.msg} in column {error.colno}" if isinstance(error, json.JSONDecodeError) else error
        raise DataError(f"{place} is no JSON: {reason}") from error
    if not isinstance(entries, dict):
        raise DataError(f"{place} is no question: it must be a JSON object")
    context, endings, answer = (_field(entries, FIELDS[name], place) for name in FIELDS)
    if not isinstance(context, str):
        raise DataError(f"{place}: the context must be a text")
    if not isinstance(endings, list) or len(endings) < 2 or not all(
            isinstance(ending, str) and ending for ending in endings):
        raise DataError(f"{place}: the endings must be a list of two texts or more, none of them empty")
    if isinstance(answer, str) and answer.isascii() and answer.isdigit():       # as in HellaSwag on the hub
        answer = int(answer) if len(answer) < 10 else -1
    if not isinstance(answer, int) or isinstance(answer, bool) or not 0 <= answer < len(endings):
        raise DataError(f"{place}: the answer must be a number from 0 to {len(endings) - 1}, for there are "
                        f"{len(endings)} endings")
    return Question(checked_text(context), tuple(map(checked_text, endings)), answer, place)


def _field(entries: dict[str, Any], names: tuple[str, ...], place: str) -> Any:
    for name in names:
        if name in entries:
            return entries[name]
    raise DataError(f"{place} has neither {' nor '.join(map(repr, names))}")


def _one(ending: str) -> int:
    return 1


def _bytes(ending: str) -> int:
    return len(ending.encode())
