"""A hash table in arrays, in which many keys are looked up by one call (open addressing, linear probing)."""

import numpy as np

MIX  = np.uint64(0x9E3779B97F4A7C15)         # 2⁶⁴ over the golden ratio (Knuth 1973, multiplicative hashing)
HALF = np.uint64(32)


class ArrayTable:
    """The keys are numbered as they come: 0, 1, 2, …  A key is two numbers, uint64, the second not 0.

    capacity: how many keys there may be. At least as many slots stay empty, or finding would take long.
    """

    def __init__(self, capacity: int):
        bits = (2 * max(capacity, 1) - 1).bit_length()
        self.capacity, self.count = capacity, 0
        self._last    = (1 << bits) - 1
        self._shift   = np.uint64(64 - bits)
        self._first   = np.zeros(1 << bits, np.uint64)
        self._second  = np.zeros(1 << bits, np.uint64)      # 0: an empty slot
        self._numbers = np.zeros(1 << bits, np.int32)

    def find(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """first, second: (n,)  →  the keys' numbers: int32 (n,), −1 for one that is not there"""
        slots   = self._slots(first, second)
        there   = self._second.take(slots)
        same    = (there == second) & (self._first.take(slots) == first)
        numbers = np.where(same, self._numbers.take(slots), np.int32(-1))
        left    = np.flatnonzero(~same & (there != 0))                # another key is where these would be
        while left.size:
            slots[left] = here = slots[left] + 1 & self._last
            there   = self._second[here]
            same    = (there == second[left]) & (self._first[here] == first[left])
            numbers[left[same]] = self._numbers[here[same]]
            left    = left[~same & (there != 0)]
        return numbers

    def add(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """first, second: (n,), keys that are not there, of which several may be the same  →  where the new
        keys are among these, in the order of their numbers: (new,)

        Keys that fall on one empty slot write themselves there one after the other: the last one has it, and
        the others see whose it is now.
        """
        slots = self._slots(first, second)
        left  = np.arange(len(first))
        added = [np.empty(0, np.int64)]
        while left.size:
            here  = slots[left]
            empty = self._second[here] == 0
            tried, where = left[empty], here[empty]
            self._first[where]   = first[tried]
            self._second[where]  = second[tried]
            self._numbers[where] = tried
            new   = tried[self._numbers[where] == tried]
            self._numbers[slots[new]] = np.arange(self.count, self.count + len(new))
            self.count += len(new)
            added.append(new)
            left  = left[(self._second[here] != second[left]) | (self._first[here] != first[left])]
            slots[left] = slots[left] + 1 & self._last
        return np.concatenate(added)

    def _slots(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        mixed  = first ^ second * MIX
        mixed ^= mixed >> HALF
        return (mixed * MIX >> self._shift).astype(np.int64)
