"""From vocabulary and merges to the tables that BPETokenizer looks things up in, with every part checked."""

from collections.abc import Mapping, Sequence

from npgpt.errors import TokenizerError
from npgpt.tokenizers.byte_alphabet import BYTE_ORDER, from_symbols
from npgpt.tokenizers.byte_pair_training import Pair
from npgpt.tokenizers.checks import has_surrogates

NO_TOKEN = -1       # in the place of the id of a byte that no token stands for


def default_vocabulary(merges: Sequence[Pair]) -> dict[int, bytes]:
    """id → bytes, where merge i makes the token 256 + i."""
    vocabulary = {id: bytes([byte]) for id, byte in enumerate(BYTE_ORDER)}
    known = set(vocabulary.values())
    for new, (left, right) in enumerate(merges, start=256):
        if not (0 <= left < new and 0 <= right < new):
            raise TokenizerError(f"merge {new - 256} joins the tokens {left} and {right}, "
                                 f"but only the tokens 0 to {new - 1} exist before it")
        token = vocabulary[left] + vocabulary[right]
        if token in known:
            raise TokenizerError(f"merge {new - 256} makes the token {token!r} a second time")
        known.add(token)
        vocabulary[new] = token
    return vocabulary


def tables(merges: Sequence[Pair], vocabulary: Mapping[int, bytes],
           ids: Mapping[bytes, int], bits: int) -> tuple[list[int], dict[int, int], list[int]]:
    """byte → id, pair → rank, rank → id of the token it makes. A pair is one number here, which is found
    faster: left · 2^bits + right. Several merges may make the same token.
    """
    if len(ids) < len(vocabulary):
        twice = next(data for id, data in vocabulary.items() if ids[data] != id)
        raise TokenizerError(f"the token {twice!r} has two ids in the vocabulary")
    ranks: dict[int, int] = {}
    made: list[int] = []
    for number, (left, right) in enumerate(merges):
        token = vocabulary.get(left, b"") + vocabulary.get(right, b"")
        if left not in vocabulary or right not in vocabulary or token not in ids:
            raise TokenizerError(f"merge {number} joins the tokens {left} and {right} to {token!r}, which "
                                 "are not all in the vocabulary")
        ranks[left << bits | right] = number
        made.append(ids[token])
    return [ids.get(bytes([byte]), NO_TOKEN) for byte in range(256)], ranks, made


def check_special_tokens(special_tokens: Sequence[str] | Mapping[str, int],
                         vocabulary: Mapping[int, bytes]) -> None:
    if isinstance(special_tokens, str):
        raise TokenizerError(f"special_tokens must be a sequence of strings, not the single string "
                             f"{special_tokens!r}: write [{special_tokens!r}]")
    ordinary = set(vocabulary.values())
    tokens: set[str] = set()
    for token in special_tokens:
        if not isinstance(token, str) or not token or has_surrogates(token):
            raise TokenizerError(f"special token {token!r} is not a non-empty piece of text")
        if token in tokens:
            raise TokenizerError(f"special token {token!r} is given twice")
        tokens.add(token)
        if from_symbols(token) in ordinary:
            raise TokenizerError(f"special token {token!r} is also how vocab.json writes an ordinary token: "
                                 f"choose something that no text contains, like '<|endoftext|>'")
    ids: set[int] = set()
    for token, id in special_tokens.items() if isinstance(special_tokens, Mapping) else ():
        if type(id) is not int or id < 0 or id in vocabulary or id in ids:
            raise TokenizerError(f"special token {token!r} has the id {id!r}, which is no whole number of "
                                 "its own")
        ids.add(id)
