"""Learning BPE merges (Sennrich, Haddow & Birch 2016), incrementally.

The definition. Cut the texts into pieces, write each piece as its bytes, and give every byte a token id.
Then, again and again: over all pieces count the pairs of neighbouring tokens, replace the most frequent
pair by a new token wherever it stands (in each piece from left to right, so "aaa" becomes "aa" "a"), and
give the new token the next id. Ties: of equally frequent pairs the one with the smaller left id goes
first, then the one with the smaller right id; this is also the rule of Hugging Face's trainer. In "aaa"
the pair (a, a) counts twice. The result depends on nothing else: not on the order of the texts, not on
any hash. It never makes the same bytes a second time: a token's bytes, wherever they stand uncut, are
always built up in the same way.

How it is done without counting again each time. Equal pieces are kept once, with the number of times they
occur. All pieces lie one after the other in a single list `tokens`, one slot a byte, with the mark −1
around each. A token's id stands in its first and in its last slot; what stands between is never read as a
neighbour:

    "aabb" and "ab"                 −1  a  a  b  b −1  a  b −1
    after (a, b) → X                −1  a  X  X  b −1  X  X −1
    after (X, b) → Y                −1  a  Y  X  Y −1  X  X −1          (the X inside Y is left over, unread)

With the length of each token known, the neighbours of the token at slot p are found in one step: the one
before ends at p − 1, the one after starts at p + length. `where` holds for each pair the slots where it
starts, in ascending order. A merge visits only these, and changes only the counts of the pairs next to
them. A slot in `where` may be out of date, which shows in the two tokens found there: once a slot is no
longer the start of L it never holds L again, but −1 or the id of a longer token that starts or ends
there. A heap gives the most frequent pair. The count of a pair that is in it can only fall, so an entry
that claims too much is put back with its true count when it comes to the top.

A merge at one place costs O(log n), and n bytes allow fewer than n of them: O(n log n) in all, even if
the whole text is a single piece.
"""

from array import array
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from heapq import heapify, heappop, heappush
from itertools import chain, repeat

from npgpt.tokenizers.byte_alphabet import BYTE_IDS
from npgpt.tokenizers.checks import checked_texts
from npgpt.tokenizers.patterns import splitter, stretches
from npgpt.workers import each

Pair = tuple[int, int]

BATCH = 2_000_000           # characters that a worker cuts at once


def count_pieces(texts: Iterable[str], pattern: str, workers: int = 1) -> dict[bytes, int]:
    """How often each piece occurs when the texts are cut by the pattern of that name.

    workers: processes that cut. In memory are a few batches of texts and the different pieces.
    """
    counts: Counter[str] = Counter()
    for some in each(partial(_count_batch, pattern=pattern), _batches(checked_texts(texts)), workers):
        counts.update(some)
    return {piece.encode(): count for piece, count in counts.items()}


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    """The texts in lists of about BATCH characters; a longer one is cut where every pattern cuts."""
    batch: list[str] = []
    size = 0
    for part in chain.from_iterable(stretches(text, BATCH) for text in texts):
        batch.append(part)
        size += len(part)
        if size >= BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _count_batch(batch: list[str], pattern: str) -> "Counter[str]":
    split = splitter(pattern)
    counts: Counter[str] = Counter()
    for text in batch:
        counts.update(split(text))
    return counts


def learn_merges(pieces: Mapping[bytes, int], number: int,
                 progress: Callable[[int, int], None] | None = None) -> list[Pair]:
    """The first `number` merges, or fewer if every piece is one token by then; merge i makes token 256 + i.

    `progress(done, number)` is called after each merge.
    """
    tokens, weights = _lay_out(pieces)
    counts, where = _index_pairs(tokens, weights)
    queue = [(-count, left, right) for (left, right), count in counts.items()]
    heapify(queue)
    length = [1] * 256
    merges: list[Pair] = []
    while queue and len(merges) < number:
        claimed, left, right = heappop(queue)
        count = counts[left, right]
        if count != -claimed:
            if count > 0:
                heappush(queue, (-count, left, right))
            else:
                del counts[left, right], where[left, right]
            continue

        new = 256 + len(merges)
        merges.append((left, right))
        length.append(length[left] + length[right])
        fresh: dict[Pair, array[int]] = defaultdict(_no_slots)          # the pairs that contain the new token
        for p in where.pop((left, right)):
            q = p + length[left]
            if tokens[p] != left or tokens[q] != right:
                continue                                                # out of date
            end = q + length[right]
            before, after, weight = tokens[p - 1], tokens[end], weights[p]
            if before >= 0:
                counts[before, left] -= weight
                counts[before, new] += weight
                fresh[before, new].append(p - length[before])
            if after >= 0:
                counts[right, after] -= weight
                counts[new, after] += weight
                fresh[new, after].append(p)
            tokens[q] = -1
            tokens[p] = tokens[end - 1] = new
        del counts[left, right]
        for pair, slots in fresh.items():
            if counts[pair] > 0:                                        # else it came and went: X a in "aaaa"
                where[pair] = slots
                heappush(queue, (-counts[pair], *pair))
        if progress is not None:
            progress(len(merges), number)
    return merges


def _no_slots() -> "array[int]":
    return array("q")


def _lay_out(pieces: Mapping[bytes, int]) -> tuple[list[int], list[int]]:
    """All pieces in one list of ids with −1 around each, and for each slot how often its piece occurs."""
    tokens, weights = [-1], [0]
    for piece, count in pieces.items():
        tokens += piece.translate(BYTE_IDS)
        tokens.append(-1)
        weights += repeat(count, len(piece) + 1)
    return tokens, weights


def _index_pairs(tokens: list[int], weights: list[int]) -> "tuple[dict[Pair, int], dict[Pair, array[int]]]":
    """How often each pair occurs, and in which slots it starts."""
    counts: dict[Pair, int] = defaultdict(int)
    where: dict[Pair, array[int]] = defaultdict(_no_slots)
    for p in range(len(tokens) - 1):
        pair = tokens[p], tokens[p + 1]
        if min(pair) >= 0:
            counts[pair] += weights[p]
            where[pair].append(p)
    return counts, where
