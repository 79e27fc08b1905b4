"""Near-duplicates: MinHash (Broder 1997) with locality-sensitive hashing (Indyk & Motwani 1998).

A text is the set of its **shingles**, all runs of 7 characters, with capitals and the kind and number of
blanks disregarded. (Leskovec, Rajaraman & Ullman, Mining of Massive Datasets, §3.2, advise 5 for mail and 9
for articles. Characters, not words: they serve languages without blanks as well.) Two texts are as similar
as their sets, by Jaccard:

    J(A, B) = |A ∩ B| / |A ∪ B|

MinHash.  Give every shingle a random number: that the smallest of A is the smallest of B has probability
J(A, B). So of 128 such minima, the **signature**, a share of about J agree, with a standard deviation of
√(J(1−J)/128), 0.035 at J = 0.8. They all come from one number a shingle (Li, Owen & Zhang 2012, "One
permutation hashing"): its first 7 bits choose a bin, and the smallest number in each of the 128 bins is a
minimum. A bin that is empty, as with few shingles most are, takes the minimum of the first full one in an
order of its own, drawn once for all texts (Shrivastava 2017, "Optimal densification"). Against 128 numbers a
shingle this is ten times faster; the estimates of texts under some 200 characters spread a little more.

Bands.  Comparing all pairs takes n² steps. A signature is therefore cut into bands of r minima, and only
texts that have a whole band in common are compared. Of ⌊128/r⌋ bands a pair shares at least one with
probability 1 − (1 − Jʳ)^⌊128/r⌋; r is the largest for which that is 0.99 at the threshold (6 for 0.8).

A document goes if it is as similar as the threshold to an earlier one that stays. So of a copy and its
original the first stays, and what stays depends on the order of the documents and on nothing else.
"""

from collections import defaultdict
from collections.abc import Iterable

import numpy as np

SHINGLE = 7
"""Characters."""
MINIMA = 128
"""Numbers in a signature, uint32."""
LARGEST_BUCKET = 1000
"""Of the documents with one band in common, the first so many are compared with: a bound on the work when
every text is filled into one form."""

_RANDOM = np.random.Generator(np.random.Philox(key=np.array([0, 0], np.uint64)))
_BINS = np.arange(MINIMA)
_PROBES = np.array([_RANDOM.permutation(np.delete(_BINS, own)) for own in _BINS])   # for each bin, the others
_BAND_FACTORS = _RANDOM.integers(2**64, size=MINIMA, dtype=np.uint64) | np.uint64(1)
_BLOCK = 1024                                                   # documents


def signature(text: str) -> np.ndarray:
    """text  →  uint32 (128,). The same for the same set of shingles."""
    text   = " ".join(text.lower().split()).ljust(SHINGLE)
    codes  = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
    count  = len(codes) - SHINGLE + 1
    hashes = np.zeros(count, np.uint32)
    for i in range(SHINGLE):                                    # a polynomial in an odd number, modulo 2³²
        hashes *= np.uint32(0x9E3779B1)
        hashes += codes[i:i + count]
    hashes ^= hashes >> np.uint32(16)                           # MurmurHash3's last steps: every bit counts
    hashes *= np.uint32(0x85EBCA6B)
    hashes ^= hashes >> np.uint32(13)
    hashes *= np.uint32(0xC2B2AE35)
    hashes ^= hashes >> np.uint32(16)
    hashes.sort()
    lowest = np.searchsorted(hashes, (_BINS << 25).astype(np.uint32))            # where each bin begins
    minima = hashes[np.minimum(lowest, count - 1)]
    full   = minima >> np.uint32(25) == _BINS
    probes = _PROBES[~full]                                                      # (empty bins, 127)
    minima[~full] = minima[np.take_along_axis(probes, full[probes].argmax(1)[:, None], 1)[:, 0]]
    return minima


def rows_of_a_band(threshold: float) -> int:
    """The largest r whose bands find a pair at the threshold with probability 0.99."""
    return max((r for r in range(1, MINIMA + 1)
                if (1 - threshold**r) ** (MINIMA // r) <= 0.01), default=1)


def near_duplicates(signatures: Iterable[np.ndarray], threshold: float) -> np.ndarray:
    """Which documents go: bool (documents,).

    signatures: arrays uint32 (n, 128), such as memory maps, one after the other, which are gone through
    twice; threshold: above 0, at most 1. Memory: 8 bytes a document and band, and the signatures of those
    that have a band in common.
    """
    rows = rows_of_a_band(threshold)
    bands = np.concatenate([_bands(part, rows) for part in signatures])          # (documents, bands)
    shared = np.zeros(bands.shape, bool)
    for band in range(bands.shape[1]):
        shared[:, band] = _occurs_again(bands[:, band])
    suspects = np.flatnonzero(shared.any(1))
    minima = _gather(signatures, suspects)
    goes = np.zeros(len(bands), bool)
    buckets: dict[tuple[int, int], list[int]] = defaultdict(list)                # of suspects that stay
    for suspect, document in enumerate(suspects):
        keys = [(int(band), int(bands[document, band])) for band in np.flatnonzero(shared[document])]
        earlier = sorted({other for key in keys for other in buckets[key]})
        agree = np.count_nonzero(minima[earlier] == minima[suspect], axis=1)
        if len(earlier) and agree.max() >= threshold * MINIMA:
            goes[document] = True
            continue
        for key in keys:
            if len(buckets[key]) < LARGEST_BUCKET:
                buckets[key].append(suspect)
    return goes


def _bands(signatures: np.ndarray, rows: int) -> np.ndarray:
    """(n, 128)  →  uint64 (n, bands): one number for the minima of each band."""
    count = MINIMA // rows
    bands = np.empty((len(signatures), count), np.uint64)
    for start in range(0, len(signatures), _BLOCK):
        products = signatures[start:start + _BLOCK, :count * rows] * _BAND_FACTORS[:count * rows]
        bands[start:start + _BLOCK] = products.reshape(-1, count, rows).sum(2, dtype=np.uint64)
    return bands


def _occurs_again(numbers: np.ndarray) -> np.ndarray:
    """Which of the numbers occur at more than one place: bool."""
    order = np.argsort(numbers, kind="stable")
    same = np.diff(numbers[order]) == 0
    again = np.zeros(len(numbers), bool)
    again[order[1:][same]] = again[order[:-1][same]] = True
    return again


def _gather(signatures: Iterable[np.ndarray], wanted: np.ndarray) -> np.ndarray:
    """The rows `wanted`, in ascending order, of the arrays laid one after the other."""
    found, start = [np.empty((0, MINIMA), np.uint32)], 0
    for part in signatures:
        first, last = np.searchsorted(wanted, (start, start + len(part)))
        found.append(part[wanted[first:last] - start])
        start += len(part)
    return np.concatenate(found)
