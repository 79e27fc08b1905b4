"""Records as questions: what a model is given, and what ought to come after it.

A pair's prompt is given as it is, and each of its completions is right. Of a conversation the assistant's
last message is the answer; what was said before it is written by the model's chat template, or as a
transcript, up to where the assistant is to speak. Later messages are passed over.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from npgpt.data.records import Dialogue, Message, Pair, Record, said_in
from npgpt.errors import ConfigError, DataError
from npgpt.generation.chat import Render, chat_template, transcript
from npgpt.tokenizers.files import Tokenizer


class Prompt(NamedTuple):
    """record: its number in the file, from 1.  tokens: at least one.  references: at least one, not empty."""

    record: int
    text: str
    tokens: list[int]
    references: tuple[str, ...]


def make_prompts(records: Sequence[Record], tokenizer: Tokenizer, render: Render | None, prefix: int | None,
                 source: str) -> Iterator[Prompt]:
    """The prompts of all the records that have an answer.

    render: for conversations; see `render_for`.  prefix: the token that an empty prompt becomes.
    source: for errors.  Raises DataError, naming the record, for one that is neither pair nor conversation,
    has the text of a special token in a message, is refused by the template, or has an empty prompt for which
    there is no prefix.
    """
    for number, record in enumerate(records, 1):
        where = f"record {number} of {source}"
        if isinstance(record, Dialogue) and render is not None:
            messages = _to_the_answer(record.messages)
            if not messages:
                continue
            *before, answer = messages
            _refuse_special_tokens(before, tokenizer, where)
            try:
                text = render(before)
            except ConfigError as error:
                raise DataError(f"{where}: {error}") from None
            yield Prompt(number, text, tokenizer.encode(text, allowed_special="all"), (answer["content"],))
        elif isinstance(record, Pair):
            references = tuple(text for text in record.completions if text.strip())
            if not references:
                continue
            tokens = [*tokenizer.prefix, *tokenizer.encode_ordinary(record.prompt)]
            if not tokens and prefix is None:
                raise DataError(f"the prompt of {where} is empty, and the model has no token that stands "
                                "before a text: leave the record out")
            yield Prompt(number, record.prompt, tokens or [prefix or 0], references)
        else:
            raise DataError(f"{where} has no answer to a prompt: give it a prompt and a completion, or "
                            "messages")


def render_for(records: Sequence[Record], template: str | None, named_tokens: Mapping[str, str],
               tokenizer: Tokenizer) -> Render | None:
    """How conversations are written; None if there are none among the records. template: None for a
    transcript.  named_tokens: what a template may write. Raises as `chat_template`."""
    if not any(isinstance(record, Dialogue) for record in records):
        return None
    return chat_template(template or transcript(tokenizer), **named_tokens if template else {})


def _to_the_answer(messages: Sequence[Message]) -> Sequence[Message]:
    """The messages up to the last of the assistant's that says something after another; none if there is no
    such."""
    for n in range(len(messages) - 1, 0, -1):
        if messages[n]["role"] == "assistant" and messages[n]["content"].strip():
            return messages[:n + 1]
    return ()


def _refuse_special_tokens(messages: Sequence[Message], tokenizer: Tokenizer, where: str) -> None:
    for text in said_in(messages):
        for token in tokenizer.special_tokens:
            if token in text:
                raise DataError(f"a message in {where} has the special token {token!r}, which only the "
                                "model's template may write: take it out")
