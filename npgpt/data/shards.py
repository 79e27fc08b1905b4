"""Token ids on disk: a checked header of 40 bytes, then the ids, mapped into memory instead of read.

    bytes  0–7   b"npgpttok"          16–23  vocabulary size
           8–11  version, 1           24–31  number of tokens
          12–15  bytes per id (2, 4)  32–35  zero        36–39  CRC-32 of bytes 0–35

All numbers are unsigned and little-endian. Two bytes per id serve vocabularies up to 65,536, four serve the
rest. The header says how long the file must be, so a shard cut short, grown, or of another program is refused
when opened.
"""

import os
import struct
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from npgpt.errors import DataError
from npgpt.files import atomic_write

MAGIC = b"npgpttok"
VERSION = 1
HEADER = struct.Struct("<8sIIQQ4xI")  # magic, version, bytes per id, vocabulary, tokens, CRC-32


class Shard(NamedTuple):
    """The ids of an opened shard, read-only and paged in as they are touched, and their vocabulary."""

    tokens: np.ndarray
    vocab_size: int


def write_shard(path: str | os.PathLike[str], chunks: Iterable[np.ndarray], vocab_size: int) -> int:
    """Writes the chunks, one-dimensional arrays of ids, one after the other, and returns the number of ids.

    One chunk at a time is held in memory. Raises DataError for an id outside the vocabulary or a disk that
    refuses; whatever stood at `path` before is then untouched.
    """
    if not 1 <= vocab_size <= 2**32:
        raise DataError(f"the vocabulary size {vocab_size} does not fit a token shard; it must be 1 to 2³²")
    dtype = _id_type(vocab_size)
    count = 0
    try:
        with atomic_write(path) as file:
            file.write(bytes(HEADER.size))  # its place; the count is known at the end
            for chunk in chunks:
                ids = np.asarray(chunk)
                if ids.size == 0:  # np.array([]) has floating point type
                    continue
                _check_ids(ids, vocab_size, count)
                file.write(ids.astype(dtype).tobytes())
                count += ids.size
            file.seek(0)
            file.write(_header(dtype.itemsize, vocab_size, count))
    except OSError as error:
        raise DataError(f"cannot write the token shard {path}: {error.strerror or error}") from error
    return count


def open_shard(path: str | os.PathLike[str]) -> Shard:
    """Maps a shard into memory. Raises DataError, naming what is wrong with the file, unless it is whole."""
    path = Path(path)
    try:
        if path.exists() and not path.is_file():
            raise DataError(f"{path} is no regular file, so no token shard")
        with path.open("rb") as file:
            header, size = file.read(HEADER.size), os.fstat(file.fileno()).st_size
    except (OSError, ValueError) as error:  # ValueError: a path with a zero byte
        raise DataError(f"cannot read the token shard {path}: {error}") from error
    if header[:len(MAGIC)] != MAGIC:
        raise DataError(f"{path} is no token shard of npgpt; write one with npgpt.data.shards.write_shard")
    if len(header) < HEADER.size:
        raise DataError(f"{path} is cut short inside its header ({size} bytes); write it anew")
    _, version, _, vocab_size, count, crc = HEADER.unpack(header)
    if crc != zlib.crc32(header[:-4]):
        raise DataError(f"the header of {path} is damaged (its checksum differs); write the file anew")
    if version != VERSION:
        raise DataError(f"{path} is a token shard of version {version}; this npgpt reads version {VERSION}")
    dtype = _id_type(vocab_size)
    expected = HEADER.size + count * dtype.itemsize
    if size != expected:
        raise DataError(f"{path} is {'cut short' if size < expected else 'too long'}: it has {size} bytes, "
                        f"and its header promises {expected}; write it anew")
    tokens = np.memmap(path, dtype, mode="r", offset=HEADER.size, shape=(count,))
    return Shard(tokens, vocab_size)


def _id_type(vocab_size: int) -> np.dtype:
    return np.dtype("<u2" if vocab_size <= 2**16 else "<u4")


def _header(itemsize: int, vocab_size: int, count: int) -> bytes:
    unsigned = HEADER.pack(MAGIC, VERSION, itemsize, vocab_size, count, 0)[:-4]
    return unsigned + struct.pack("<I", zlib.crc32(unsigned))


def _check_ids(ids: np.ndarray, vocab_size: int, position: int) -> None:
    if ids.ndim != 1 or ids.dtype.kind not in "iu":
        raise DataError(f"token ids must be one-dimensional arrays of integers, and the one at position "
                        f"{position} is {ids.dtype} of shape {ids.shape}")
    if ids.min() < 0 or ids.max() >= vocab_size:
        first = int(np.argmax((ids < 0) | (ids >= vocab_size)))
        raise DataError(f"token id {ids[first]} at position {position + first} is outside the vocabulary of "
                        f"{vocab_size}; encode the text with the tokenizer that the vocabulary belongs to")
