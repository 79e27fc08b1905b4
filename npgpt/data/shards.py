"""Token ids on disk: a checked header, then the ids, mapped into memory instead of read.

npgpt's own format is a header of 40 bytes that says how long the file must be, so a shard cut short, grown,
or of another program is refused when opened:

    bytes  0–7   b"npgpttok"          16–23  vocabulary size
           8–11  version, 1           24–31  number of tokens
          12–15  bytes per id (2, 4)  32–35  zero        36–39  CRC-32 of bytes 0–35

Two bytes per id serve vocabularies up to 65,536, four serve the rest. Two formats of other programs are
written and read as well, both of two bytes an id and silent about the vocabulary:

    llm.c      a header of 256 int32: 20240520, version 1, number of tokens, zeros; then the ids
    nanogpt    the ids and nothing else: only an odd length can be told to be wrong

All numbers are little-endian.
"""

import contextlib
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

LLM_C_MAGIC = struct.pack("<i", 20240520)
LLM_C_VERSION = 1
LLM_C_HEADER = struct.Struct("<4sii1012x")  # magic, version, tokens

FORMATS = ("npgpt", "llm.c", "nanogpt")
LONGEST = {"npgpt": 2**63, "llm.c": 2**31 - 1, "nanogpt": 2**63}
"""Tokens that a file of each format can hold."""


class Shard(NamedTuple):
    """The ids of an opened shard, read-only and paged in as they are touched, and their vocabulary.

    vocab_size: 65,536 for a shard of another program, which does not say it.
    """

    tokens: np.ndarray
    vocab_size: int


def write_shard(path: str | os.PathLike[str], chunks: Iterable[np.ndarray], vocab_size: int,
                format: str = "npgpt") -> int:
    """Writes the chunks, one-dimensional arrays of ids, one after the other, and returns the number of ids.

    One chunk at a time is held in memory. Raises DataError for an id outside the vocabulary, a format that
    cannot hold it, or a disk that refuses; whatever stood at `path` before is then untouched.
    """
    if not 1 <= vocab_size <= 2**32:
        raise DataError(f"the vocabulary size {vocab_size} does not fit a token shard; it must be 1 to 2³²")
    check_format(format, vocab_size)
    dtype = id_type(vocab_size)
    place = {"npgpt": HEADER.size, "llm.c": LLM_C_HEADER.size, "nanogpt": 0}[format]
    count = 0
    try:
        with atomic_write(path) as file:
            file.write(bytes(place))  # the header's; the count is known at the end
            for chunk in chunks:
                ids = np.asarray(chunk)
                if ids.size == 0:  # np.array([]) has floating point type
                    continue
                _check_ids(ids, vocab_size, count)
                file.write(ids.astype(dtype).tobytes())
                count += ids.size
            if count > LONGEST[format]:
                raise DataError(f"{path} would have {count} tokens, more than {format}'s header can say; "
                                "write several shards")
            file.seek(0)
            if format == "npgpt":
                file.write(_header(dtype.itemsize, vocab_size, count))
            elif format == "llm.c":
                file.write(LLM_C_HEADER.pack(LLM_C_MAGIC, LLM_C_VERSION, count))
    except OSError as error:
        raise DataError(f"cannot write the token shard {path}: {error.strerror or error}") from error
    return count


def open_shard(path: str | os.PathLike[str], format: str | None = None) -> Shard:
    """Maps a shard into memory. Raises DataError, naming what is wrong with the file, unless it is whole.

    format: None tells npgpt's and llm.c's by their first bytes; "nanogpt" has none to be told by.
    """
    path = Path(path)
    try:
        if path.exists() and not path.is_file():
            raise DataError(f"{path} is no regular file, so no token shard")
        with path.open("rb") as file:
            header, size = file.read(LLM_C_HEADER.size), os.fstat(file.fileno()).st_size
    except (OSError, ValueError) as error:  # ValueError: a path with a zero byte
        raise DataError(f"cannot read the token shard {path}: {error}") from error
    if format is None and header[:len(LLM_C_MAGIC)] == LLM_C_MAGIC:
        format = "llm.c"
    if format == "nanogpt":
        return _open_nanogpt(path, header, size)
    if format == "llm.c":
        return _open_llm_c(path, header, size)
    header = header[:HEADER.size]
    if header[:len(MAGIC)] != MAGIC:
        raise DataError(f"{path} is no token shard of npgpt; write one with npgpt.data.shards.write_shard")
    if len(header) < HEADER.size:
        raise DataError(f"{path} is cut short inside its header ({size} bytes); write it anew")
    _, version, _, vocab_size, count, crc = HEADER.unpack(header)
    if crc != zlib.crc32(header[:-4]):
        raise DataError(f"the header of {path} is damaged (its checksum differs); write the file anew")
    if version != VERSION:
        raise DataError(f"{path} is a token shard of version {version}; this npgpt reads version {VERSION}")
    return Shard(_map(path, id_type(vocab_size), HEADER.size, count, size), vocab_size)


def check_uncut(tokens: np.ndarray) -> None:
    """Raises DataError if a memory-mapped file has become shorter since it was opened: reading what is gone
    would kill the process (SIGBUS). One that has been removed can still be read."""
    if not isinstance(tokens, np.memmap) or tokens.filename is None:
        return
    with contextlib.suppress(FileNotFoundError):
        if Path(tokens.filename).stat().st_size < tokens.offset + tokens.nbytes:
            raise DataError(f"{tokens.filename} has become shorter while it was read: write it anew")


def check_format(format: str, vocab_size: int) -> None:
    """Raises DataError unless a shard of the format can hold ids of the vocabulary."""
    if format not in FORMATS:
        raise DataError(f"unknown format of token shards {format!r}: use one of {', '.join(FORMATS)}")
    if format != "npgpt" and vocab_size > 2**16:
        raise DataError(f"a shard of {format} has two bytes an id, too few for a vocabulary of {vocab_size}; "
                        "use the format npgpt")


def id_type(vocab_size: int) -> np.dtype:
    """The type of the ids of a vocabulary on disk."""
    return np.dtype("<u2" if vocab_size <= 2**16 else "<u4")


def _open_llm_c(path: Path, header: bytes, size: int) -> Shard:
    if header[:len(LLM_C_MAGIC)] != LLM_C_MAGIC:
        raise DataError(f"{path} is no token shard of llm.c: it does not begin with its number 20240520")
    if len(header) < LLM_C_HEADER.size:
        raise DataError(f"{path} is cut short inside its header ({size} bytes); write it anew")
    _, version, count = LLM_C_HEADER.unpack(header)
    if version != LLM_C_VERSION or count < 0:
        raise DataError(f"{path} is a token shard of llm.c of version {version} with {count} tokens; this "
                        f"npgpt reads version {LLM_C_VERSION}")
    return Shard(_map(path, np.dtype("<u2"), LLM_C_HEADER.size, count, size), 2**16)


def _open_nanogpt(path: Path, header: bytes, size: int) -> Shard:
    if header[:len(MAGIC)] == MAGIC or header[:len(LLM_C_MAGIC)] == LLM_C_MAGIC:
        raise DataError(f"{path} has a header, so it is no token shard of nanoGPT; open it without a format")
    if size % 2:
        raise DataError(f"{path} is cut short: its {size} bytes are an odd number, and an id has two")
    return Shard(_map(path, np.dtype("<u2"), 0, size // 2, size), 2**16)


def _map(path: Path, dtype: np.dtype, offset: int, count: int, size: int) -> np.ndarray:
    expected = offset + count * dtype.itemsize
    if size != expected:
        raise DataError(f"{path} is {'cut short' if size < expected else 'too long'}: it has {size} bytes, "
                        f"and its header promises {expected}; write it anew")
    if size == 0:  # nothing cannot be mapped
        return np.empty(0, dtype)
    return np.memmap(path, dtype, mode="r", offset=offset, shape=(count,))


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
