"""What a tokenizer's folder holds, as plain data: written whole, believed only when every part is checked.

tokenizer_config.json   {"kind": "bpe" or "character", "version": 1, "sha256": {name of other file: its sum}},
                        and for bpe also "pattern", "special_tokens", "ignore_merges", "prefix_token",
                        "normalizer" and "added_tokens"; beside these what transformers' AutoTokenizer asks
                        for, and npgpt does not read
vocab.json              {token: id}; for bpe with each byte as GPT-2 writes it (`byte_alphabet.py`) and
                        special and added tokens as they are, as in GPT-2's encoder.json
merges.txt              bpe only: "#version: 0.2", then a line for each merge, its two tokens with a space
                        between, as in GPT-2's vocab.bpe
tokenizer.json          bpe only: the same once more, for Hugging Face's tokenizers

tokenizer_config.json holds the SHA-256 of the others, so a folder in which one tokenizer was saved only half
over another is refused, and so is every damaged byte.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from npgpt.errors import TokenizerError, shown
from npgpt.files import atomic_write
from npgpt.strict_json import without_duplicates
from npgpt.tokenizers.byte_alphabet import from_symbols, to_symbols
from npgpt.tokenizers.checks import has_surrogates
from npgpt.tokenizers.patterns import SPLIT_PATTERNS

CONFIG, VOCABULARY, MERGES = "tokenizer_config.json", "vocab.json", "merges.txt"
HUGGING_FACE = "tokenizer.json"
VERSION = 1
MERGES_HEADER = "#version: 0.2"
END_OF_TEXT = "<|endoftext|>"
NORMALIZERS = (None, "NFC")


# Byte-level BPE

class BytePair(NamedTuple):
    """What makes a BPETokenizer: its arguments, in their order."""

    merges: Sequence[tuple[int, int]]
    special_tokens: Mapping[str, int]
    pattern: str
    vocabulary: Mapping[int, bytes]
    ignore_merges: bool = False
    prefix_token: str | None = None
    normalizer: str | None = None
    added_tokens: Mapping[str, int] = MappingProxyType({})


def write_byte_pair(folder: Path, parts: BytePair) -> None:
    symbols = {id: to_symbols(data) for id, data in sorted(parts.vocabulary.items())}
    ids     = {symbol: id for id, symbol in symbols.items()} | {**parts.special_tokens, **parts.added_tokens}
    merges  = [f"{symbols[left]} {symbols[right]}" for left, right in parts.merges]
    config  = {"kind": "bpe", "version": VERSION, "pattern": parts.pattern,
               "special_tokens": list(parts.special_tokens), "ignore_merges": parts.ignore_merges,
               "prefix_token": parts.prefix_token, "normalizer": parts.normalizer,
               "added_tokens": list(parts.added_tokens), **_for_transformers(parts)}
    _write(folder, config, {HUGGING_FACE: _to_json(_for_hugging_face(parts, ids, merges)),
                            VOCABULARY: _to_json(ids),
                            MERGES: "".join(line + "\n" for line in [MERGES_HEADER, *merges])})


def read_byte_pair(folder: Path) -> BytePair:
    config = read_config(folder, "bpe")
    pattern, ignore_merges = config.get("pattern"), config.get("ignore_merges", False)
    prefix_token, normalizer = config.get("prefix_token"), config.get("normalizer")
    if not isinstance(pattern, str) or pattern not in SPLIT_PATTERNS:
        known = ", ".join(SPLIT_PATTERNS)
        raise refused(folder / CONFIG, f"its split pattern is {shown(pattern)}; the known ones are {known}")
    special_tokens = _texts(folder / CONFIG, "special_tokens", config.get("special_tokens"))
    added_tokens   = _texts(folder / CONFIG, "added_tokens", config.get("added_tokens", []))
    if both := {*special_tokens} & {*added_tokens}:
        raise refused(folder / CONFIG, f"{shown(min(both))} is one of special_tokens and of added_tokens")
    if not isinstance(ignore_merges, bool):
        raise refused(folder / CONFIG, f"ignore_merges is {shown(ignore_merges)}, not true or false")
    if prefix_token is not None and prefix_token not in special_tokens + added_tokens:
        raise refused(folder / CONFIG, f"prefix_token is {shown(prefix_token)}, which is none of "
                                       "special_tokens")
    if normalizer not in NORMALIZERS:
        raise refused(folder / CONFIG, f"its normalizer is {shown(normalizer)}, and the known one is NFC")
    vocabulary, merges = folder / VOCABULARY, folder / MERGES
    ids = checked_ids(vocabulary, from_json(vocabulary, read_text(vocabulary, config)))
    for token in special_tokens + added_tokens:
        if token not in ids:
            raise refused(vocabulary, f"the special token {shown(token)} has no id")
    special, added = ({token: ids.pop(token) for token in tokens}
                      for tokens in (special_tokens, added_tokens))
    lines   = merge_lines(merges, read_text(merges, config))
    parts   = checked_byte_pair(vocabulary, ids, merges, lines, special, pattern, ignore_merges, prefix_token)
    if HUGGING_FACE in config["sha256"]:                   # what others read here is this tokenizer too
        read_text(folder / HUGGING_FACE, config)
    return parts._replace(normalizer=normalizer, added_tokens=added)


def checked_byte_pair(path: Path, ids: Mapping[str, int], merges_path: Path,
                      merges: Iterable[tuple[str, str, str]], special_tokens: Mapping[str, int],
                      pattern: str, ignore_merges: bool, prefix_token: str | None = None) -> BytePair:
    """Tokens as they are written, made into what they mean.

    path, merges_path: the files, for errors.  ids: of all tokens but the special ones.  merges: (where it
    stands, left, right).
    """
    vocabulary = {}
    for token, id in ids.items():
        data = from_symbols(token)
        if not data:
            raise refused(path, f"the token {shown(token)} is not written in GPT-2's characters for bytes")
        vocabulary[id] = data
    pairs: dict[tuple[int, int], None] = {}
    for place, left, right in merges:
        for token in (left, right, left + right):
            if token not in ids:
                what = "makes" if token == left + right else "joins"
                raise refused(merges_path, f"{place} {what} {shown(token)}, which has no id")
        pair = ids[left], ids[right]
        if pair in pairs:
            raise refused(merges_path, f"{place} joins {shown(left)} and {shown(right)} a second time")
        pairs[pair] = None
    return BytePair(list(pairs), special_tokens, pattern, vocabulary, ignore_merges, prefix_token)


def checked_ids(path: Path, ids: Any) -> dict[str, int]:
    """{token: id}, each id once."""
    if not isinstance(ids, dict) or not ids:
        raise refused(path, "it is not a JSON object of tokens and their ids")
    seen: dict[int, str] = {}
    for token, id in ids.items():
        if type(id) is not int or not 0 <= id < 2**31:
            raise refused(path, f"the token {shown(token)} has the id {shown(id)}, which is no whole "
                                "number from 0 to 2³¹")
        if id in seen:
            raise refused(path, f"the tokens {shown(seen[id])} and {shown(token)} have the same id {id}")
        seen[id] = token
    return ids


def merge_lines(path: Path, text: str) -> Iterator[tuple[str, str, str]]:
    """(where it stands, left, right) for each line of a merges.txt."""
    lines = text.split("\n")
    if not lines[0].startswith("#version"):
        raise refused(path, f"its first line is not {MERGES_HEADER!r}")
    if lines.pop() != "":
        raise refused(path, "it ends in the middle of a line")
    for number, line in enumerate(lines[1:], start=2):
        left, _, right = line.partition(" ")
        if not left or not right or " " in right:
            raise refused(path, f"line {number} is not two tokens with a space between: {shown(line)}")
        yield f"line {number}", left, right


def _for_transformers(parts: BytePair) -> dict[str, Any]:
    """That tokenizer.json is all there is to it, and which token ends a text."""
    ends = ("bos_token", "eos_token", "unk_token") if END_OF_TEXT in parts.special_tokens else ()
    return {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False,
            **dict.fromkeys(ends, END_OF_TEXT)}


def _for_hugging_face(parts: BytePair, ids: Mapping[str, int], merges: Sequence[str]) -> dict[str, Any]:
    """A tokenizer.json. npgpt's patterns are regular expressions there, but for two that have names. An added
    token has its id there by the vocabulary alone.
    """
    gpt2 = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    if parts.pattern == "gpt2":
        steps = [gpt2]
    elif parts.pattern == "smollm":
        steps = [{"type": "Digits", "individual_digits": True}, gpt2]
    else:
        steps = [{"type": "Split", "pattern": {"Regex": SPLIT_PATTERNS[parts.pattern]},
                  "behavior": "Isolated", "invert": False}, gpt2 | {"use_regex": False}]
    return {"version": "1.0", "truncation": None, "padding": None,
            "added_tokens": [{"id": id, "content": token, "single_word": False, "lstrip": False,
                              "rstrip": False, "normalized": False, "special": token in parts.special_tokens}
                             for token, id in {**parts.special_tokens, **parts.added_tokens}.items()],
            "normalizer": {"type": parts.normalizer} if parts.normalizer else None,
            "post_processor": _post_processor(parts, ids), "decoder": gpt2,
            "pre_tokenizer": steps[0] if len(steps) == 1 else {"type": "Sequence", "pretokenizers": steps},
            "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                      "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False,
                      "ignore_merges": parts.ignore_merges, "vocab": ids, "merges": merges}}


def _post_processor(parts: BytePair, ids: Mapping[str, int]) -> dict[str, Any] | None:
    """What puts the prefix token before every text there."""
    token = parts.prefix_token
    if token is None:
        return None
    one, other = ([{"SpecialToken": {"id": token, "type_id": n}}, {"Sequence": {"id": text, "type_id": n}}]
                  for n, text in enumerate("AB"))
    return {"type": "TemplateProcessing", "single": one, "pair": one + other, "special_tokens": {
        token: {"id": token, "ids": [ids[token]], "tokens": [token]}}}


def _texts(path: Path, name: str, tokens: Any) -> list[str]:
    if not isinstance(tokens, list) or not all(
            isinstance(token, str) and token and not has_surrogates(token) for token in tokens) \
            or len(set(tokens)) < len(tokens):
        raise refused(path, f"{name} is not a list of different, non-empty pieces of text")
    return tokens


# Characters

def write_character(folder: Path, characters: Sequence[str]) -> None:
    """characters: by id."""
    ids = {character: id for id, character in enumerate(characters)}
    _write(folder, {"kind": "character", "version": VERSION}, {VOCABULARY: _to_json(ids)})


def read_character(folder: Path) -> list[str]:
    """The characters by id."""
    config, path = read_config(folder, "character"), folder / VOCABULARY
    ids = checked_ids(path, from_json(path, read_text(path, config)))
    for token, id in ids.items():
        if len(token) != 1 or has_surrogates(token):
            raise refused(path, f"{shown(token)} is not one character")
        if id >= len(ids):
            raise refused(path, f"{token!r} has the id {id}, but {len(ids)} characters have the ids 0 to "
                                f"{len(ids) - 1}")
    return sorted(ids, key=ids.__getitem__)


# Both

def read_config(folder: Path, kind: str | None = None) -> dict[str, Any]:
    """tokenizer_config.json, with a version that npgpt reads, and of that kind if one is given."""
    path = folder / CONFIG
    config = from_json(path, read_text(path))
    if not isinstance(config, dict) or not isinstance(config.get("kind"), str):
        raise refused(path, "it does not say what kind of tokenizer it belongs to")
    if kind is not None and config["kind"] != kind:
        raise refused(path, f"its tokenizer is of kind {shown(config['kind'])}, not {kind!r}")
    version = config.get("version")
    if type(version) is not int or version != VERSION:
        raise refused(path, f"its version is {shown(version)}, and this npgpt reads version {VERSION}")
    return config


def from_json(path: Path, text: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=without_duplicates)
    except (ValueError, RecursionError) as error:               # RecursionError: thousands of open brackets
        raise refused(path, f"it is not valid JSON ({error})") from None


def read_text(path: Path, config: dict[str, Any] | None = None) -> str:
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
            raise refused(path, f"it is not the file that was saved with {CONFIG} (SHA-256)")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise refused(path, f"it is not UTF-8 at byte {error.start}") from None


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


def refused(path: Path, reason: str) -> TokenizerError:
    return TokenizerError(f"{path} cannot be used: {reason}")
