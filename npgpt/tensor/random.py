"""Keyed randomness: every random number is a pure function of a key, never of a hidden state.

Philox 4×64-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3") enciphers a counter of four
64-bit words under a key of two. NumPy's own Philox is the definition. npgpt lays the words out as

    key     = (seed, stream)                     stream: what the numbers are for, one of the constants below
    counter = (block, step, example, site)       block: counted up by Philox itself, four 64-bit words a block

so a dropout mask depends on the seed, the step, the example and the place in the network, and on nothing
else: not on what was drawn before, not on how many examples a rank holds. A mask can be rebuilt in backward
instead of stored, and a resumed run needs no generator state.
"""

import hashlib
from numbers import Integral
from typing import Any, NamedTuple

import numpy as np

from npgpt.errors import ConfigError

# The streams. npgpt/data knows no tensors, and names its three, BATCH_ORDER and the two splits, by number.
INITIAL_VALUES, DROPOUT, BATCH_ORDER, SAMPLING, DOCUMENT_SPLIT, BOOTSTRAP, RECORD_SPLIT, ROUNDING = range(8)

CHILDREN = 1024     # a site is the path of a call through the network, one digit of this base a level


class Key(NamedTuple):
    """Names one stretch of random numbers. Layers hand `key.child(n)` to their n-th part; `None` means no
    randomness.

    seed, step, example: non-negative integers below 2⁶⁴. `example` is the number of the batch's first
    example.
    """

    seed: int
    stream: int = DROPOUT
    step: int = 0
    example: int = 0
    site: int = 0

    def child(self, n: int) -> "Key":
        """The key of the n-th part, 0 ≤ n < 1023."""
        return self._replace(site=self.site * CHILDREN + n + 1)

    def philox(self, example: int = 0, block: int = 0) -> np.random.Philox:
        """The generator of the numbers of one example of the batch, from a block of four words on."""
        # as uint64: of plain integers, one of them 2⁶³ or more, NumPy makes floats, which lose the last bits
        key     = np.array((self.seed, self.stream), np.uint64)
        counter = np.array((block, self.step, self.example + example, self.site), np.uint64)
        return np.random.Philox(key=key, counter=counter)


def keep_mask(key: Key, shape: tuple[int, ...], keep: float) -> np.ndarray:
    """Which elements dropout keeps.   shape: (B, …) → bool (B, …), each True with probability `keep`

    An element is kept if its 16 random bits, read as a number, are below keep·2¹⁶; `keep` should be a
    multiple of 2⁻¹⁶ to be met exactly. Every example (first axis) draws from its own counter.
    """
    each = int(np.prod(shape[1:], dtype=np.int64))
    mask = np.empty((shape[0], each), dtype=bool)
    for example, row in enumerate(mask):
        words = key.philox(example).random_raw(-(-each // 4))              # 64 bits are four elements
        np.less(words.astype("<u8", copy=False).view("<u2")[:each], round(keep * 65536), out=row)
    return mask.reshape(shape)


ROUNDED_TOGETHER = 4096    # numbers: a block of 256 threads of a GPU, 16 each, a block of Philox


def rounding_bits(key: Key, first: int, size: int) -> np.ndarray:
    """16 random bits for each of the numbers first, first + 1, … under a key: uint32 (size,)

    Of every 4096 numbers, those 256 apart share a block of Philox: on a GPU these are one thread's.
    """
    begin = first // ROUNDED_TOGETHER
    tiles = -(-(first + size) // ROUNDED_TOGETHER) - begin
    words = key.philox(block=256 * begin).random_raw(tiles * ROUNDED_TOGETHER // 4)
    bits  = words.astype("<u8", copy=False).view("<u2").reshape(tiles, 256, 16).swapaxes(1, 2)
    start = first - begin * ROUNDED_TOGETHER
    return bits.reshape(-1)[start:start + size].astype(np.uint32)


def initial_normal(seed: Any, name: str, shape: tuple[int, ...], std: float) -> np.ndarray:
    """Normal(0, std²) initial values of the parameter called `name`, in float64.

    They depend on the seed and the name alone: a float32 and a float64 model of the same seed start alike,
    and adding a layer changes no other. Raises ConfigError for a seed that is none.
    """
    if not (isinstance(seed, Integral) and 0 <= int(seed) < 2**64):
        raise ConfigError(f"seed must be a whole number, at least 0 and below 2⁶⁴, not {seed!r}")
    site = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")
    generator = np.random.Generator(Key(int(seed), INITIAL_VALUES, site=site).philox())
    return generator.standard_normal(shape) * std


def uniform(key: Key, example: int = 0) -> float:
    """One number, uniform on [0, 1), with 53 random bits."""
    return float(np.random.Generator(key.philox(example)).random())
