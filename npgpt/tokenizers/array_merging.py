"""BPE's merges applied to many short pieces at once: in every round each piece has its best pair merged, that
of the smallest rank, the leftmost of equals.

Slot t of piece w is at [t, w], so that a round works on long rows; at first it holds byte t. When two tokens
become one, that is put where the left one was, and the slot of the right one is empty from then on. Every
piece has one more slot, empty from the beginning: it stands before the first token and after the last.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from npgpt.tokenizers.array_table import ArrayTable

EMPTY = -1                              # no token; with it nothing is a pair


class ArrayMerger:
    """byte_ids: of each byte.  ranks: left · 2^bits + right → rank.  made: rank → the id of its token."""

    def __init__(self, byte_ids: Sequence[int], ranks: Mapping[int, int], made: Sequence[int], bits: int):
        self._bits, self._made = np.uint64(bits), np.array(made, np.int64)
        self._byte_ids = np.array(byte_ids, np.int64)
        pairs = np.fromiter(ranks, np.uint64, len(ranks))
        self._pairs = ArrayTable(len(pairs))
        order       = self._pairs.add(pairs, np.ones_like(pairs))
        self._none  = len(made)                                               # the rank of what is no pair
        self._ranks = np.array([*ranks.values(), self._none], np.int64)[[*order, -1]]
        left, right = np.divmod(np.arange(1 << 16), 256)
        self._first = self._rank(self._byte_ids[left], self._byte_ids[right])

    def merge(self, pieces: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """pieces: bytes, uint8 (T, W), anything after a piece's end.  lengths: at least one byte each, (W,)
        →  all ids, one piece after the other: (Σ counts,)  counts: (W,)
        """
        T, W    = pieces.shape
        t, w    = np.arange(T + 1)[:, None], np.arange(W)
        tokens  = np.full((T + 1, W), EMPTY)
        tokens[:-1] = np.where(t[:-1] < lengths, self._byte_ids[pieces], EMPTY)
        ranks   = np.full((T + 1, W), self._none)             # [t, w]: of the pair that begins at slot t
        ranks[:-2] = self._first[pieces[:-1].astype(np.int64) << 8 | pieces[1:]]
        ranks[t >= lengths - 1] = self._none
        orders  = ranks * (T + 1) + t                         # the smallest is the pair to merge
        nothing = self._none * (T + 1)
        slots   = t * W + w                                   # in the arrays laid flat
        following = slots + W
        previous  = (slots - W) % slots.size                  # of the first: the last, which is empty
        flat_tokens, flat_orders, following, previous = (
            array.reshape(-1) for array in (tokens, orders, following, previous))
        while True:
            best = orders.min(0)
            w    = np.flatnonzero(best < nothing)             # pieces that are not done
            if not w.size:
                break
            rank, t = np.divmod(best[w], T + 1)
            left    = t * W + w
            right   = following[left]
            before, after = previous[left], following[right]
            flat_tokens[left] = new = self._made[rank]
            flat_tokens[right] = EMPTY
            flat_orders[right] = nothing
            following[left], previous[after] = after, left
            flat_orders[before] = self._rank(flat_tokens[before], new) * (T + 1) + before // W
            flat_orders[left]   = self._rank(new, flat_tokens[after]) * (T + 1) + t
        there = tokens.T != EMPTY
        return tokens.T[there], there.sum(1)

    def _rank(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        pairs = left.astype(np.uint64) << self._bits | right.astype(np.uint64)
        return self._ranks[self._pairs.find(pairs, np.ones_like(pairs))]
