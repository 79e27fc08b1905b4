"""Files that are either whole or not there: written aside, fsynced, renamed, and the parent folder fsynced.

After `with atomic_write(path) as f: …` returns, the file survives a power cut under its final name. If the
block raises, or the process is killed anywhere inside it, the final name still holds what it held before.
"""

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any


def fsync_folder(folder: Path) -> None:
    """Makes the names in a folder (creations, renames, removals) durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(folder: Path) -> None:
    """Makes a folder and its missing parents, each name durable before anything is put inside."""
    if not folder.is_dir():
        make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        fsync_folder(folder.parent)


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str], mode: str = "wb") -> Iterator[IO[Any]]:
    """Opens a file beside `path` for writing ("wb", or "w" for UTF-8 text), renamed to `path` at the end.

    Raises OSError (disk full, no permission, `path` is a folder or a device); what stood at `path` before is
    then untouched.
    """
    path = Path(path)
    if path.exists() and not path.is_file():  # a rename would replace even /dev/null
        raise FileExistsError(errno.EEXIST, "It is no regular file", str(path))
    aside = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with aside.open(mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    fsync_folder(path.parent)
