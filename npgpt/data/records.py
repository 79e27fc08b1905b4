"""What a model is taught or measured by, one record a line of a .jsonl file, or all in one list of a .json,
packed (.gz, .zst) or not:

    {"text": "…"}                                                   a text
    {"prompt": "…", "completion": "…"}                              a text and how it goes on
    {"messages": [{"role": "user", "content": "…"}, …]}             a conversation
    {"prompt": [{"role": …}, …], "completion": [{"role": …}, …]}    one of which only the latter is learned
    {"conversations": [{"from": "human", "value": "…"}, …]}         a conversation, as ShareGPT has it
    {"instruction": "…", "input": "…", "output": "…"}               one of two, as Alpaca has it
    {"text": "…", "label": "…"}                                     a text and its class

The names are those of Hugging Face's datasets. A prompt with several right completions has
{"prompt": "…", "completions": ["…", …]}: the first is learned, each counts as right in evaluation. A text
named "system" beside messages, conversations or an instruction is what the system says first, and a list
"history" of [instruction, output] beside Alpaca's what was said before. A message's other fields, such as
reasoning_content or tool_calls, are for the chat template; a record's are left alone, but for those that only
a template could use (FOR_TEMPLATES). Empty lines are passed over.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from npgpt.data.corpora import read_file
from npgpt.data.packed import PACKINGS
from npgpt.errors import DataError, shown

Message = dict[str, Any]        # role, content, and what else a chat template may read

FILES    = tuple(suffix + packing for suffix in (".jsonl", ".ndjson", ".json") for packing in ("", *PACKINGS))
SPEAKERS = {"human": "user", "gpt": "assistant"}                              # ShareGPT's
FOR_TEMPLATES = ("tools", "documents", "chat_template_kwargs")
THOUGHTS = ("reasoning_content", "thinking", "reasoning")                     # names of one thing


class Text(NamedTuple):
    text: str


class Pair(NamedTuple):
    """completions: at least one; the first is what is learned."""

    prompt: str
    completions: tuple[str, ...]


class Dialogue(NamedTuple):
    """messages: at least one, the oldest first.  given: the first of them, which are not learned."""

    messages: tuple[Message, ...]
    given: int = 0


class Labelled(NamedTuple):
    text: str
    label: str


Record = Text | Pair | Dialogue | Labelled


def read_records(file: str | Path) -> list[Record]:
    """The records of a file. Raises DataError, naming the line, for one that is none of the above, or where
    only some have a label."""
    path = Path(file)
    text = read_file(path)
    if text.lstrip().startswith("["):
        records = [_record(fields, f"{path}, record {number}")
                   for number, fields in enumerate(_parsed(text, str(path)), 1)]
    else:
        records = [_record(_parsed(line, where := f"{path}, line {number}"), where)
                   for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not records:
        raise DataError(f"{path} is empty: give it a record a line, such as {_LAYOUTS[1][1]}")
    labelled = sum(isinstance(record, Labelled) for record in records)
    if labelled not in (0, len(records)):
        raise DataError(f"{path} has {labelled:,} records with a label and {len(records) - labelled:,} "
                        "without: give every one a label, or none")
    return records


def texts_of(records: Sequence[Record]) -> Iterator[str]:
    """All that a tokenizer will be given of them."""
    for record in records:
        match record:
            case Pair(prompt, completions):
                yield prompt + completions[0]
            case Dialogue(messages):
                yield from (message["content"] for message in messages)
            case _:
                yield record.text


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where} is not JSON: {error}") from error


def _record(fields: Any, where: str) -> Record:
    if not isinstance(fields, dict):
        raise DataError(f"{where} is no JSON object with fields, such as {_LAYOUTS[1][1]}")
    for names, _, make in _LAYOUTS:
        if names <= fields.keys():
            return make(fields, where)
    raise DataError(f"{where} has the fields {', '.join(sorted(fields)) or 'none'}; a record is one of "
                    + " ".join(example for _, example, _ in _LAYOUTS))


def _labelled(fields: dict[str, Any], where: str) -> Labelled:
    label = fields["label"]
    if type(label) is int:
        label = str(label)
    if not isinstance(label, str) or not label:
        raise DataError(f"{where}: its label must be a text or a whole number, not {shown(label)}")
    return Labelled(_text(fields, "text", where), label)


def _pair(fields: dict[str, Any], where: str) -> Pair | Dialogue:
    prompt, completion = fields["prompt"], fields["completion"]
    if isinstance(prompt, list) and isinstance(completion, list):
        found = _dialogue(fields, [*prompt, *completion], where)
        return found._replace(given=len(found.messages) - len(completion))
    return Pair(_text(fields, "prompt", where), (_text(fields, "completion", where),))


def _pair_of_several(fields: dict[str, Any], where: str) -> Pair:
    several = fields["completions"]
    if not isinstance(several, list) or not several or not all(isinstance(text, str) for text in several):
        raise DataError(f"{where}: its completions must be a list of texts, not {shown(several)}")
    return Pair(_text(fields, "prompt", where), tuple(several))


def _alpaca(fields: dict[str, Any], where: str) -> Dialogue:
    question = _text(fields, "instruction", where)
    if fields.get("input"):
        question += "\n\n" + _text(fields, "input", where)
    turns = fields.get("history") or []                    # LLaMA-Factory's, of several rounds
    if not isinstance(turns, list) or not all(isinstance(turn, list) and len(turn) == 2 for turn in turns):
        raise DataError(f"{where}: its history must be a list of [instruction, output], not {shown(turns)}")
    turns = [*turns, [question, _text(fields, "output", where)]]
    return _dialogue(fields, [{"role": role, "content": text} for turn in turns
                              for role, text in zip(("user", "assistant"), turn, strict=True)], where)


def _sharegpt(fields: dict[str, Any], where: str) -> Dialogue:
    said = fields["conversations"]
    if isinstance(said, list):
        said = [{"role": SPEAKERS.get(one["from"], one["from"]), "content": one.get("value")}
                if isinstance(one, dict) and isinstance(one.get("from"), str) else one for one in said]
    return _dialogue(fields, said, where)


def _dialogue(fields: dict[str, Any], messages: Any, where: str) -> Dialogue:
    """With what the system says in a field of its own, as in exports of LLaMA-Factory's and others'."""
    for name in FOR_TEMPLATES:
        if fields.get(name) not in (None, "", "[]", [], {}):
            raise DataError(f"{where} has {name}, which npgpt gives to no chat template: take it out, and "
                            "write what the model is to read into a message")
    found = _messages(messages, where)
    if fields.get("system") and found[0]["role"] != "system":
        found = ({"role": "system", "content": _text(fields, "system", where)}, *found)
    return Dialogue(found)


def _messages(messages: Any, where: str) -> tuple[Message, ...]:
    if not isinstance(messages, list) or not messages:
        raise DataError(f"{where}: its messages must be a list of at least one, not {shown(messages)}")
    for message in messages:
        if not isinstance(message, dict) or not all(isinstance(message.get(name), str)
                                                    for name in ("role", "content")):
            raise DataError(f"{where}: a message must have a role and a content, both texts, not "
                            f"{shown(message)}")
        if message.get("weight") == 0:                     # OpenAI's: an answer that is not to be learned
            raise DataError(f"{where}: a message has the weight 0: what is not to be learned goes into a "
                            "prompt, a list of messages, and what is into a completion")
    return tuple(_as_templates_read_it(message) for message in messages)


def _as_templates_read_it(message: Message) -> Message:
    """As transformers gives a message to them: without what is null, and thoughts by each of their names."""
    said     = {name: value for name, value in message.items() if value is not None}
    thoughts = next((said[name] for name in THOUGHTS if name in said), None)
    return said if thoughts is None else {"thinking": thoughts, **said, "reasoning_content": thoughts}


def said_in(messages: Any) -> Iterator[str]:
    """All texts in messages but the names of fields: where a special token is to be looked for."""
    if isinstance(messages, str):
        yield messages
    elif isinstance(messages, dict):
        yield from said_in([*messages.values()])
    elif isinstance(messages, list | tuple):
        for part in messages:
            yield from said_in(part)


def _text(fields: dict[str, Any], name: str, where: str) -> str:
    if not isinstance(fields[name], str):
        raise DataError(f"{where}: its {name} must be a text, not {shown(fields[name])}")
    return fields[name]


_LAYOUTS: list[tuple[set[str], str, Callable[[dict[str, Any], str], Record]]] = [
    ({"messages"}, '{"messages": [{"role": "user", "content": "…"}, …]}',
     lambda fields, where: _dialogue(fields, fields["messages"], where)),
    ({"prompt", "completion"}, '{"prompt": "…", "completion": "…"}', _pair),
    ({"prompt", "completions"}, '{"prompt": "…", "completions": ["…", …]}', _pair_of_several),
    ({"conversations"}, '{"conversations": [{"from": "human", "value": "…"}, …]}', _sharegpt),
    ({"instruction", "output"}, '{"instruction": "…", "output": "…"}', _alpaca),
    ({"text", "label"}, '{"text": "…", "label": "…"}', _labelled),
    ({"text"}, '{"text": "…"}', lambda fields, where: Text(_text(fields, "text", where))),
]
