"""Which tokens a step trains on: a pure function of (seed, step), so resuming needs no saved
state.

Training walks the data by **epochs**. Each epoch cuts the tokens into windows of `block_size` inputs that do
not overlap, beginning at an offset of its own, and visits every window once, in an order of its own. Example
n of the run, counted from 0 through all steps, is window n mod W of epoch n // W, where W windows make an
epoch.

Offset and order come from Philox(key=(seed, STREAM), counter=(0, epoch, 0, 0)). The offset moves the cuts, so
that over the epochs every token is seen, and both early and late in a window; W is one less than the windows
that fit, which leaves it room (an epoch passes over fewer than 2 · block_size tokens at the two ends).
"""

from collections.abc import Iterator

import numpy as np

from npgpt.errors import DataError

STREAM = 2
"""The second word of the Philox key; npgpt/tensor/random.py lists what the others are used for."""


class Batches:
    """The training batches of a token array or memory map: `Batches(tokens, T, B, seed).at(step)`."""

    def __init__(self, tokens: np.ndarray, block_size: int, batch_size: int, seed: int):
        _check_length(tokens, block_size)
        self.tokens, self.block_size, self.batch_size, self.seed = tokens, block_size, batch_size, seed
        self.windows = max(1, len(tokens) // block_size - 1)
        self._last_epoch = (-1, np.empty(0, np.int64))  # for speed alone; one tuple, as threads may share it

    def at(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """The inputs x and targets y of a step, int64 (B, T) each; y is x one token later."""
        examples = np.arange(step * self.batch_size, (step + 1) * self.batch_size)
        epochs, places = np.divmod(examples, self.windows)
        starts = np.concatenate([self._starts(epoch)[places[epochs == epoch]]
                                 for epoch in range(epochs[0], epochs[-1] + 1)])
        return _windows(self.tokens, starts, self.block_size)

    def _starts(self, epoch: int) -> np.ndarray:
        """Where the windows of an epoch begin, in the order of their visit."""
        last, starts = self._last_epoch
        if last != epoch:
            key, counter = np.array([self.seed, STREAM], np.uint64), np.array([0, epoch, 0, 0], np.uint64)
            random = np.random.Generator(np.random.Philox(key=key, counter=counter))
            offset = random.integers(len(self.tokens) - self.windows * self.block_size)
            starts = offset + self.block_size * random.permutation(self.windows)
            self._last_epoch = (epoch, starts)
        return starts


def evaluation_batches(
    tokens: np.ndarray, block_size: int, batch_size: int, max_batches: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Batches of windows that do not overlap, spread evenly over the tokens, the same at every call.

    x, y: int64 (B, T), fewer rows in the last batch. At most max_batches · batch_size windows altogether.
    """
    _check_length(tokens, block_size)
    windows = (len(tokens) - 1) // block_size
    count = min(windows, max_batches * batch_size)
    starts = block_size * (np.arange(count) * windows // count)
    batches = (starts[i:i + batch_size] for i in range(0, count, batch_size))
    return (_windows(tokens, batch, block_size) for batch in batches)


def _windows(tokens: np.ndarray, starts: np.ndarray, block_size: int) -> tuple[np.ndarray, np.ndarray]:
    rows = tokens[starts[:, None] + np.arange(block_size + 1)].astype(np.int64)  # (B, T + 1)
    return np.ascontiguousarray(rows[:, :-1]), np.ascontiguousarray(rows[:, 1:])


def _check_length(tokens: np.ndarray, block_size: int) -> None:
    if len(tokens) < block_size + 1:
        raise DataError(f"the data has {len(tokens)} tokens, and one window of block_size {block_size} needs "
                        f"{block_size + 1}; give more text or a smaller block_size")
