"""One token a character: the simplest tokenizer, and the right one for a small model on a small text.

The vocabulary is the sorted set of the characters (Unicode code points) of the training texts; a
character's id is its place in it. It has no special tokens.
"""

from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

from npgpt.errors import TokenizerError
from npgpt.tokenizers.checks import checked_text, checked_texts, look_up
from npgpt.tokenizers.formats import read_character, write_character


class CharacterTokenizer:
    """One token a character.

    characters: id → character. Raises TokenizerError if there are none, one comes twice or is none.
    """

    def __init__(self, characters: Iterable[str]):
        self._characters = dict(enumerate(characters))
        self._ids = {character: id for id, character in self._characters.items()}
        if not self._ids:
            raise TokenizerError("a character tokenizer needs at least one character, but the text is empty")
        if odd := [one for one in self._ids if not isinstance(one, str) or len(one) != 1]:
            raise TokenizerError(f"a character tokenizer is made of single characters, not {odd[0]!r}: its "
                                 "train takes texts")
        if len(self._ids) < len(self._characters):
            raise TokenizerError("a character tokenizer cannot have the same character twice")

    @classmethod
    def train(cls, texts: Iterable[str]) -> "CharacterTokenizer":
        """The tokenizer of all the characters in the texts."""
        characters: set[str] = set()
        for text in checked_texts(texts):
            characters.update(text)
        return cls(sorted(characters))

    @property
    def vocab_size(self) -> int:
        """The number of different characters."""
        return len(self._characters)

    @property
    def eos_token_id(self) -> None:
        """Always None."""
        return None

    @property
    def prefix(self) -> tuple[int, ...]:
        """Always empty."""
        return ()

    @property
    def special_tokens(self) -> dict[str, int]:
        """Always empty."""
        return {}

    def __contains__(self, id: object) -> bool:
        """Whether a character has this id."""
        return id in self._characters

    def token_bytes(self, id: int) -> bytes:
        """The UTF-8 bytes of a token's character."""
        return self.decode([id]).encode()

    def encode_ordinary(self, text: str) -> list[int]:
        """The ids of a text. Raises TokenizerError at the first character that is not in the vocabulary."""
        text = checked_text(text)
        try:
            return list(map(self._ids.__getitem__, text))
        except KeyError:
            position, character = next((i, c) for i, c in enumerate(text) if c not in self._ids)
            raise TokenizerError(
                f"the character {character!r} (U+{ord(character):04X}) at position {position} of the text is "
                f"none of the {self.vocab_size} this tokenizer was trained on: replace it") from None

    def encode(self, text: str, allowed_special: str | Collection[str] = (),
               disallowed_special: str | Collection[str] = "all") -> list[int]:
        """As `encode_ordinary`: there are no special tokens to which BPETokenizer's rules could apply."""
        return self.encode_ordinary(text)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of the ids."""
        return "".join(look_up(self._characters, ids))

    def decode_stream(self, ids: Iterable[int]) -> Iterator[str]:
        """The text of the ids, character by character as they arrive."""
        for id in ids:
            yield self.decode([id])

    def save(self, folder: str | Path) -> None:
        """Writes vocab.json and tokenizer_config.json into the folder, making it if needed."""
        write_character(Path(folder), list(self._characters.values()))

    @classmethod
    def load(cls, folder: str | Path) -> "CharacterTokenizer":
        """Reads what `save` wrote. Raises TokenizerError, naming the file, if anything in it does not fit."""
        return cls(read_character(Path(folder)))
