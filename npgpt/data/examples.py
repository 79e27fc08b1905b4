"""Records as a model reads them: token ids, and which of them it is to be taught.

    text           end  t₁ t₂ …  end          all counted but the first, which nothing foretells
    pair           prompt  completion  end    the completion and its end
    conversation   as the model's chat template writes it; each of the assistant's answers to its end
    labelled text  t₁ t₂ …                    the label

An example is one row of a model's input: `block_size` tokens at most. What is longer, or has nothing to be
taught, is left out and counted, never cut.

Where the model's tokenizer begins every text with a token of its own (`prefix`), that stands in the place of
the first end, and before prompt and labelled text; in a conversation the template writes it. Prompt and
completion are encoded apart, for in generation too the prompt stands alone when it is encoded.

What the assistant says before anybody else is no answer, and given. A template may write what was said
differently when more is said: Qwen3's leaves out what the assistant thought before its earlier answers. Then
each answer is an example of its own, after all that the model reads when it is to give it. A conversation
that the template refuses is left out.
"""

from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from npgpt.data.records import Dialogue, Labelled, Message, Pair, Record, said_in
from npgpt.errors import ConfigError, DataError
from npgpt.files import atomic_write
from npgpt.tokenizers.files import Tokenizer

NO_ANSWER = "without an answer"
NO_TEXT   = "without text"
TOO_LONG  = "longer than the context"
SPECIAL   = "with the text of a special token in a message"
UNSTEADY  = "before which the chat template writes something else once it is said"

STREAM = 6
"""The second word of the Philox key; npgpt/tensor/random.py lists what the others are used for."""

Render = Callable[[Sequence[Message], bool], str]
"""Messages as the model reads them, and whether the assistant is to speak next."""

Row = tuple[list[int], list[bool], str]
"""Tokens, which of them count, and why they are left out, if they are."""


@dataclass(frozen=True)
class Examples:
    """M examples, one after the other.

    tokens: int32 (N,).  counted: bool (N,), which are taught, as targets.  starts: int64 (M + 1,), where each
    begins.  labels: int64 (M,), the class of each; empty where there are none.
    """

    tokens: np.ndarray
    counted: np.ndarray
    starts: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return self.starts.size - 1

    @property
    def inputs(self) -> np.ndarray:
        """How many tokens of each example the model reads: (M,). A language model's last is target only."""
        return np.diff(self.starts) - (self.labels.size == 0)

    @property
    def masked_ratio(self) -> float:
        """The share of tokens that are given, and not learned."""
        return 1 - float(self.counted.mean()) if self.tokens.size else 0.0


def encode_records(records: Sequence[Record], tokenizer: Tokenizer, block_size: int, ends: Sequence[int],
                   render: Render | None, labels: Sequence[str] = ()) -> tuple[Examples, Counter[str]]:
    """The examples, and how many were left out for which reason.

    ends: the tokens that end a text, of which the first is put there.  render: for conversations.
    labels: the classes, in their order.  Raises DataError where there is no end, or a label is unknown.
    """
    numbers = {label: n for n, label in enumerate(labels)}
    tokens, taught = array("i"), array("b")                   # 5 bytes a token; lists: 16, and 28 an id
    lengths: list[int] = []
    classes: list[int] = []
    left_out: Counter[str] = Counter()
    for record in records:
        if isinstance(record, Labelled) and record.label not in numbers:
            raise DataError(f"the label {record.label!r} is none of {', '.join(labels)}")
        for ids, counted, reason in _encoded(record, tokenizer, ends, render):
            if not reason and len(ids) - (not numbers) > block_size:
                reason = TOO_LONG
            if reason:
                left_out[reason] += 1
                continue
            tokens.extend(ids)
            taught.extend(counted)
            lengths.append(len(ids))
            if isinstance(record, Labelled):
                classes.append(numbers[record.label])
    return Examples(np.array(tokens, np.int32), np.array(taught, bool),
                    np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
                    np.array(classes, np.int64)), left_out


def _encoded(record: Record, tokenizer: Tokenizer, ends: Sequence[int],
             render: Render | None) -> Iterable[Row]:
    if isinstance(record, Labelled):
        text = tokenizer.encode_ordinary(record.text)
        ids  = [*tokenizer.prefix, *text]
        return [(ids, [False] * len(ids), "" if text else NO_TEXT)]
    if not ends:
        raise DataError("the model's tokenizer has no token that ends a text, so it could never learn to "
                        "end an answer: use one with <|endoftext|>")
    if isinstance(record, Dialogue):
        if render is None:
            raise DataError("conversations need a chat template")
        return _dialogue(record, tokenizer, ends, render)
    before, after = (record.prompt, record.completions[0]) if isinstance(record, Pair) else ("", record.text)
    end    = ends[0]
    prompt = [*tokenizer.prefix, *tokenizer.encode_ordinary(before)] or [end]
    answer = tokenizer.encode_ordinary(after)
    if not answer:
        return [([], [], NO_ANSWER)]
    return [([*prompt, *answer, end], [False] * len(prompt) + [True] * (len(answer) + 1), "")]


def _dialogue(record: Dialogue, tokenizer: Tokenizer, ends: Sequence[int],
              render: Render) -> Iterable[Row]:
    """One example of all answers where the template only ever writes on, else one of each."""
    messages = record.messages
    if any(special in text for text in said_in(messages) for special in tokenizer.special_tokens):
        return [([], [], SPECIAL)]
    answers = [n for n in range(max(record.given, 1), len(messages)) if messages[n]["role"] == "assistant"]
    if not any(messages[n]["content"].strip() for n in answers):
        return [([], [], NO_ANSWER)]

    def turns() -> Iterator[tuple[str, str]]:
        """What the template writes up to where the assistant is to speak, and with what it says; one at a
        time, for of a long conversation each has almost all."""
        return ((render(messages[:n], True), render(messages[:n + 1], False)) for n in answers)

    try:
        pieces = _written_on(turns())
    except ConfigError as error:
        return [([], [], f"where {error}")]
    if pieces:
        return [_taught(pieces, tokenizer, ends)]
    return (_taught([(before, after[len(before):])], tokenizer, ends) if after.startswith(before)
            else ([], [], UNSTEADY) for before, after in turns())


def _written_on(turns: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """Of each turn what is new before the answer, and the answer; nothing where not all is written on."""
    text, pieces, steady = "", [], True
    for before, after in turns:                            # all: the template may refuse the last
        steady = steady and before.startswith(text) and after.startswith(before)
        if steady:
            pieces.append((before[len(text):], after[len(before):]))
            text = after
    return pieces if steady else []


def _taught(pieces: Sequence[tuple[str, str]], tokenizer: Tokenizer, ends: Sequence[int]) -> Row:
    """pieces: what stands before an answer, and that: of it, up to the last that ends it, tokens count."""
    ids: list[int] = []
    counted: list[bool] = []
    for before, said in pieces:
        prompt = tokenizer.encode(before, allowed_special="all")
        answer = tokenizer.encode(said, allowed_special="all")
        taught = max((n for n, id in enumerate(answer, 1) if id in ends), default=len(answer))
        ids     += prompt + answer
        counted += [False] * len(prompt) + [True] * taught + [False] * (len(answer) - taught)
    return ids, counted, ""


def split_records(records: Sequence[Record], fraction: float, seed: int) -> tuple[list[Record], list[Record]]:
    """(train, validation), about `fraction` of the different records in validation and at least one on either
    side; copies of a record stay together. Raises DataError where all are the same."""
    kinds: dict[str, list[Record]] = {}
    for record in records:
        kinds.setdefault(repr(record), []).append(record)
    if len(kinds) < 2:
        times = f", {len(records):,} times" * (len(records) > 1)
        raise DataError(f"there is but one record{times}, and none to validate on: give more, or others by "
                        "val_data")
    random = np.random.Generator(np.random.Philox(key=np.array([seed, STREAM], np.uint64)))
    texts  = list(kinds)
    names  = [texts[n] for n in random.permutation(len(texts))]
    count  = min(max(1, round(fraction * len(kinds))), len(kinds) - 1)
    held   = set(names[:count])
    return [record for record in records if repr(record) not in held], \
        [record for name in names[:count] for record in kinds[name]]


def save_examples(path: Path, examples: Examples) -> None:
    """Writes a safetensors file, whole or not at all. Raises OSError."""
    with atomic_write(path) as file:
        file.write(save(vars(examples)))


def open_examples(path: Path) -> Examples:
    """Raises DataError if the file is not as `save_examples` writes it."""
    try:
        arrays = load_file(path)
        examples = Examples(arrays["tokens"], arrays["counted"], arrays["starts"], arrays["labels"])
        sound = examples.starts[0] == 0 and examples.starts[-1] == examples.tokens.size \
            == examples.counted.size and (np.diff(examples.starts) > 0).all() \
            and examples.labels.size in (0, len(examples))
    except (OSError, ValueError, LookupError, SafetensorError) as error:
        raise DataError(f"the examples {path} cannot be read: {error}") from error
    if not sound:
        raise DataError(f"the examples {path} are damaged")
    return examples


def prompts_and_answers(examples: Examples) -> Iterator[tuple[list[int], list[int]]]:
    """Of each: the tokens before its first answer, and that answer."""
    for start, stop in zip(examples.starts[:-1], examples.starts[1:], strict=True):
        ids, counted = examples.tokens[start:stop].tolist(), examples.counted[start:stop]
        first = int(counted.argmax())
        last  = first + int(np.append(~counted[first:], True).argmax())
        yield ids[:first], ids[first:last]
