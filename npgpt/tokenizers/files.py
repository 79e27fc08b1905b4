"""Reading a tokenizer of any kind from its folder."""

from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Protocol

from npgpt.errors import TokenizerError
from npgpt.tokenizers.byte_pair import BPETokenizer
from npgpt.tokenizers.character import CharacterTokenizer
from npgpt.tokenizers.formats import CONFIG, read_config


class Tokenizer(Protocol):
    """What every tokenizer can do; the rest of npgpt asks for nothing more."""

    @property
    def vocab_size(self) -> int: ...
    @property
    def eos_token_id(self) -> int | None: ...
    @property
    def special_tokens(self) -> dict[str, int]: ...
    def encode(self, text: str, allowed_special: str | Collection[str] = (),
               disallowed_special: str | Collection[str] = "all") -> list[int]: ...
    def encode_ordinary(self, text: str) -> list[int]: ...
    def decode(self, ids: Iterable[int]) -> str: ...
    def decode_stream(self, ids: Iterable[int]) -> Iterator[str]: ...
    def save(self, folder: str | Path) -> None: ...


def load_tokenizer(folder: str | Path) -> Tokenizer:
    """The tokenizer saved in a folder. Raises TokenizerError, naming the file, if it cannot be used."""
    folder = Path(folder)
    kind = read_config(folder)["kind"]
    if kind == "bpe":
        return BPETokenizer.load(folder)
    if kind == "character":
        return CharacterTokenizer.load(folder)
    raise TokenizerError(f"{folder / CONFIG} cannot be used: its tokenizer is of the unknown kind {kind!r}")
