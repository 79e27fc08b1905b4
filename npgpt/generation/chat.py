"""A conversation with a model: what was said, written as the model was taught to read it, and its answers.

How messages become text is the model's own affair: a chat template in Jinja, which comes with the model. It
is a program from a stranger, and runs in Jinja's sandbox. A model without one is given a transcript to go on
with, and its answer ends where it would speak for the other side:

    User: Who wrote Faust?
    Assistant: …
"""

import json
from collections.abc import Generator, Iterator, Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import Any, NoReturn, Protocol

import numpy as np

from npgpt.errors import ConfigError, NpgptError
from npgpt.generation.decoding import stream
from npgpt.generation.settings import GenerationSettings

TRANSCRIPT = ("{% for message in messages %}"
              "{{ message.role | capitalize }}: {{ message.content }}"
              "{{ eos_token if message.role == 'assistant' }}\n{% endfor %}"
              "{% if add_generation_prompt %}Assistant:{% endif %}")
TRANSCRIPT_STOPS = ("\nUser:", "\nSystem:", "\nAssistant:")

Message = dict[str, Any]        # role: system, user or assistant; content; what else a template reads


class Render(Protocol):
    """The messages as the model reads them: up to where its answer begins, or to the end of the last."""

    def __call__(self, messages: Sequence[Message], add_generation_prompt: bool = True) -> str: ...


def chat_template(source: str, **named_tokens: str) -> Render:
    """named_tokens: the texts of those tokens that have a name, such as eos_token and bos_token, which end an
    answer and begin a conversation, for the template to write where it will.

    Raises ConfigError if the template is wrong, or Jinja is missing; so does the function, if the template
    refuses the messages.
    """
    try:
        from jinja2 import TemplateError
        from jinja2.ext import Extension
        from jinja2.nodes import Scope
        from jinja2.sandbox import ImmutableSandboxedEnvironment
    except ImportError as error:
        raise ConfigError("conversations need the package jinja2: pip install 'npgpt[chat]'") from error

    def refuse(reason: str) -> NoReturn:
        raise TemplateError(reason)

    class Generation(Extension):
        """{% generation %} … {% endgeneration %}, which marks what an assistant says, and keeps what is
        set there to itself."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Any) -> Any:
            next(parser.stream)
            return Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True))

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True,
                                                extensions=["jinja2.ext.loopcontrols", Generation])
    environment.globals |= {"raise_exception": refuse,
                            "strftime_now": lambda form: datetime.now().strftime(form)}
    environment.filters["tojson"] = partial(json.dumps, ensure_ascii=False)
    try:
        template = environment.from_string(source)
    except (TemplateError, RecursionError) as error:
        raise ConfigError(f"the model's chat template is no template: {error}") from error

    def render(messages: Sequence[Message], add_generation_prompt: bool = True) -> str:
        try:
            return template.render(messages=list(messages), add_generation_prompt=add_generation_prompt,
                                   tools=None, documents=None, **named_tokens)
        except Exception as error:      # a stranger's program: it may raise anything
            raise ConfigError(f"the model's chat template refuses the conversation: {error}") from error

    return render


def transcript(tokenizer: Any) -> str:
    """The template for a model without one: a text as others, and begun as they are."""
    return tokenizer.decode(tokenizer.prefix) + TRANSCRIPT


class Conversation:
    """messages: what was said so far, the oldest first; a system message stays first.

    model: for `stream`.  block_size: its context, in tokens.  named_tokens: the template's bos_token,
    eos_token and so on; by default eos_token alone, the first of eos_token_id.  settings: of generation;
    max_new_tokens is the most of an answer.
    """

    def __init__(self, model: Any, tokenizer: Any, block_size: int, template: str | None = None,
                 system: str = "", max_new_tokens: int = 256,
                 named_tokens: Mapping[str, str] | None = None, **settings):
        self._model, self._tokenizer, self._block_size = model, tokenizer, block_size
        self._settings = settings | ({} if template else {"stop_strings": TRANSCRIPT_STOPS})
        checked = GenerationSettings.of(**self._settings)                     # what is wrong is told at once
        self._ends, self._stops = checked.eos_token_ids, checked.texts_to_stop_at
        if named_tokens is None:
            named_tokens = {"eos_token": tokenizer.decode(self._ends[:1])}
        self._render = chat_template(template or transcript(tokenizer), **named_tokens if template else {})
        self._max_new_tokens = min(max_new_tokens, block_size // 2)
        self._system = [{"role": "system", "content": system}] if system else []
        self.messages: list[Message] = list(self._system)

    def reset(self) -> None:
        """Forgets all that was said."""
        self.messages = list(self._system)

    def answer(self, text: str) -> Generator[str, None, None]:
        """Says `text` to the model; its answer as it comes. What came of it until then stays said, if the
        iterator is closed.

        Raises NpgptError, and nothing was said, if the text has a special token or the context is too short.
        """
        if special := [token for token in self._tokenizer.special_tokens if token in text]:
            raise NpgptError(f"a message cannot have the special token {min(special, key=text.find)!r}: only "
                             "the model's template may write it")
        messages = [*self.messages, {"role": "user", "content": text}]
        prompt, forgotten = self._prompt(messages)
        del messages[len(self._system):len(self._system) + forgotten]
        said = ""
        try:
            for part in self._parts(prompt):
                said += part
                yield part
        finally:
            self.messages = [*messages, {"role": "assistant", "content": said.strip()}]

    def _prompt(self, messages: list[Message]) -> tuple[list[int], int]:
        """The tokens of the messages, and how many of the oldest had to be left out for an answer to fit."""
        first = len(self._system)
        for forgotten in range(0, len(messages) - first, 2):         # question and answer together
            text = self._render(messages[:first] + messages[first + forgotten:])
            ids  = self._tokenizer.encode(text, allowed_special="all")
            if 0 < len(ids) <= self._block_size - self._max_new_tokens:
                return ids, forgotten
        if not ids:
            raise NpgptError("the model's chat template writes nothing of this conversation, so there is "
                             "nothing to answer: use another template")
        raise NpgptError(f"that is too long: with it the conversation has {len(ids):,} tokens, and the model "
                         f"reads {self._block_size:,}, {self._max_new_tokens:,} of them for its answer")

    def _parts(self, prompt: list[int]) -> Iterator[str]:
        """The text of the answer, without what ends it."""
        new   = stream(self._model, np.array([prompt]), tokenizer=self._tokenizer,
                       max_new_tokens=self._max_new_tokens, **self._settings)
        ids   = (int(token[0]) for token in new)
        texts = self._tokenizer.decode_stream(id for id in ids if id not in self._ends)
        yield from _before(texts, self._stops)


def _before(texts: Iterator[str], stops: Sequence[str]) -> Iterator[str]:
    """The parts of a text up to the first of some strings; what may be the beginning of one is held back."""
    held = ""
    for text in texts:
        held += text
        found = [held.find(stop) for stop in stops if stop in held]
        if found:
            yield held[:min(found)]
            return
        keep = max((n for stop in stops for n in range(1, len(stop)) if held.endswith(stop[:n])), default=0)
        ready, held = held[:len(held) - keep], held[len(held) - keep:]
        if ready:
            yield ready
    if held:
        yield held
