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

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from npgpt.data.shards import check_uncut
from npgpt.errors import DataError

STREAM = 2
"""The second word of the Philox key; npgpt/tensor/random.py lists what the others are used for."""


class Batch(NamedTuple):
    """What a model is given at once.

    tokens: int64 (B, T).  targets: int64 (B, T), −100 where nothing counts; or (B,), the class of each row.
    attention_mask: int64 (B, T), as a GPT takes it, or None where every token is real and sees all before it.
    """

    tokens: np.ndarray
    targets: np.ndarray
    attention_mask: np.ndarray | None = None

    def rows(self, part: slice) -> "Batch":
        """Some of the rows."""
        mask = self.attention_mask
        return Batch(self.tokens[part], self.targets[part], None if mask is None else mask[part])

    @property
    def real(self) -> int:
        """Tokens that are no padding."""
        return self.tokens.size if self.attention_mask is None else int((self.attention_mask != 0).sum())


class Batches:
    """The training batches of a token array or memory map: `Batches(tokens, T, B, seed).at(step)`."""

    def __init__(self, tokens: np.ndarray, block_size: int, batch_size: int, seed: int):
        _check(tokens, block_size)
        self.tokens, self.block_size, self.batch_size, self.seed = tokens, block_size, batch_size, seed
        self.windows = max(1, len(tokens) // block_size - 1)
        self._last_epoch = (-1, np.empty(0, np.int64))  # for speed alone; one tuple, as threads may share it

    def at(self, step: int) -> Batch:
        """The batch of a step; its targets are its tokens one later."""
        starts = drawn(step, self.batch_size, self.windows, self._starts)
        return _windows(self.tokens, starts, self.block_size)

    def evaluation(self, batch_size: int, max_batches: int) -> Iterator[Batch]:
        """Batches of windows that do not overlap, spread evenly over the tokens, the same at every call; the
        last may have fewer rows. At most max_batches · batch_size windows altogether.
        """
        windows = (len(self.tokens) - 1) // self.block_size
        count   = min(windows, max_batches * batch_size)
        starts  = self.block_size * (np.arange(count) * windows // count)
        batches = (starts[i:i + batch_size] for i in range(0, count, batch_size))
        return (_windows(self.tokens, batch, self.block_size) for batch in batches)

    def _starts(self, epoch: int) -> np.ndarray:
        """Where the windows of an epoch begin, in the order of their visit."""
        last, starts = self._last_epoch
        if last != epoch:
            random = epoch_random(self.seed, epoch)
            offset = random.integers(len(self.tokens) - self.windows * self.block_size)
            starts = offset + self.block_size * random.permutation(self.windows)
            self._last_epoch = (epoch, starts)
        return starts


def drawn(step: int, batch_size: int, count: int, order: Callable[[int], np.ndarray]) -> np.ndarray:
    """What a step reads of `count` things that each epoch visits once, in the order that `order` gives it."""
    examples = np.arange(step * batch_size, (step + 1) * batch_size)
    epochs, places = np.divmod(examples, count)
    return np.concatenate([order(epoch)[places[epochs == epoch]]
                           for epoch in range(epochs[0], epochs[-1] + 1)])


def epoch_random(seed: int, epoch: int) -> np.random.Generator:
    """What an epoch's order is drawn from."""
    key, counter = np.array([seed, STREAM], np.uint64), np.array([0, epoch, 0, 0], np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))


def _windows(tokens: np.ndarray, starts: np.ndarray, block_size: int) -> Batch:
    check_uncut(tokens)
    rows = tokens[starts[:, None] + np.arange(block_size + 1)].astype(np.int64)  # (B, T + 1)
    return Batch(np.ascontiguousarray(rows[:, :-1]), np.ascontiguousarray(rows[:, 1:]))


def _check(tokens: np.ndarray, block_size: int) -> None:
    if getattr(tokens, "ndim", None) != 1 or tokens.dtype.kind not in "iu":
        what = f"{tokens.dtype} of shape {tokens.shape}" if hasattr(tokens, "dtype") else \
            f"a {type(tokens).__name__}"
        raise DataError("the data must be one row of token ids, an array, or make batches of its own by "
                        f"at(step) and evaluation(batch_size, max_batches), and not be {what}")
    if len(tokens) < block_size + 1:
        raise DataError(f"the data has {len(tokens)} tokens, and one window of block_size {block_size} needs "
                        f"{block_size + 1}; give more text or a smaller block_size")
