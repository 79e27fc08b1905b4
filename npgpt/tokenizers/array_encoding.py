"""Encoding a long text on arrays: what BPETokenizer does piece by piece, for all pieces at once.

A piece of at most 15 bytes is written as two 64-bit numbers: its first eight bytes; and the others, with its
length in the highest byte. A table (array_table.py) is searched for these, not for a hash that two pieces
might share. Pieces that it does not have are merged, all together (array_merging.py), and put in. Longer
pieces, about one in a hundred, go through the tokenizer's own cache.
"""

import threading
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from npgpt.tokenizers.array_merging import ArrayMerger
from npgpt.tokenizers.array_split import code_points
from npgpt.tokenizers.array_table import ArrayTable

SHORT    = 15                   # bytes
CAPACITY = 1 << 18              # pieces that are remembered; when it is full the table starts anew
AT_ONCE  = 1 << 16              # pieces looked up at a time
LENGTH   = np.uint64(56)        # bits below a piece's length
FIRST, SECOND = (np.array([(1 << 8 * min(max(n - before, 0), 8)) - 1 for n in range(SHORT + 1)], np.uint64)
                 for before in (0, 8))
"""By a piece's length, the bits of its two numbers that bytes of it fill."""


class ArrayEncoder:
    """split: gives the places where the pieces of a text begin.  merger: of pieces of at most SHORT bytes.
    tokens: pieces that are tokens whatever the merges make of them, with their ids.  encode_long: gives the
    ids of any piece.  Threads may share it: they take turns.
    """

    def __init__(self, split: Callable[[str], np.ndarray], merger: ArrayMerger,
                 tokens: Iterable[tuple[bytes, int]], encode_long: Callable[[str], Sequence[int]]):
        self._split, self._merger, self._encode_long = split, merger, encode_long
        self._lock   = threading.Lock()
        short   = {data: id for data, id in tokens if 0 < len(data) <= SHORT}
        numbers = np.frombuffer(b"".join(data.ljust(16, b"\0") for data in short), "<u8").reshape(-1, 2)
        lengths = np.fromiter(map(len, short), np.uint64, len(short))
        self._token_keys = numbers[:, 0], numbers[:, 1] | lengths << LENGTH
        self._token_ids  = np.fromiter(short.values(), np.int32, len(short))
        self.clear()

    def clear(self) -> None:
        """Forgets all pieces but the tokens."""
        self._table = ArrayTable(CAPACITY + len(self._token_ids))
        self._ids   = self._token_ids[self._table.add(*self._token_keys)]     # of one piece after the other
        self._ends  = np.arange(len(self._ids) + 1)           # piece n has _ids[_ends[n]:_ends[n + 1]]

    def encode(self, text: str) -> np.ndarray:
        """The ids of a text of at least one character, without surrogates: (n,)"""
        data   = text.encode()
        starts = self._split(text)
        places = np.append(starts if text.isascii() else _byte_places(text)[starts], len(data))
        starts = np.append(starts, len(text))
        parts  = []
        words  = np.ndarray(len(data) + 9, "<u8", data + bytes(16), strides=(1,))     # eight bytes at each
        with self._lock:
            for piece in range(0, len(starts) - 1, AT_ONCE):
                here    = slice(piece, piece + AT_ONCE)
                lengths = np.diff(places[piece:piece + AT_ONCE + 1])
                sizes   = np.minimum(lengths, SHORT)          # of a longer piece the beginning, for now
                first   = words[places[:-1][here]] & FIRST[sizes]
                second  = words[places[:-1][here] + 8] & SECOND[sizes] | sizes.astype(np.uint64) << LENGTH
                number  = self._numbers(first, second)
                long    = np.flatnonzero(lengths > SHORT)
                others  = [self._encode_long(text[start:end]) for start, end in
                           zip(starts[piece + long].tolist(), starts[piece + long + 1].tolist(), strict=True)]
                parts.append(self._gathered(number, long, others))
        return np.concatenate(parts)

    def _numbers(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """Of pieces in the table, where the new ones are put first."""
        numbers = self._table.find(first, second)
        missing = np.flatnonzero(numbers < 0)
        if missing.size == 0:
            return numbers
        if self._table.count + missing.size > self._table.capacity:
            self.clear()
            return self._numbers(first, second)
        new   = missing[self._table.add(first[missing], second[missing])]
        data  = np.stack([first[new], second[new]], 1).view(np.uint8)         # (W, 16), the length at the end
        size  = data[:, SHORT].astype(np.int64)
        ids, counts = self._merger.merge(np.ascontiguousarray(data.T[:size.max()]), size)
        self._ends  = np.concatenate([self._ends, self._ends[-1] + np.cumsum(counts)])
        self._ids   = np.concatenate([self._ids, ids.astype(np.int32)])
        numbers[missing] = self._table.find(first[missing], second[missing])
        return numbers

    def _gathered(self, numbers: np.ndarray, long: np.ndarray, others: list[Sequence[int]]) -> np.ndarray:
        """The ids of pieces by their numbers, but of those at `long` the ids in `others`."""
        starts, ids = self._ends[numbers], self._ids
        counts = self._ends[numbers + 1] - starts
        if others:
            counts[long] = lengths = np.array([len(other) for other in others])
            starts[long] = len(ids) + np.cumsum(lengths) - lengths
            ids = np.concatenate([ids, *(np.array(other, np.int32) for other in others)])
        ends = np.cumsum(counts)
        return ids[np.repeat(starts - (ends - counts), counts) + np.arange(ends[-1])]


def _byte_places(text: str) -> np.ndarray:
    """Where each character begins in UTF-8: (n,)"""
    points = code_points(text)
    sizes  = 1 + (points >= 0x80).astype(np.int64) + (points >= 0x800) + (points >= 0x10000)
    return np.cumsum(sizes) - sizes
