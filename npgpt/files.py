"""Files that are either whole or not there: written aside, fsynced, renamed, and the parent folder fsynced.

After `with atomic_write(path) as f: …` returns, the file survives a power cut under its final name. If the
block raises, or the process is killed anywhere inside it, the final name still holds what it held before.
"""

import contextlib
import errno
import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from npgpt.errors import ConfigError

try:
    import fcntl
except ImportError:             # on Windows
    fcntl = None                # type: ignore[assignment]

PARTIAL = ".*.partial"          # what is being written, or was by a process that was killed


def fsync(descriptor: int) -> None:
    """Makes what was written to a file durable. On macOS os.fsync leaves it in the drive's cache, which
    F_FULLFSYNC empties.
    """
    os.fsync(descriptor)
    if (full := getattr(fcntl, "F_FULLFSYNC", None)) is not None:
        with contextlib.suppress(OSError):              # a file system of a network cannot
            fcntl.fcntl(descriptor, full)


def fsync_folder(folder: Path) -> None:
    """Makes the names in a folder (creations, renames, removals) durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(folder: Path) -> None:
    """Makes a folder and its missing parents, each name durable before anything is put inside."""
    if not folder.is_dir():
        make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        fsync_folder(folder.parent)


def sweep(folder: Path) -> None:
    """Removes what killed writers have left half-written in a folder. Nobody must be writing there."""
    for leftover in folder.glob(PARTIAL):
        remove(leftover)


def remove(path: Path) -> None:
    """Of a file, a link (not of what it leads to), a folder with all that is in it, or nothing."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def file_sha256(path: Path) -> str:
    """Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
            fsync(file.fileno())
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    fsync_folder(path.parent)


@contextlib.contextmanager
def output_file(path: Path, mode: str = "wb") -> Iterator[IO[Any]]:
    """As `atomic_write`, of a file that a user asked for: raises ConfigError where it cannot be written."""
    try:
        with atomic_write(path, mode) as file:
            yield file
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror or error}") from error


def check_output(path: Path) -> None:
    """Raises ConfigError for what `output_file` would otherwise tell only after the work."""
    if not path.parent.is_dir():
        raise ConfigError(f"cannot write {path}: there is no folder {path.parent}")
    if path.exists() and not path.is_file():
        raise ConfigError(f"cannot write {path}: it is no regular file")


@contextlib.contextmanager
def atomic_folder(path: str | os.PathLike[str], last: str) -> Iterator[Path]:
    """A new folder beside `path` to be filled with files, renamed to `path` at the end.

    last: the file without which the folder counts for nothing. `path` may be a folder that has none of that
    name: then the files are moved into it, `last` at last. Raises FileExistsError if it has, or is no folder.
    """
    path = Path(path).resolve()
    if path.exists() and (not path.is_dir() or os.path.lexists(path / last)):
        reason = f"It already holds a {last}" if path.is_dir() else "It is no folder"
        raise FileExistsError(errno.EEXIST, reason, str(path))
    make_folder(path.parent)
    aside = path.with_name(f".{path.name}.{os.getpid()}.partial")
    shutil.rmtree(aside, ignore_errors=True)        # of a writer that was killed and had our number
    aside.mkdir()
    try:
        yield aside
        for file in aside.iterdir():
            with file.open("rb") as open_file:
                fsync(open_file.fileno())
        fsync_folder(aside)
        if path.exists() and any(path.iterdir()):
            for file in sorted(aside.iterdir(), key=lambda file: file.name == last):
                if file.name == last:
                    fsync_folder(path)              # the others are there before it is, power cut or not
                file.rename(path / file.name)
            fsync_folder(path)
        else:
            aside.rename(path)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    fsync_folder(path.parent)
