"""What a tokenizer's folder holds, as plain data: written whole, believed only when every part is checked.

tokenizer_config.json   {"kind": "bpe" or "character", "version": 1, "sha256": {name of other file: its sum}},
                        and for bpe also "pattern" and "special_tokens"
vocab.json              {token: id}; for bpe with each byte as GPT-2 writes it (`byte_alphabet.py`) and
                        special tokens as they are, as in GPT-2's encoder.json
merges.txt              bpe only: "#version: 0.2", then a line for each merge, its two tokens with a space
                        between, as in GPT-2's vocab.bpe

tokenizer_config.json holds the SHA-256 of the others, so a folder in which one tokenizer was saved only half
over another is refused, and so is every damaged byte.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from npgpt.errors import TokenizerError
from npgpt.files import atomic_write
from npgpt.tokenizers.byte_alphabet import BYTE_ORDER, to_symbols
from npgpt.tokenizers.checks import has_surrogates
from npgpt.tokenizers.patterns import SPLIT_PATTERNS

CONFIG, VOCABULARY, MERGES = "tokenizer_config.json", "vocab.json", "merges.txt"
VERSION = 1
MERGES_HEADER = "#version: 0.2"


# Byte-level BPE

def write_byte_pair(folder: Path, vocabulary: Sequence[str], merges: Sequence[tuple[int, int]],
                    special_tokens: Sequence[str], pattern: str) -> None:
    """vocabulary: the ordinary tokens as GPT-2 writes them, by id."""
    lines = [MERGES_HEADER, *(f"{vocabulary[left]} {vocabulary[right]}" for left, right in merges)]
    ids = {token: id for id, token in enumerate([*vocabulary, *special_tokens])}
    _write(folder,
           {"kind": "bpe", "version": VERSION, "pattern": pattern, "special_tokens": list(special_tokens)},
           {VOCABULARY: _to_json(ids), MERGES: "".join(line + "\n" for line in lines)})


def read_byte_pair(folder: Path) -> tuple[list[tuple[int, int]], list[str], str]:
    """(merges, special tokens, name of the pattern)"""
    config = read_config(folder, "bpe")
    pattern, special_tokens = config.get("pattern"), config.get("special_tokens")
    if not isinstance(pattern, str) or pattern not in SPLIT_PATTERNS:
        known = ", ".join(SPLIT_PATTERNS)
        raise _refused(folder / CONFIG, f"its split pattern is {pattern!r}; the known ones are {known}")
    if not isinstance(special_tokens, list) or not _are_special_tokens(special_tokens):
        raise _refused(folder / CONFIG, "special_tokens is not a list of different, non-empty pieces of text")

    path = folder / VOCABULARY
    ids = _read_vocabulary(path, config)
    for id, byte in enumerate(BYTE_ORDER):
        symbol = to_symbols(bytes([byte]))
        if ids.get(symbol) != id:
            raise _refused(path, f"byte 0x{byte:02X}, written {symbol!r}, {_has_id(ids, symbol)}, not {id}")
    merges = _read_merges(folder / MERGES, config, ids)
    for id, token in enumerate(special_tokens, start=256 + len(merges)):
        if ids.get(token) != id:
            raise _refused(path, f"the special token {token!r} {_has_id(ids, token)}, not {id}")
    needed = 256 + len(merges) + len(special_tokens)
    if len(ids) != needed:
        raise _refused(path, f"it has {len(ids)} tokens, but 256 bytes, {len(merges)} merges in {MERGES} and "
                             f"{len(special_tokens)} special tokens make {needed}")
    return merges, special_tokens, pattern


def _read_merges(path: Path, config: dict[str, Any], ids: dict[str, int]) -> list[tuple[int, int]]:
    lines = _read_text(path, config).split("\n")
    if not lines[0].startswith("#version"):
        raise _refused(path, f"its first line is not {MERGES_HEADER!r}")
    if lines.pop() != "":
        raise _refused(path, "it ends in the middle of a line")
    merges = []
    for number, line in enumerate(lines[1:], start=2):
        new = 254 + number                                              # the first merge stands in line 2
        left, _, right = line.partition(" ")
        if not left or not right or " " in right:
            raise _refused(path, f"line {number} is not two tokens with a space between: {line[:80]!r}")
        for token in (left, right):
            if not 0 <= ids.get(token, -1) < new:
                raise _refused(path, f"line {number} joins {token[:80]!r}, but no line before it made that")
        if ids.get(left + right) != new:
            token = left + right
            raise _refused(path, f"line {number} makes {token[:80]!r}, which {_has_id(ids, token)} in "
                                 f"{VOCABULARY}, not {new}")
        merges.append((ids[left], ids[right]))
    return merges


def _are_special_tokens(tokens: list[Any]) -> bool:
    return (all(isinstance(token, str) and token and not has_surrogates(token) for token in tokens)
            and len(set(tokens)) == len(tokens))


def _has_id(ids: dict[str, int], token: str) -> str:
    return f"has the id {ids[token]}" if token in ids else "has no id"


# Characters

def write_character(folder: Path, characters: Sequence[str]) -> None:
    """characters: by id."""
    ids = {character: id for id, character in enumerate(characters)}
    _write(folder, {"kind": "character", "version": VERSION}, {VOCABULARY: _to_json(ids)})


def read_character(folder: Path) -> list[str]:
    """The characters by id."""
    config = read_config(folder, "character")
    ids = _read_vocabulary(folder / VOCABULARY, config)
    for token in ids:
        if len(token) != 1 or has_surrogates(token):
            raise _refused(folder / VOCABULARY, f"{token[:80]!r} is not one character")
    return sorted(ids, key=ids.__getitem__)


# Both

def read_config(folder: Path, kind: str | None = None) -> dict[str, Any]:
    """tokenizer_config.json, with a version that npgpt reads, and of that kind if one is given."""
    path = folder / CONFIG
    config = _from_json(path, _read_text(path))
    if not isinstance(config, dict) or not isinstance(config.get("kind"), str):
        raise _refused(path, "it does not say what kind of tokenizer it belongs to")
    if kind is not None and config["kind"] != kind:
        raise _refused(path, f"its tokenizer is of kind {config['kind']!r}, not {kind!r}")
    version = config.get("version")
    if type(version) is not int or version != VERSION:
        raise _refused(path, f"its version is {version!r}, and this npgpt reads version {VERSION}")
    return config


def _read_vocabulary(path: Path, config: dict[str, Any]) -> dict[str, int]:
    """{token: id}, in which the ids are 0, 1, …, each once."""
    ids = _from_json(path, _read_text(path, config))
    if not isinstance(ids, dict) or not ids:
        raise _refused(path, "it is not a JSON object of tokens and their ids")
    seen: dict[int, str] = {}
    for token, id in ids.items():
        if type(id) is not int or not 0 <= id < len(ids):
            raise _refused(path, f"the token {token[:80]!r} has the id {id!r}, but {len(ids)} tokens have "
                                 f"the ids 0 to {len(ids) - 1}")
        if id in seen:
            raise _refused(path, f"the tokens {seen[id][:80]!r} and {token[:80]!r} have the same id {id}")
        seen[id] = token
    return ids


def _from_json(path: Path, text: str) -> Any:
    def without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in pairs:
            if key in found:
                raise _refused(path, f"the entry {key[:80]!r} comes twice")
            found[key] = value
        return found

    try:
        return json.loads(text, object_pairs_hook=without_duplicates)
    except (ValueError, RecursionError) as error:               # RecursionError: thousands of open brackets
        raise _refused(path, f"it is not valid JSON ({error})") from None


def _read_text(path: Path, config: dict[str, Any] | None = None) -> str:
    """A file, which must be the one whose SHA-256 the config holds if one is given."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise TokenizerError(f"{path} is missing: {path.parent} holds no complete tokenizer") from None
    except OSError as error:
        raise TokenizerError(f"{path} cannot be read: {error.strerror}") from None
    if config is not None:
        sums = config.get("sha256")
        if not isinstance(sums, dict) or sums.get(path.name) != hashlib.sha256(data).hexdigest():
            raise _refused(path, f"it is not the file that was saved with {CONFIG} (SHA-256)")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise _refused(path, f"it is not UTF-8 at byte {error.start}") from None


def _write(folder: Path, config: dict[str, Any], files: dict[str, str]) -> None:
    data = {name: text.encode() for name, text in files.items()}
    sums = {name: hashlib.sha256(content).hexdigest() for name, content in data.items()}
    data[CONFIG] = _to_json({**config, "sha256": sums}, indent=2).encode()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in data.items():
            with atomic_write(folder / name) as file:
                file.write(content)
    except OSError as error:
        raise TokenizerError(f"the tokenizer cannot be written to {folder}: {error.strerror}") from error


def _to_json(data: Any, indent: int | None = None) -> str:
    return json.dumps(data, ensure_ascii=False, indent=indent) + "\n"


def _refused(path: Path, reason: str) -> TokenizerError:
    return TokenizerError(f"{path} cannot be used: {reason}")
