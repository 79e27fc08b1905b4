"""What workers do with one part of the sources, and what they leave of it in files.

    00000.text  .records  .signatures  .counts    of the documents that break no rule; .counts comes last
    00000.train.0  .val.0                         the ids of 4 MB of them, from number 0 on; .train comes last
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from npgpt.data.deduplication import MINIMA, signature
from npgpt.data.plans import PrepareConfig
from npgpt.data.reading import Segment, read_segment
from npgpt.data.shards import id_type, write_shard
from npgpt.files import atomic_write, file_sha256
from npgpt.tokenizers import load_tokenizer
from npgpt.tokenizers.files import Tokenizer

RECORD = np.dtype([("digest", "S16"), ("draw", "<u8"), ("bytes", "<u4"), ("characters", "<u4")])
"""Of each document in .text: a hash of it, the number between 0 and 2⁶⁴ that decides its side, its length."""

TRAIN, VAL, CUT, EXACT_DUPLICATE, NEAR_DUPLICATE = range(5)
"""Fates of documents. CUT: the front for training, the end for validation."""

_RUN = 1 << 22
_CHUNK = 1 << 20


class Part(NamedTuple):
    """One part of the sources, about 4 MB of them.

    folder, number: where its files go and what their names begin with.
    fates: of the documents in its files, in order, uint8; none before they are decided.
    """

    folder: Path
    number: int
    segments: list[Segment]
    config: PrepareConfig
    fates: np.ndarray = np.empty(0, np.uint8)

    def file(self, kind: str) -> Path:
        return self.folder / f"{self.number:05}.{kind}"

    def source_bytes(self) -> int:
        return sum(segment.end - segment.start for segment in self.segments)

    def text_bytes(self) -> int:
        return self.file("text").stat().st_size

    def records(self) -> np.ndarray:
        """RECORD (documents,), memory-mapped."""
        return _mapped(self.file("records"), RECORD)

    def signatures(self) -> np.ndarray:
        """uint32 (documents, 128), memory-mapped."""
        return _mapped(self.file("signatures"), np.dtype("<u4")).reshape(-1, MINIMA)

    def documents(self, first: int = 0, stop: int | None = None,
                  offset: int = 0) -> Iterator[tuple[str, str]]:
        """The documents that stay, as (text for training, text for validation): one of them empty, or both
        halves of a document that is cut.

        Only those numbered first to stop − 1, whose texts begin at byte `offset`.
        """
        with self.file("text").open("rb") as texts:
            texts.seek(offset)
            for fate, length in zip(self.fates[first:stop], self.records()["bytes"][first:stop], strict=True):
                encoded = texts.read(length)
                if fate in (TRAIN, VAL, CUT):
                    text  = encoded.decode()
                    front = _front(fate, len(text), self.config.val_fraction)
                    yield text[:front], text[front:]

    def lengths(self, side: str) -> np.ndarray:
        """How many characters of each document are on the side, "train" or "val": int64 (documents,)."""
        whole = np.where(np.isin(self.fates, (TRAIN, VAL, CUT)), self.records()["characters"], 0)
        front = np.array([_front(fate, length, self.config.val_fraction)
                          for fate, length in zip(self.fates, whole.tolist(), strict=True)], np.int64)
        return front if side == "train" else whole.astype(np.int64) - front


class Signatures:
    """Those of all parts, one after the other, each mapped while it is looked at and no longer: a mapping
    keeps its file open, and of a large corpus there are more than a process may have.
    """

    def __init__(self, parts: Sequence[Part]):
        self._parts = parts

    def __iter__(self) -> Iterator[np.ndarray]:
        return (part.signatures() for part in self._parts)


def _mapped(path: Path, dtype: np.dtype) -> np.ndarray:
    if not path.stat().st_size:                                 # nothing cannot be mapped
        return np.empty(0, dtype)
    return np.memmap(path, dtype, "r")


def _front(fate: int, length: int, val_fraction: float) -> int:
    """How many characters of a text of that length are for training."""
    return {TRAIN: length, CUT: int(length * (1 - val_fraction))}.get(fate, 0)


# Reading

def read_part(part: Part) -> int:
    """Writes the documents that break no rule, and the counts of those that do; returns the bytes read."""
    if not part.file("counts").exists():
        counts = Counter[str]()
        with (atomic_write(part.file("text")) as texts, atomic_write(part.file("records")) as records,
              atomic_write(part.file("signatures")) as signatures):
            for text, origin in _kept_texts(part, counts):
                encoded = text.encode()
                record  = _digest(encoded), _draw(origin, part.config.seed), len(encoded), len(text)
                texts.write(encoded)
                records.write(np.array(record, RECORD))
                if part.config.near_duplicates is not None:
                    signatures.write(signature(text))
        with atomic_write(part.file("counts"), "w") as file:
            file.write(json.dumps(counts))
    return part.source_bytes()


def _kept_texts(part: Part, counts: Counter[str]) -> Iterator[tuple[str, bytes]]:
    """The mended texts that break no rule, each with the digest of the document that it is or is cut from."""
    cleaner, origin = part.config.cleaner(), b""
    for segment in part.segments:
        for piece in read_segment(segment, part.config.text_field, counts):
            text = cleaner.mend(piece.text, counts)
            if piece.first:
                origin = _digest(text.encode("utf-8", "surrogatepass"))
            rule = cleaner.broken_rule(text)
            if not piece.first and part.config.max_characters is not None:
                rule = "max_characters"                     # short itself, but cut from what was too long
            if rule:
                counts[rule] += 1
                counts[f"{rule} characters"] += len(text)
            else:
                yield text, origin


def _digest(encoded: bytes) -> bytes:
    return hashlib.blake2b(encoded, digest_size=16).digest()


def _draw(digest: bytes, seed: int) -> int:
    """A number below 2⁶⁴, as if at random: a function of the document and the seed alone."""
    return int.from_bytes(hashlib.blake2b(digest, key=seed.to_bytes(8, "little"), digest_size=8).digest())


# Encoding

class EncodeTask(NamedTuple):
    """Documents `first` to `stop` − 1 of a part whose fates are decided: `size` bytes of text from `offset`.

    tokenizer, version: a tokenizer's folder and the hash of its files.
    """

    part: Part
    first: int
    stop: int
    offset: int
    size: int
    tokenizer: Path
    version: str

    def file(self, side: str) -> Path:
        return self.part.file(f"{side}.{self.first}")


def encode_tasks(part: Part, tokenizer: Path, version: str) -> list[EncodeTask]:
    """The part in runs of about 4 MB of text, however long it is."""
    ends   = np.cumsum(part.records()["bytes"], dtype=np.int64)                     # of the texts, in bytes
    cuts   = np.searchsorted(ends, np.arange(_RUN, part.text_bytes(), _RUN))
    tasks  = []
    for first, stop in pairwise(sorted({0, *cuts.tolist(), len(ends)})):
        start = int(ends[first - 1]) if first else 0
        tasks.append(EncodeTask(part, first, stop, start, int(ends[stop - 1]) - start, tokenizer, version))
    return tasks


def encode(task: EncodeTask) -> int:
    """Writes the ids of the documents, one file a side; returns the bytes encoded."""
    part = task.part
    if not task.file("train").exists():
        tokenizer = _load(task.tokenizer, task.version)
        end = () if tokenizer.eos_token_id is None else (tokenizer.eos_token_id,)
        dtype = id_type(tokenizer.vocab_size)
        with atomic_write(task.file("train")) as train, atomic_write(task.file("val")) as val:
            for sides in part.documents(task.first, task.stop, task.offset):
                for file, text in zip((train, val), sides, strict=True):
                    if text:
                        ids = [*tokenizer.prefix, *tokenizer.encode_ordinary(text), *end]
                        file.write(np.array(ids, dtype).tobytes())
    return task.size


@lru_cache(1)
def _load(folder: Path, version: str) -> Tokenizer:
    """load_tokenizer, once a worker, so that what it remembers of one part serves the next."""
    return load_tokenizer(folder)


# Shards

class ShardTask(NamedTuple):
    """The ids `start` to `stop` − 1 of the files laid one after the other, to be written as one shard.

    files: path and number of ids of each.
    """

    path: Path
    files: list[tuple[Path, int]]
    start: int
    stop: int
    vocab_size: int
    format: str


def shard_tasks(out_dir: Path, side: str, files: list[tuple[Path, int]], size: int, vocab_size: int,
                format: str) -> Iterator[ShardTask]:
    """All ids of the files in shards of that size. Each task has the files that it reads and no others, for
    it goes to a worker.
    """
    ends  = np.cumsum([count for _, count in files], dtype=np.int64)
    total = int(ends[-1]) if files else 0
    for number, start in enumerate(range(0, total, size)):
        stop  = min(start + size, total)
        first = int(np.searchsorted(ends, start, "right"))
        last  = int(np.searchsorted(ends, stop)) + 1
        begin = int(ends[first]) - files[first][1]
        yield ShardTask(out_dir / f"{side}-{number:05}.bin", files[first:last], start - begin, stop - begin,
                        vocab_size, format)


def write_one_shard(task: ShardTask) -> dict[str, Any]:
    """Writes the shard, unless it is there, and returns its line in the manifest."""
    if not task.path.exists():
        write_shard(task.path, _ids(task), task.vocab_size, task.format)
    return {"name": task.path.name, "tokens": task.stop - task.start, "bytes": task.path.stat().st_size,
            "sha256": file_sha256(task.path)}


def _ids(task: ShardTask) -> Iterator[np.ndarray]:
    dtype, begin = id_type(task.vocab_size), 0
    for path, count in task.files:
        start, stop = max(task.start - begin, 0), min(task.stop - begin, count)
        for place in range(start, stop, _CHUNK):
            yield np.fromfile(path, dtype, min(_CHUNK, stop - place), offset=place * dtype.itemsize)
        begin += count
