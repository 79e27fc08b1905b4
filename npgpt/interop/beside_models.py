"""What a folder in Hugging Face's layout has beside the model: what ends a text, how conversations are
written, and what is only taken along into another folder, for transformers to find there again.

    generation_config.json   tokenizer_config.json   special_tokens_map.json   chat_template.jinja
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from npgpt.errors import shown
from npgpt.interop.huggingface import CONFIG
from npgpt.interop.untrusted import member, read_json, refused

GENERATION, CHAT_TEMPLATE, TOKENIZER_CONFIG = \
    "generation_config.json", "chat_template.jinja", "tokenizer_config.json"
SPECIAL_TOKENS_MAP = "special_tokens_map.json"      # where tokenizer_config.json does not list its tokens
GPT2  = ("gpt2", "GPT2Tokenizer", "GPT2TokenizerFast")       # whose named tokens are this, if nobody says:
GPT2_NAMED = dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>")

Carried = Mapping[str, Mapping[str, Any]]
"""Entries of a model's files, by the file, that npgpt takes along and does not use."""


def read_ends(folder: Path) -> tuple[int, ...]:
    """The tokens that end a text, by generation_config.json or config.json; none where neither says."""
    for name in (GENERATION, CONFIG):
        if (folder / name).exists():
            path = member(folder, name)
            ends = read_json(path).get("eos_token_id")
            ends = ends if isinstance(ends, list) else [] if ends is None else [ends]
            if not all(type(id) is int and 0 <= id < 2**31 for id in ends):
                raise refused(path, f"its eos_token_id is {shown(ends)}, which is no token or tokens")
            if ends:
                return tuple(ends)
    return ()


def read_chat_template(folder: Path) -> str | None:
    """How the model reads a conversation: a template in Jinja, in a file of its own or the tokenizer's."""
    if (folder / CHAT_TEMPLATE).exists():
        path = member(folder, CHAT_TEMPLATE)
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise refused(path, str(error)) from error
    if not (folder / TOKENIZER_CONFIG).exists():
        return None
    template = read_json(path := member(folder, TOKENIZER_CONFIG)).get("chat_template")
    if isinstance(template, list):                         # several by name
        template = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)}
    if isinstance(template, dict):
        if "default" not in template:
            raise refused(path, f"it has the chat templates {shown([*template])} and none called default: "
                                f"put the one to use into a file {CHAT_TEMPLATE} beside it")
        template = template["default"]
    if template is not None and not isinstance(template, str):
        raise refused(path, f"its chat_template is {shown(template)}, which is no text")
    return template


def read_named_tokens(folder: Path) -> dict[str, str]:
    """What the tokenizer's files call bos_token, eos_token, pad_token and so on, by those names: the texts of
    the tokens that a chat template may write, as where a conversation begins, and where an answer ends.
    """
    listed  = _entries(folder, TOKENIZER_CONFIG)
    entries = listed if "added_tokens_decoder" in listed else listed | _entries(folder, SPECIAL_TOKENS_MAP)
    if (entries.get("tokenizer_class") or _entries(folder, CONFIG).get("model_type")) in GPT2:
        entries = GPT2_NAMED | entries
    texts = {name: entry.get("content") if isinstance(entry, dict) else entry
             for name, entry in entries.items() if name.endswith("_token")}
    return {name: text for name, text in texts.items() if isinstance(text, str) and text}


def read_carried(folder: Path) -> Carried:
    """What is not among the above."""
    config, tokenizer = _entries(folder, CONFIG), _entries(folder, TOKENIZER_CONFIG)
    return {CONFIG: _said(config, "bos_token_id", "pad_token_id"), GENERATION: _entries(folder, GENERATION),
            TOKENIZER_CONFIG: _said(tokenizer, "model_max_length", "padding_side")}


def _said(entries: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: entries[name] for name in names if entries.get(name) is not None}


def _entries(folder: Path, name: str) -> dict[str, Any]:
    return read_json(member(folder, name)) if (folder / name).exists() else {}
