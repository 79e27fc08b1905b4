"""Examples as rows of a batch: several to a row, so that little of it is padding.

Packing is best-fit decreasing: from the longest example to the shortest, each goes into the fullest row that
still has room for it (Johnson 1973: never more than 11/9 of the rows needed, and a few). The rows are made
once; each epoch visits them all, in an order of its own. No example sees another of its row, so it does not
matter which they are: attention_mask gives the n-th example of a row the number n.
"""

from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from heapq import heappop, heappush

import numpy as np

from npgpt.data.batches import Batch, drawn, epoch_random
from npgpt.data.examples import Examples

IGNORE_INDEX = -100
WIDTHS = 8              # rows are as wide as the fullest of a batch needs, and then to a multiple of this


class ExampleBatches:
    """The training batches of examples: `ExampleBatches(examples, block_size, batch_size, seed).at(step)`.

    packed: several share a row; one that is classified has a row of its own.
    """

    def __init__(self, examples: Examples, block_size: int, batch_size: int, seed: int, packed: bool = True):
        self.examples, self.block_size = examples, block_size
        self.batch_size, self.seed     = batch_size, seed
        self.rows = pack(examples.inputs, block_size if packed and not examples.labels.size else 0)
        self._inputs     = examples.inputs
        self._last_epoch = (-1, np.empty(0, np.int64))

    def at(self, step: int) -> Batch:
        """The batch of a step."""
        return self._batch(drawn(step, self.batch_size, len(self.rows), self._order).tolist())

    def evaluation(self, batch_size: int, max_batches: int) -> Iterator[Batch]:
        """Batches of different rows, spread evenly over them all, the same at every call."""
        count  = min(len(self.rows), max_batches * batch_size)
        chosen = (np.arange(count) * len(self.rows) // count).tolist()
        return (self._batch(chosen[i:i + batch_size]) for i in range(0, count, batch_size))

    def _order(self, epoch: int) -> np.ndarray:
        last, order = self._last_epoch
        if last != epoch:
            order = epoch_random(self.seed, epoch).permutation(len(self.rows))
            self._last_epoch = (epoch, order)
        return order

    def _batch(self, rows: list[int]) -> Batch:
        e, B, inputs = self.examples, len(rows), self._inputs
        width  = max(int(inputs[self.rows[row]].sum()) for row in rows)
        T      = min(-(-width // WIDTHS) * WIDTHS, self.block_size)
        tokens, mask = np.zeros((B, T), np.int64), np.zeros((B, T), np.int64)
        targets      = np.full((B, T), IGNORE_INDEX, np.int64)
        for b, row in enumerate(rows):
            t = 0
            for number, n in enumerate(self.rows[row], 1):
                start, length = e.starts[n], int(inputs[n])
                here = slice(t, t := t + length)
                tokens[b, here], mask[b, here] = e.tokens[start:start + length], number
                if not e.labels.size:
                    after = slice(start + 1, start + 1 + length)
                    targets[b, here] = np.where(e.counted[after], e.tokens[after], IGNORE_INDEX)
        if e.labels.size:
            targets = e.labels[[self.rows[row][0] for row in rows]]
        return Batch(tokens, targets, mask)


def pack(lengths: Sequence[int] | np.ndarray, size: int) -> list[np.ndarray]:
    """Rows of numbers of examples, whose lengths add up to at most `size`; alone, where `size` allows no
    other."""
    rows:   list[list[int]] = []
    rooms:  list[int] = []                                 # what is left of rows, rising, each size once
    having: dict[int, list[int]] = {}                      # room → the rows with so much, a heap
    for n in np.argsort(-np.asarray(lengths), kind="stable").tolist():
        length = int(lengths[n])
        place  = bisect_left(rooms, length)
        if place < len(rooms):
            room = rooms[place]
            row  = heappop(having[room])
            if not having[room]:
                del having[room], rooms[place]
        else:
            room, row = max(size, length), len(rows)
            rows.append([])
        rows[row].append(n)
        if left := room - length:
            if left not in having:
                insort(rooms, left)
            heappush(having.setdefault(left, []), row)
    return [np.array(row) for row in rows]
