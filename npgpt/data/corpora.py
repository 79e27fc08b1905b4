"""Text to train on, and the part of it that is held back.

A **document** is one text: the whole of one file, or one page of the built-in corpus. Nothing is changed in
it (line ends stay as they are), except that a UTF-8 byte order mark at its start is dropped.

The built-in corpus `python-docs` is the language reference that every Python carries in `pydoc_data.topics`
(what `help("FUNCTIONS")` prints): 79 pages, about 470,000 characters of English prose and code. It is © the
Python Software Foundation, under the PSF License Version 2 (examples in it also under Zero-Clause BSD):
https://docs.python.org/license. Its wording differs a little from one Python version to the next.
"""

import os
import stat
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from npgpt.data.packed import opened, split_name
from npgpt.errors import ConfigError, DataError

BUILT_IN = ("python-docs",)

TEXT_SUFFIXES = (
    ".txt", ".text", ".md", ".markdown", ".rst", ".org", ".tex", ".html", ".xml", ".csv", ".tsv", ".json",
    ".jsonl", ".toml", ".yaml", ".yml", ".py", ".pyi", ".c", ".h", ".cpp", ".hpp", ".cu", ".java", ".js",
    ".ts", ".go", ".rs", ".rb", ".sh", ".sql",
)
"""The files of a folder that are read, in capitals or not. One given by its own name may have any suffix."""

TABLES = {
    ".csv": "pandas.read_csv({name!r}).to_json({out!r}, orient='records', lines=True)",
    ".tsv": "pandas.read_table({name!r}).to_json({out!r}, orient='records', lines=True)",
    ".parquet": "pandas.read_parquet({name!r}).to_json({out!r}, orient='records', lines=True)",
    ".arrow": "datasets.Dataset.from_file({name!r}).to_json({out!r})",
}
"""What, in Python, makes a file of records of a table."""

STREAM = 4
"""The second word of the Philox key; npgpt/tensor/random.py lists what the others are used for."""


def read_documents(source: str) -> list[str]:
    """The documents of a built-in corpus, of one text file, or of a folder of text files; see
    `iterate_documents`."""
    return list(iterate_documents(source))


def iterate_documents(source: str) -> Iterator[str]:
    """The documents of a built-in corpus, of one text file, or of a folder of text files, one by one.

    A folder is read with its subfolders, in sorted order: every file with one of TEXT_SUFFIXES (before .gz or
    .zst, if any) that is neither hidden nor empty; links to folders are not followed. Raises DataError when
    there is no such text or it is not UTF-8.
    """
    if source in BUILT_IN:
        yield from _python_docs()
        return
    path = Path(source)
    try:
        if path.is_dir() and source:  # Path("") is the current folder, which nobody asked for
            found = False
            for file in files_in(path, _is_text):
                if text := _read_text(file):
                    found = True
                    yield text
            if not found:
                raise DataError(f"the folder {source} holds no text: no file with something in it has one of "
                                f"the suffixes {' '.join(TEXT_SUFFIXES)}")
            return
        if not source or not path.exists():
            raise DataError(f"there is no file, folder or built-in corpus called {source!r}; built in: "
                            f"{', '.join(BUILT_IN)}")
        if not (text := _read_text(path)):
            raise DataError(f"the file {source} is empty; give it some text")
        yield text
    except (OSError, ValueError) as error:  # ValueError: a path with a zero byte
        raise DataError(f"cannot read {source!r}: {error}") from error


def _is_text(name: str) -> bool:
    return split_name(Path(name))[0].suffix.lower() in TEXT_SUFFIXES


def files_in(folder: Path, wanted: Callable[[str], bool], without: Path | None = None) -> list[Path]:
    """The files of a folder and its subfolders that are not hidden and whose names are wanted, in sorted
    order; links to folders are not followed, the folder `without`, resolved, is passed over. Raises
    DataError.
    """
    def refuse(error: OSError) -> None:  # os.walk otherwise passes over a folder that it cannot read
        raise DataError(f"cannot read the folder {error.filename}: {error.strerror}") from error

    found = []
    for parent, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")
                      and (without is None or Path(parent, name).resolve() != without)]
        found += [Path(parent, name) for name in names if not name.startswith(".") and wanted(name)]
    return sorted(found)


def split_documents(documents: Sequence[str], val_fraction: float, seed: int) -> tuple[list[str], list[str]]:
    """(train, validation): every character in exactly one of them, about `val_fraction` of all in validation.

    Of ten documents or more, whole ones are drawn in an order that depends on the seed alone, passing over
    those longer than what is missing to the fraction; copies of one text stay together. Of fewer (or when
    whole documents cannot make up the fraction) the last `val_fraction` of each document is cut off. Empty
    documents are dropped. Raises ConfigError unless 0 ≤ val_fraction < 1.
    """
    if not 0 <= val_fraction < 1:
        raise ConfigError(f"val_fraction is {val_fraction}; it must be at least 0 and below 1")
    documents = [text for text in documents if text]
    if len(documents) >= 10:
        drawn = _draw(documents, val_fraction, seed)
        train = [text for text in documents if text not in drawn]
        if train and drawn:
            return train, [text for text in documents if text in drawn]
    cuts = [int(len(text) * (1 - val_fraction)) for text in documents]
    train = [text[:cut] for text, cut in zip(documents, cuts, strict=True) if cut > 0]
    return train, [text[cut:] for text, cut in zip(documents, cuts, strict=True) if cut < len(text)]


def _draw(documents: Sequence[str], fraction: float, seed: int) -> set[str]:
    """Texts drawn without replacement whose characters make up about the fraction."""
    characters = {text: len(text) * copies for text, copies in Counter(documents).items()}
    missing = fraction * sum(characters.values())
    random = np.random.Generator(np.random.Philox(key=np.array([seed, STREAM], np.uint64)))
    texts = list(characters)
    drawn = set()
    for text in (texts[i] for i in random.permutation(len(texts))):
        if characters[text] <= missing:
            drawn.add(text)
            missing -= characters[text]
    shortest = min((text for text in texts if text not in drawn), key=characters.__getitem__, default=None)
    if shortest and characters[shortest] < 2 * missing:  # too long, but nearer to the fraction than without
        drawn.add(shortest)
    return drawn


def table_to_records(path: Path) -> str | None:
    """What makes records of the table that a file is by its name, or None."""
    name, _ = split_name(path)                             # pandas unpacks
    make    = TABLES.get(name.suffix.lower())
    return make and make.format(name=str(path), out=str(name.with_suffix(".jsonl")))


def not_utf8(path: Path, error: UnicodeDecodeError) -> DataError:
    """With what to do about it, by the file's name."""
    advice = "convert it to UTF-8 (iconv -t utf-8) or leave it out"
    if make := table_to_records(path):
        advice = f"in Python, {make} makes records of its rows"
    return DataError(f"{path} is not UTF-8 at byte {error.start}; {advice}")


def _python_docs() -> list[str]:
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise DataError("this Python was installed without pydoc_data, so it has no python-docs corpus; "
                        "give a text file or a folder instead") from error
    return [topics[name] for name in sorted(topics)]


def _read_text(path: Path) -> str:
    if not stat.S_ISREG(path.stat().st_mode):  # a pipe would wait, /dev/zero never end
        raise DataError(f"{path} is no regular file (a pipe, device or socket); copy its text to a file")
    return read_file(path)


def read_file(path: Path) -> str:
    """The text of a file, unpacked, without a byte order mark. Raises DataError."""
    with opened(path) as stream:
        data = stream.read()
    try:
        return data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise not_utf8(path, error) from error
