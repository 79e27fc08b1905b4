"""Byte-level BPE (Sennrich, Haddow & Birch 2016; over bytes, as in GPT-2, Radford et al. 2019).

A text is cut into pieces by a split pattern, each piece is written as its UTF-8 bytes, and the learned
merges are applied to it in the order in which they were learned. All 256 bytes are tokens, so nothing is
ever unknown.

Of all the pairs in a piece that can be merged, the one whose merge was learned first goes first. In
tokenizers trained here the ids say so: the 256 bytes in GPT-2's order come first, then one id for each merge
in order, then the special tokens. Tokenizers of others number their tokens as they like (`foreign.py`).
Special tokens stand for no bytes of a text; whoever wants one before or between texts puts it there.
"""

import codecs
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from heapq import heapify, heappop, heappush
from itertools import chain, pairwise
from pathlib import Path

import regex

from npgpt.errors import TokenizerError
from npgpt.ranges import is_whole
from npgpt.tokenizers.array_encoding import ArrayEncoder
from npgpt.tokenizers.array_merging import ArrayMerger
from npgpt.tokenizers.array_split import piece_starts
from npgpt.tokenizers.byte_pair_tables import NO_TOKEN, check_special_tokens, default_vocabulary, tables
from npgpt.tokenizers.byte_pair_training import Pair, count_pieces, learn_merges
from npgpt.tokenizers.checks import checked_text, has_surrogates, look_up
from npgpt.tokenizers.formats import END_OF_TEXT, NORMALIZERS, BytePair, read_byte_pair, write_byte_pair
from npgpt.tokenizers.normal_forms import normalize
from npgpt.tokenizers.patterns import splitter, stretches
from npgpt.tokenizers.piece_cache import PieceCache

SHORT = 50              # bytes of a piece that is merged without a heap
LONG_TEXT = 6000        # characters of a text that is encoded on arrays
STRETCH   = 1_000_000   # of them at a time; one that cannot be cut there may have four times as many


class BPETokenizer:
    """Byte-level BPE.

    merges: pairs of token ids, first things first.  special_tokens: their texts, which get the ids after all
    others, or {text: id}.  pattern: a name in `patterns.py`.
    vocabulary: {id: bytes} of all other tokens, each merge making one of them; by default the 256 bytes in
    GPT-2's order, and merge i makes the token 256 + i, of two that exist before it.
    ignore_merges: a piece that is a token as a whole becomes that at once, whatever the merges would make of
    it: the same, if they were learned as `byte_pair_training.py` does.
    prefix_token: the special token after which a model of this tokenizer expects every text, if there is one.
    normalizer: "NFC" where every text is brought into that form of Unicode before it is split, as Qwen's are:
    what is decoded is then the text in that form, not always the one that was encoded.
    added_tokens: {text: id} of tokens that are found in every text before it is split, as Qwen3's <think> is.
    A byte that no token stands for (SmolLM2's vocabulary has none for some control characters) is left out of
    what is encoded, as Hugging Face's tokenizers leave it out.
    Raises TokenizerError if these do not make a tokenizer.
    """

    def __init__(self, merges: Iterable[Pair],
                 special_tokens: Sequence[str] | Mapping[str, int] = (END_OF_TEXT,), pattern: str = "gpt2",
                 vocabulary: Mapping[int, bytes] | None = None, ignore_merges: bool = False,
                 prefix_token: str | None = None, normalizer: str | None = None,
                 added_tokens: Mapping[str, int] | None = None):
        self.pattern, self.ignore_merges, self.prefix_token = pattern, ignore_merges, prefix_token
        self.normalizer = normalizer
        self.merges = tuple(merges)
        self._split = splitter(pattern)
        self.vocabulary = default_vocabulary(self.merges) if vocabulary is None else dict(vocabulary)
        self._ids = {data: id for id, data in self.vocabulary.items()}
        self._bits = max(self.vocabulary).bit_length()
        self._byte_ids, self._ranks, self._made = tables(self.merges, self.vocabulary, self._ids, self._bits)
        self._absent = bytes(byte for byte, id in enumerate(self._byte_ids) if id == NO_TOKEN)
        check_special_tokens(special_tokens, self.vocabulary)
        first = max(self.vocabulary) + 1
        self.special_tokens = dict(special_tokens) if isinstance(special_tokens, Mapping) \
            else {token: first + i for i, token in enumerate(special_tokens)}
        self.added_tokens = dict(added_tokens or {})
        self._named = self.special_tokens | self.added_tokens
        if both := self.special_tokens.keys() & self.added_tokens.keys():
            raise TokenizerError(f"the token {min(both)!r} is both a special and an added one")
        check_special_tokens(self._named, self.vocabulary)
        if prefix_token is not None and prefix_token not in self._named:
            raise TokenizerError(f"the prefix token {prefix_token!r} is none of the special tokens")
        if normalizer not in NORMALIZERS:
            raise TokenizerError(f"unknown normalizer {normalizer!r}: the known one is NFC")
        self._bytes = self.vocabulary | {id: token.encode() for token, id in self._named.items()}
        self._ids_of_piece = PieceCache(self._encode_piece)

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int, pattern: str = "gpt2",
              special_tokens: Sequence[str] = (END_OF_TEXT,),
              progress: Callable[[int, int], None] | None = None, workers: int = 1) -> "BPETokenizer":
        """Learns the merges from the texts.

        vocab_size counts the 256 bytes, the merges and the special tokens. If every piece of the texts
        has become one token before that size is reached, the tokenizer has fewer tokens. Special tokens
        that occur in the texts are ordinary text. `progress(done, wanted)` is called after each merge.
        workers: processes that cut long texts into pieces; the result is the same for any number.
        """
        smallest = cls((), special_tokens, pattern).vocab_size          # bad arguments fail before the work
        if not is_whole(vocab_size):
            raise TokenizerError(f"vocab_size must be a whole number, not {vocab_size!r}")
        if vocab_size < smallest:
            raise TokenizerError(f"vocab_size {vocab_size} is too small: byte-level BPE needs at least "
                                 f"{smallest}, for 256 bytes and the special tokens")
        merges = learn_merges(count_pieces(texts, pattern, workers), vocab_size - smallest, progress)
        return cls(merges, special_tokens, pattern, ignore_merges=True)       # the same ids, found sooner

    @property
    def vocab_size(self) -> int:
        """One more than the largest id: the number of tokens, where no id is left out."""
        return max(self._bytes) + 1

    @property
    def eos_token_id(self) -> int | None:
        """The id of <|endoftext|>, or None if that is not one of the special tokens."""
        return self._named.get(END_OF_TEXT)

    @property
    def prefix(self) -> tuple[int, ...]:
        """The id that stands before every text that a model reads, as <|begin_of_text|> does for Llama 3;
        none for GPT-2 and what is trained here. Encoding does not put it there.
        """
        return () if self.prefix_token is None else (self._named[self.prefix_token],)

    def __contains__(self, id: object) -> bool:
        """Whether a token has this id."""
        return id in self._bytes

    def token_bytes(self, id: int) -> bytes:
        """The bytes that a token stands for; for a special token, its text in UTF-8."""
        return look_up(self._bytes, [id])[0]

    # Encoding

    def encode(self, text: str, allowed_special: str | Collection[str] = (),
               disallowed_special: str | Collection[str] = "all") -> list[int]:
        """The ids of a text, with tiktoken's rules for the special tokens that occur in it.

        allowed_special: these become their ids; "all" means every special token.
        disallowed_special: these raise TokenizerError; "all" means every special token that is not allowed.
        The text of any other special token is encoded like ordinary text. Where one special token is the
        beginning of another, the longer is found. Surrogates are treated as `checks.checked_text` says.
        """
        text = checked_text(text)
        special = self.special_tokens.keys()
        allowed = special & _names(allowed_special, special, "allowed_special")
        disallowed = _names(disallowed_special, special - allowed, "disallowed_special")
        if disallowed and (found := _any_of(disallowed).search(text)):
            token = found.group()
            raise TokenizerError(f"the text has the special token {token!r} at position {found.start()}: "
                                 f"pass allowed_special={{{token!r}}} to encode it as that token, or "
                                 f"disallowed_special=() to encode it as ordinary text")
        return self._encode_between(text, allowed)

    def encode_ordinary(self, text: str) -> list[int]:
        """The ids of a text in which special tokens mean nothing: how a corpus is encoded."""
        return self._encode_between(checked_text(text))

    def encode_bytes(self, data: bytes) -> list[int]:
        """The ids of any bytes at all: `decode_bytes(encode_bytes(data)) == data`, if every byte has a token,
        and no normalizer changes what of them is text, as it does in `encode`.

        For valid UTF-8 these are the ids of the text. Where the bytes are not valid UTF-8, each is encoded as
        itself, and the split pattern takes it for a punctuation mark.
        """
        return self._encode_between(data.decode("utf-8", "surrogateescape"))

    def _encode_between(self, text: str, special: Collection[str] = ()) -> list[int]:
        """These special tokens and all added ones become their ids, and what is between them is encoded."""
        ids: list[int] = []
        start = 0
        if found := {*special, *self.added_tokens}:
            for match in _any_of(found).finditer(text):
                ids += self._encode_clean(text[start:match.start()])
                ids.append(self._named[match.group()])
                start = match.end()
        return ids + self._encode_clean(text[start:])

    def _encode_clean(self, text: str) -> list[int]:
        """A surrogate in this text stands for a byte, as Python's "surrogateescape" has it."""
        if self.normalizer == "NFC":
            text = normalize("NFC", text)              # which leaves surrogates as they are
        if len(text) < LONG_TEXT or self._absent:
            return self._encode_pieces(text)
        ids: list[int] = []
        for stretch in stretches(text, STRETCH):
            ids += self._encode_pieces(stretch) if len(stretch) > 4 * STRETCH or has_surrogates(stretch) \
                else self._arrays.encode(stretch).tolist()
        return ids

    def _encode_pieces(self, text: str) -> list[int]:
        return list(chain.from_iterable(map(self._ids_of_piece.__getitem__, self._split(text))))

    @cached_property
    def _arrays(self) -> ArrayEncoder:
        return ArrayEncoder(partial(piece_starts, pattern=self.pattern),
                            ArrayMerger(self._byte_ids, self._ranks, self._made, self._bits),
                            self._ids.items() if self.ignore_merges else (), self._ids_of_piece.__getitem__)

    def _encode_piece(self, piece: str) -> list[int]:
        """Applies the merges to one piece, smallest rank first, then leftmost."""
        data = piece.encode("utf-8", "surrogateescape").translate(None, self._absent)
        if self.ignore_merges and data in self._ids:
            return [self._ids[data]]
        tokens = [self._byte_ids[byte] for byte in data]
        return self._merge_short(tokens) if len(tokens) <= SHORT else self._merge(tokens)

    def _merge_short(self, tokens: list[int]) -> list[int]:
        """As `_merge`, with the ranks of all pairs in a list: O(n²), but for a word in 0.6 of the time."""
        rank_of, made, bits, none = self._ranks.get, self._made, self._bits, len(self._made)
        ranks = [rank_of(left << bits | right, none) for left, right in pairwise(tokens)]
        ranks.append(none)                                              # no pair begins at the last token
        while (rank := min(ranks)) < none:
            i = ranks.index(rank)
            tokens[i] = new = made[rank]
            del tokens[i + 1], ranks[i]
            if i > 0:
                ranks[i - 1] = rank_of(tokens[i - 1] << bits | new, none)
            if i + 1 < len(tokens):
                ranks[i] = rank_of(new << bits | tokens[i + 1], none)
        return tokens

    def _merge(self, tokens: list[int]) -> list[int]:
        """O(n log n) for n bytes, whatever they are.

        The tokens are a doubly linked list over the slots of their first bytes; −1 marks a slot whose
        token has been merged into the one before it, and the end. A heap holds each pair that can be
        merged, as one number made of the rank and the slot. Such a pair may have lost one of its tokens
        by the time it comes to the top; then what now stands in its place no longer has that rank.
        """
        rank_of, made, bits = self._ranks.get, self._made, self._bits
        n = len(tokens)
        tokens.append(-1)                                               # tokens[n], and so also tokens[-1]
        following = list(range(1, n + 2))
        previous = list(range(-1, n))
        queue = [rank * n + i for i in range(n)
                 if (rank := rank_of(tokens[i] << bits | tokens[i + 1])) is not None]
        heapify(queue)
        while queue:
            rank, i = divmod(heappop(queue), n)
            j = following[i]
            if rank_of(tokens[i] << bits | tokens[j]) != rank:
                continue
            h, k = previous[i], following[j]
            new = tokens[i] = made[rank]
            tokens[j] = -1
            following[i], previous[k] = k, i
            if (newer := rank_of(tokens[h] << bits | new)) is not None:
                heappush(queue, newer * n + h)
            if (newer := rank_of(new << bits | tokens[k])) is not None:
                heappush(queue, newer * n + i)
        return [token for token in tokens if token >= 0]

    # Decoding

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes that the ids stand for."""
        return b"".join(look_up(self._bytes, ids))

    def decode(self, ids: Iterable[int]) -> str:
        """The text that the ids stand for; bytes that are not UTF-8 become U+FFFD (replacement character)."""
        return self.decode_bytes(ids).decode("utf-8", "replace")

    def decode_stream(self, ids: Iterable[int]) -> Iterator[str]:
        """The text of `decode` while the ids arrive, each part as soon as its characters are complete."""
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        for id in ids:
            if text := decoder.decode(self.token_bytes(id)):
                yield text
        if text := decoder.decode(b"", final=True):
            yield text

    # Files

    def save(self, folder: str | Path) -> None:
        """Writes vocab.json and merges.txt (as GPT-2's), tokenizer.json (as Hugging Face's) and
        tokenizer_config.json. Makes the folder.
        """
        write_byte_pair(Path(folder), self._parts())

    @classmethod
    def load(cls, folder: str | Path) -> "BPETokenizer":
        """Reads what `save` wrote. Raises TokenizerError, naming the file, if anything in it does not fit."""
        return cls(*read_byte_pair(Path(folder)))

    def _parts(self) -> BytePair:
        return BytePair(self.merges, self.special_tokens, self.pattern, self.vocabulary, self.ignore_merges,
                        self.prefix_token, self.normalizer, self.added_tokens)

    def __reduce__(self) -> tuple:
        """A copy, or one that was pickled, is made anew of what this one was made of."""
        return type(self), tuple(self._parts())


def _names(given: str | Collection[str], all_of_them: Collection[str], argument: str) -> set[str]:
    """What an argument that may be "all" names."""
    if isinstance(given, str) and given != "all":
        raise TokenizerError(f'{argument} must be "all" or a collection of special tokens, not the single '
                             f"string {given!r}: write {{{given!r}}}")
    return set(all_of_them if given == "all" else given)


def _any_of(special_tokens: Collection[str]) -> "regex.Pattern[str]":
    longest_first = sorted(special_tokens, key=len, reverse=True)
    return regex.compile("|".join(map(regex.escape, longest_first)))
