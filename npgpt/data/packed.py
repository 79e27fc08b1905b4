"""Files as they are, or packed by gzip or Zstandard, which the end of their names tells."""

import contextlib
import gzip
import io
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from npgpt.errors import DataError

PACKINGS = (".gz", ".zst")


def split_name(path: Path) -> tuple[Path, str]:
    """(the path without what tells how it is packed, ".gz", ".zst" or "")"""
    packing = path.suffix.lower()
    return (path.with_suffix(""), packing) if packing in PACKINGS else (path, "")


@contextlib.contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """What is in the file, unpacked. Raises DataError, also within the block, if it cannot be read: of one
    that is damaged nobody knows what is missing.
    """
    name, packing = split_name(path)
    if packing and name.suffix.lower() == ".tar":
        raise DataError(f"{path} is an archive of several files: unpack it")
    if "\0" in str(path):
        raise DataError(f"cannot read {str(path)!r}: a name with a zero byte")
    damaged = _zstandard().ZstdError if packing == ".zst" else zlib.error
    try:
        with _open(path, packing) as stream:
            yield stream
    except (OSError, EOFError, damaged) as error:
        reason = getattr(error, "strerror", None) or f"{error}; mend the file or leave it out"
        raise DataError(f"cannot read {path}: {reason}") from error


def _open(path: Path, packing: str) -> BinaryIO:
    if packing == ".gz":
        return io.BufferedReader(gzip.open(path))
    if packing == ".zst":
        return io.BufferedReader(_zstandard().open(path))
    return path.open("rb")


def _zstandard() -> Any:
    try:
        from compression import zstd  # Python 3.14
    except ImportError:
        try:
            from backports import zstd
        except ImportError as error:
            raise DataError("reading .zst needs a package that is not installed: "
                            "pip install 'npgpt[prepare]', or unpack the files first") from error
    return zstd
