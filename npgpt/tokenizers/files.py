"""Reading a tokenizer of any kind from its folder."""

from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Protocol

from npgpt.errors import TokenizerError, shown
from npgpt.hub import fetch, is_name
from npgpt.tokenizers.byte_pair import BPETokenizer
from npgpt.tokenizers.character import CharacterTokenizer
from npgpt.tokenizers.foreign import ADDED_TOKENS, GPT2_FILES, is_foreign, read_foreign
from npgpt.tokenizers.formats import (
    CONFIG,
    HUGGING_FACE,
    checked_byte_pair,
    from_json,
    read_config,
    read_text,
    refused,
)

FILES = (CONFIG, HUGGING_FACE, ADDED_TOKENS,                                # all that is read of a folder
         *(name for two in GPT2_FILES for name in two))


class Tokenizer(Protocol):
    """What every tokenizer can do; the rest of npgpt asks for nothing more."""

    @property
    def vocab_size(self) -> int: ...
    @property
    def eos_token_id(self) -> int | None: ...
    @property
    def prefix(self) -> tuple[int, ...]: ...
    @property
    def special_tokens(self) -> dict[str, int]: ...
    def __contains__(self, id: object) -> bool: ...
    def encode(self, text: str, allowed_special: str | Collection[str] = (),
               disallowed_special: str | Collection[str] = "all") -> list[int]: ...
    def encode_ordinary(self, text: str) -> list[int]: ...
    def token_bytes(self, id: int) -> bytes: ...
    def decode(self, ids: Iterable[int]) -> str: ...
    def decode_stream(self, ids: Iterable[int]) -> Iterator[str]: ...
    def save(self, folder: str | Path) -> None: ...


def find_tokenizer(path_or_name: str | Path) -> Path:
    """The path itself, or the folder of a tokenizer that is fetched by its name. Raises TokenizerError."""
    if is_name(path_or_name):
        return fetch(str(path_or_name), "tokenizer", FILES, TokenizerError)
    return Path(path_or_name)


def files_of(path: Path) -> list[Path]:
    """What a tokenizer is read from that has this folder or file: GPT-2's vocab.bpe has its ids beside it."""
    ids, merges = GPT2_FILES[0]
    if path.is_file():
        return [path.with_name(ids), path] if path.name == merges else [path]
    return [path / name for name in sorted(FILES) if (path / name).is_file()]


def load_tokenizer(path: str | Path, pattern: str | None = None,
                   special_tokens: Mapping[str, int] | None = None) -> Tokenizer:
    """The tokenizer that npgpt saved in a folder, or others (see foreign.py): GPT-2's files, a tokenizer.json
    of Hugging Face's, or a .tiktoken file; or that of a name on its hub.

    pattern, special_tokens: for files of others that do not say. Raises TokenizerError, naming the file, if
    it cannot be used.
    """
    path = find_tokenizer(path)
    if is_foreign(path) and not _is_own(path):
        return BPETokenizer(*read_foreign(path, pattern, special_tokens))
    if pattern is not None or special_tokens is not None:
        raise TokenizerError(f"the tokenizer in {path} has its own pattern and special tokens: "
                             "give none with it")
    kind = read_config(path)["kind"]
    if kind == "bpe":
        return BPETokenizer.load(path)
    if kind == "character":
        return CharacterTokenizer.load(path)
    raise refused(path / CONFIG, f"its tokenizer is of the unknown kind {shown(kind)}")


def load_setting(tokenizer: str) -> tuple[Path, Tokenizer]:
    """The tokenizer that a setting of that name asks for where it names no kind to be made, and its place."""
    try:
        found = find_tokenizer(tokenizer)
        return found, load_tokenizer(found)
    except TokenizerError as error:
        raise TokenizerError(f"tokenizer is neither bpe nor character, and {error}") from error


def assemble_tokenizer(path: Path, tokens: Mapping[str, int], special_tokens: Mapping[str, int],
                       merges: Iterable[tuple[str, str]], pattern: str, prefix_token: str | None = None,
                       added_tokens: Mapping[str, int] | None = None) -> Tokenizer:
    """A byte-level BPE tokenizer whose parts came out of another file, `path`, as that of a model.

    tokens: all but special_tokens and added_tokens, in GPT-2's characters for bytes.  Raises TokenizerError,
    naming it.
    """
    numbered = ((f"merge {number}", left, right) for number, (left, right) in enumerate(merges))
    parts = checked_byte_pair(path, tokens, path, numbered, special_tokens, pattern,
                              ignore_merges=pattern == "llama3", prefix_token=prefix_token)
    return BPETokenizer(*parts._replace(added_tokens=added_tokens or {}))


def _is_own(path: Path) -> bool:
    """Whether npgpt saved it: Hugging Face's tokenizer_config.json has neither of these entries, or, where
    transformers read npgpt's and saved it again, one that npgpt's has not.
    """
    if not (path / CONFIG).exists():
        return False
    config = from_json(path / CONFIG, read_text(path / CONFIG))
    return not isinstance(config, dict) or (bool({"kind", "sha256"} & config.keys())
                                            and not {"backend", "added_tokens_decoder"} & config.keys())
