"""What both tokenizers ask of the text and the ids they are given."""

from collections.abc import Iterable, Mapping
from typing import TypeVar

from npgpt.errors import TokenizerError

T = TypeVar("T")


def checked_text(text: str) -> str:
    """The text with nothing in it that UTF-8 cannot hold. Raises TokenizerError if it is no str at all.

    A Python str may hold surrogates (U+D800 to U+DFFF), which are no characters. As in tiktoken, two that
    form a UTF-16 pair become the character they stand for, and each lone one becomes U+FFFD, the
    replacement character.
    """
    if not isinstance(text, str):
        raise TokenizerError(f"a tokenizer takes text as str, not {type(text).__name__}")
    if has_surrogates(text):
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def checked_texts(texts: Iterable[str]) -> Iterable[str]:
    """The texts one by one, each through `checked_text`. A single str counts as one text."""
    return map(checked_text, [texts] if isinstance(texts, str) else texts)


def has_surrogates(text: str) -> bool:
    """Whether some code point of the text is a surrogate and so cannot be written as UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def look_up(table: Mapping[int, T], ids: Iterable[int]) -> list[T]:
    """The entry of every id. Raises TokenizerError at the first one that is not in the table."""
    ids = list(ids)
    try:
        return [table[id] for id in ids]
    except (KeyError, TypeError):               # TypeError: a list or an array stands where a number should
        position, id = next((i, id) for i, id in enumerate(ids) if not _is_key(table, id))
        raise TokenizerError(f"token id {id!r} at position {position} is not in the vocabulary: "
                             f"ids are whole numbers from 0 to {max(table, default=-1)}") from None


def _is_key(table: Mapping[int, T], id: object) -> bool:
    try:
        return id in table
    except TypeError:
        return False
