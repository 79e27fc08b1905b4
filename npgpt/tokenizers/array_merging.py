"""BPE's merges applied to many short pieces at once: in every round each piece has its best pair merged, that
of the smallest rank, the leftmost of equals.

Token t of piece w stands at [t, w], so that a round works on long rows. A piece without a pair to merge is
done and leaves; what is left has fewer tokens every round.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from npgpt.tokenizers.array_table import ArrayTable


class ArrayMerger:
    """byte_ids: of each byte.  ranks: left · 2^bits + right → rank.  made: rank → the id of its token."""

    def __init__(self, byte_ids: Sequence[int], ranks: Mapping[int, int], made: Sequence[int], bits: int):
        self._bits, self._made = np.uint64(bits), np.array(made, np.int64)
        self._byte_ids = np.array(byte_ids, np.int64)
        pairs = np.fromiter(ranks, np.uint64, len(ranks))
        self._pairs = ArrayTable(len(pairs))
        order       = self._pairs.add(pairs, np.ones_like(pairs))
        self._none  = len(made)                                               # the rank of what is no pair
        self._ranks = np.array([*ranks.values(), self._none], np.int32)[[*order, -1]]
        left, right = np.divmod(np.arange(1 << 16), 256)
        self._first = self._rank(self._byte_ids[left], self._byte_ids[right])

    def merge(self, pieces: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """pieces: bytes, uint8 (T, W), anything after a piece's end.  lengths: at least one byte each, (W,)
        →  all ids, one piece after the other: (Σ counts,)  counts: (W,)
        """
        T, W   = pieces.shape
        tokens = self._byte_ids[pieces]                                       # (T, W)
        ranks  = np.full((T, W), self._none, np.int32)        # [t, w]: of the pair that begins at token t
        ranks[:-1] = self._first[pieces[:-1].astype(np.int64) << 8 | pieces[1:]]
        ranks[np.arange(T)[:, None] >= lengths - 1] = self._none
        result, counts = np.empty((T, W), np.int64), lengths.copy()
        which  = np.arange(W)                                 # pieces that are not done
        while which.size:
            best = ranks.argmin(0)
            rank = ranks[best, np.arange(len(which))]
            done = rank == self._none
            if done.any():
                result[:len(tokens), which[done]] = tokens[:, done]
                which, best, rank = which[~done], best[~done], rank[~done]
                tokens, ranks = tokens[:, ~done], ranks[:, ~done]
            counts[which] -= 1
            T      = counts[which].max(initial=0)
            tokens, ranks = (self._without(rows, best + 1, T) for rows in (tokens, ranks))
            new    = self._made[rank]
            column = np.arange(len(which))
            tokens[best, column] = new
            ranks[best, column]  = self._none                                 # if it is the last token now
            before = np.flatnonzero(best > 0)
            place  = best[before] - 1, before
            ranks[place] = self._rank(tokens[place], new[before])
            after  = np.flatnonzero(best + 1 < counts[which])
            place  = best[after], after
            ranks[place] = self._rank(new[after], tokens[best[after] + 1, after])
        return result.T[np.arange(len(result)) < counts[:, None]], counts

    def _rank(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        pairs = left.astype(np.uint64) << self._bits | right.astype(np.uint64)
        return self._ranks[self._pairs.find(pairs, np.ones_like(pairs))]

    @staticmethod
    def _without(rows: np.ndarray, place: np.ndarray, T: int) -> np.ndarray:
        """rows: (≥ T, W)  →  (T, W), each column without what stands at its place; those after it move up."""
        t = np.arange(T)[:, None]
        return np.take_along_axis(rows, np.minimum(t + (t >= place), len(rows) - 1), 0)
