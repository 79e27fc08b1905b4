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
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from npgpt.data.records import Dialogue, Labelled, Message, Pair, Record
from npgpt.errors import DataError
from npgpt.files import atomic_write
from npgpt.tokenizers.files import Tokenizer

NO_ANSWER = "without an answer"
NO_TEXT   = "without text"
TOO_LONG  = "longer than the context"
SPECIAL   = "with the text of a special token in a message"
UNSTEADY  = "whose messages the chat template writes differently when more are said"

STREAM = 6
"""The second word of the Philox key; npgpt/tensor/random.py lists what the others are used for."""

Render = Callable[[Sequence[Message], bool], str]
"""Messages as the model reads them, and whether the assistant is to speak next."""


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


def encode_records(records: Sequence[Record], tokenizer: Tokenizer, block_size: int, end: int | None,
                   render: Render | None, labels: Sequence[str] = ()) -> tuple[Examples, Counter[str]]:
    """The examples, and how many records were left out for which reason.

    end: the token that ends a text.  render: for conversations.  labels: the classes, in their order.
    Raises DataError where the tokenizer has no end, or a label is unknown.
    """
    numbers = {label: n for n, label in enumerate(labels)}
    rows: list[tuple[list[int], list[bool]]] = []
    classes: list[int] = []
    left_out: Counter[str] = Counter()
    for record in records:
        if isinstance(record, Labelled):
            text    = tokenizer.encode_ordinary(record.text)
            ids     = [*tokenizer.prefix, *text]
            counted = [False] * len(ids)
            reason  = "" if text else NO_TEXT
            if record.label not in numbers:
                raise DataError(f"the label {record.label!r} is none of {', '.join(labels)}")
        elif end is None:
            raise DataError("the model's tokenizer has no token that ends a text, so it could never learn to "
                            "end an answer: use one with <|endoftext|>")
        else:
            ids, counted, reason = _encoded(record, tokenizer, end, render)
        if not reason and len(ids) - (not numbers) > block_size:
            reason = TOO_LONG
        if reason:
            left_out[reason] += 1
            continue
        rows.append((ids, counted))
        if isinstance(record, Labelled):
            classes.append(numbers[record.label])
    lengths = [len(ids) for ids, _ in rows]
    return Examples(np.array([id for ids, _ in rows for id in ids], np.int32),
                    np.array([c for _, counted in rows for c in counted], bool),
                    np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
                    np.array(classes, np.int64)), left_out


def _encoded(record: Record, tokenizer: Tokenizer, end: int,
             render: Render | None) -> tuple[list[int], list[bool], str]:
    """Tokens, which of them count, and why the record is left out, if it is."""
    if isinstance(record, Dialogue):
        if render is None:
            raise DataError("conversations need a chat template")
        return _dialogue(record.messages, tokenizer, end, render)
    before, text = (record.prompt, record.completions[0]) if isinstance(record, Pair) else ("", record.text)
    prompt = [*tokenizer.prefix, *tokenizer.encode_ordinary(before)] or [end]
    answer = tokenizer.encode_ordinary(text)
    if not answer:
        return [], [], NO_ANSWER
    return [*prompt, *answer, end], [False] * len(prompt) + [True] * (len(answer) + 1), ""


def _dialogue(messages: Sequence[Message], tokenizer: Tokenizer, end: int,
              render: Render) -> tuple[list[int], list[bool], str]:
    """What the template writes between an assistant's turn to speak and the end of what it says counts."""
    if any(special in message["content"] for message in messages for special in tokenizer.special_tokens):
        return [], [], SPECIAL
    text = ""
    ids: list[int] = []
    counted: list[bool] = []
    for n, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before = render(messages[:n], True)
        after  = render(messages[:n + 1], False)
        if not before.startswith(text) or not after.startswith(before):
            return [], [], UNSTEADY
        prompt = tokenizer.encode(before[len(text):], allowed_special="all")
        answer = tokenizer.encode(after[len(before):], allowed_special="all")
        taught = len(answer) - answer[::-1].index(end) if end in answer else len(answer)
        ids     += prompt + answer
        counted += [False] * len(prompt) + [True] * taught + [False] * (len(answer) - taught)
        text = after
    if not any(message["role"] == "assistant" and message["content"].strip() for message in messages):
        return [], [], NO_ANSWER
    return ids, counted, ""


def split_records(records: Sequence[Record], fraction: float, seed: int) -> tuple[list[Record], list[Record]]:
    """(train, validation), about `fraction` of the different records in validation and at least one on either
    side; copies of a record stay together. Raises DataError where all are the same."""
    kinds: dict[str, list[Record]] = {}
    for record in records:
        kinds.setdefault(repr(record), []).append(record)
    if len(kinds) < 2:
        raise DataError("there is but one record, and none to validate on: give more, or others by val_data")
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
