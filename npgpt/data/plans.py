"""What a preparation is to be: its options, the plan that adds its sources, and the folder for both."""

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import platform
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, NamedTuple

from npgpt.data.cleaning import GOPHER, Cleaner, Form
from npgpt.data.prepared import has_manifest, read_manifest
from npgpt.data.reading import MAX_CHARACTERS
from npgpt.data.shards import check_format
from npgpt.errors import ConfigError, DataError
from npgpt.files import atomic_write, make_folder, sweep
from npgpt.ranges import check_types
from npgpt.tokenizers.files import files_of


@dataclass(frozen=True)
class PrepareConfig:
    """Everything that the prepared bytes depend on, but for the sources themselves."""

    # Reading
    text_field: str = "text"
    """The field of a .jsonl line that holds its text."""
    invalid_utf8: Literal["drop", "replace"] = "drop"
    """A document with bytes that are not UTF-8: drop it, or replace each such byte by U+FFFD."""
    keep_nul: bool = False
    """Keep documents with the character U+0000, which stands in binary files."""

    # Mending: off, because it changes bytes
    repair: bool = False
    """Mend text that was decoded wrongly, like "schÃ¶n", and take out control characters (ftfy)."""
    newlines: bool = False
    """Turn carriage returns, with a newline after them or not, into newlines."""
    normalize: Form | None = None
    """Unicode normal form: NFC, NFD, NFKC or NFKD."""

    # Filtering: a document that breaks a rule is left out
    quality: Literal["off", "gopher"] = "off"
    """gopher gives the rules below the limits of Rae et al. 2021, meant for pages from the web: 50 to 100,000
    words of 3 to 10 characters in the mean, … Limits given by hand go over it."""
    min_characters: int = 1
    """Shortest document."""
    max_characters: int | None = None
    """Longest document, up to 2,000,000. (Without it, one that is longer than that is cut into several.)"""
    min_words: int | None = None
    """Fewest words, which are what blanks set apart. Gopher: 50."""
    max_words: int | None = None
    """Most words. Gopher: 100,000."""
    min_mean_word_length: float | None = None
    """Shortest words, in the mean, in characters. Gopher: 3."""
    max_mean_word_length: float | None = None
    """Longest words, in the mean, in characters. Gopher: 10."""
    max_symbols_per_word: float | None = None
    """Most # or ellipses a word. Gopher: 0.1."""
    max_bullet_lines: float | None = None
    """Largest share of lines that begin with a bullet. Gopher: 0.9."""
    max_ellipsis_lines: float | None = None
    """Largest share of lines that end with an ellipsis. Gopher: 0.3."""
    min_words_with_letter: float | None = None
    """Smallest share of words with a letter in them. Gopher: 0.8."""
    max_duplicate_lines: float | None = None
    """Largest share of lines that repeat an earlier one of the document. Gopher: 0.3."""
    max_duplicate_line_characters: float | None = None
    """Largest share of characters in such lines. Gopher: 0.2."""
    stop_words: Path | None = None
    """A UTF-8 file of words, apart by blanks or newlines, that ordinary text in its language must have."""
    min_stop_words: int | None = None
    """Fewest of them in a document, counted each time they occur; 2 where there is a list (Gopher's)."""

    # Deduplication: the first document stays
    exact_duplicates: bool = True
    """Leave out documents whose text occurred before."""
    near_duplicates: float | None = 0.8
    """Leave out documents so similar to an earlier one: Jaccard similarity of their runs of 7 characters, by
    MinHash. None keeps them."""

    # Split
    val_fraction: float = 0.1
    """The share of documents held back for validation, drawn by a hash of each; 0 for none."""
    seed: int = 1337
    """Of that draw."""

    # Encoding
    tokenizer: str = "bpe"
    """bpe (trained on the training documents), character (on all), or the folder or file of a tokenizer,
    npgpt's, GPT-2's, a tokenizer.json or a .tiktoken file, or the name of one on Hugging Face's hub."""
    vocab_size: int = 8192
    """Tokens that bpe may use: 256 bytes, one special token, the rest learned merges."""
    tokenizer_characters: int = 50_000_000
    """Characters that bpe is trained on: of more, a sample of documents spread evenly."""
    format: Literal["npgpt", "llm.c", "nanogpt"] = "npgpt"
    """Of the shards: npgpt's own, llm.c's (a header of 256 numbers) or nanoGPT's (bare ids); the last two
    hold vocabularies up to 65,536."""
    shard_tokens: int = 100_000_000
    """Tokens in a shard; the last has fewer."""

    def __post_init__(self) -> None:
        """Raises ConfigError for a value that cannot be."""
        def need(fine: bool, name: str, what: str) -> None:
            if not fine:
                raise ConfigError(f"{name} must be {what}, not {getattr(self, name)!r}")

        check_types(self)
        need(0 <= self.val_fraction < 1, "val_fraction", "at least 0 and below 1")
        need(self.near_duplicates is None or 0 < self.near_duplicates <= 1, "near_duplicates",
             "above 0 and at most 1, or None")
        need(0 <= self.seed < 2**64, "seed", "at least 0 and below 2⁶⁴")
        need(self.shard_tokens >= 1, "shard_tokens", "at least 1")
        need(self.tokenizer_characters >= 1, "tokenizer_characters", "at least 1")
        need(self.max_characters is None or self.max_characters <= MAX_CHARACTERS, "max_characters",
             f"at most {MAX_CHARACTERS:,}, as longer documents are cut")
        for name, limit in self.limits().items():
            need(limit >= 0, name, "at least 0")
        if self.tokenizer == "bpe":
            need(self.vocab_size >= 257, "vocab_size", "at least 257, for 256 bytes and the end of text")
            check_format(self.format, self.vocab_size)
        if self.min_stop_words is not None and self.stop_words is None:
            raise ConfigError("min_stop_words needs a list: give --stop-words FILE")

    def limits(self) -> dict[str, float]:
        """The rules that have a limit, in order."""
        given = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)
                 if field.name.startswith(("min_", "max_"))}
        presets = GOPHER if self.quality == "gopher" else {}
        if self.stop_words is not None:
            presets = presets | {"min_stop_words": 2}
        return {name: limit for name, value in given.items()
                if (limit := presets.get(name) if value is None else value) is not None}

    def cleaner(self) -> Cleaner:
        """What applies the options to a document. Raises ConfigError, DataError."""
        try:
            words = _read(self.stop_words, "the stop words").decode().split() if self.stop_words else []
        except UnicodeDecodeError as error:
            raise DataError(f"{self.stop_words} is not UTF-8 at byte {error.start}; convert it") from error
        return Cleaner(self.limits(), words, invalid_utf8=self.invalid_utf8, keep_nul=self.keep_nul,
                       repair=self.repair, newlines=self.newlines, normalize=self.normalize)


class Work(NamedTuple):
    """A folder under preparation, the folder in it for what stands between, and its manifest if finished."""

    out_dir: Path
    folder: Path
    manifest: dict[str, Any] | None


def make_plan(paths: Sequence[Path], files: Sequence[Path], config: PrepareConfig,
              tokenizer: Path | None) -> dict[str, Any]:
    """Everything that the prepared bytes depend on, as JSON can hold it; "modified" is true here alone.

    tokenizer: the folder or file of the one that is not made here.
    """
    config.cleaner()                                            # what is missing is said before the work
    stats = [file.stat() for file in files]
    lines = [f"{file}\t{stat.st_size}\n".encode(errors="surrogateescape")
             for file, stat in zip(files, stats, strict=True)]
    packages = ["numpy", "regex", *["ftfy"] * config.repair]
    return {
        "options": {name: str(value) if isinstance(value, Path) else value
                    for name, value in dataclasses.asdict(config).items()},
        "sources": {
            "paths": [str(path) for path in paths], "files": len(files),
            "bytes": sum(stat.st_size for stat in stats), "names and sizes": _hash(b"".join(lines)),
            "stop words": _hash(_read(config.stop_words, "the stop words")) if config.stop_words else None,
            "tokenizer": tokenizer_hash(tokenizer) if tokenizer else None,
        },
        "versions": {"npgpt": metadata.version("npgpt"), "python": platform.python_version(),
                     "unicode": unicodedata.unidata_version,
                     **{name: metadata.version(name) for name in packages}},
        "modified": _hash(repr([stat.st_mtime_ns for stat in stats]).encode()),
    }


@contextlib.contextmanager
def open_work(out_dir: Path, plan: dict[str, Any]) -> Iterator[Work]:
    """Takes the folder for this plan: new, begun or finished. What killed writers left in it is removed.

    Raises DataError if it holds anything else, or another process is at work there.
    """
    folder = out_dir / "unfinished"
    try:
        if (manifest := _finished(out_dir, plan)) is not None:
            sweep(out_dir)
            yield Work(out_dir, folder, manifest)
            return
        if out_dir.exists() and not folder.is_dir() and (not out_dir.is_dir() or any(out_dir.iterdir())):
            raise DataError(f"{out_dir} exists and is not an empty folder: choose another --out-dir")
        make_folder(folder)
        with (folder / "lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise DataError(f"another process is preparing {out_dir}: wait for it, "
                                "or choose another --out-dir") from error
            sweep(out_dir)
            sweep(folder)
            if not (folder / "plan.json").exists():
                with atomic_write(folder / "plan.json", "w") as file:
                    file.write(json.dumps(plan))
            _compare(out_dir, json.loads(_read(folder / "plan.json", "the plan")), plan)
            yield Work(out_dir, folder, _finished(out_dir, plan))      # in the meantime, by another process
    except OSError as error:
        raise DataError(f"cannot prepare {out_dir}: {error.strerror or error}") from error


def _finished(out_dir: Path, plan: dict[str, Any]) -> dict[str, Any] | None:
    """The manifest of a folder that is finished. Raises DataError if it was made by another plan."""
    if not has_manifest(out_dir):
        return None
    manifest = read_manifest(out_dir)
    _compare(out_dir, {name: manifest.get(name) for name in plan if name != "modified"}, plan)
    return manifest


def tokenizer_hash(path: Path) -> str:
    """SHA-256 of the names and contents of a tokenizer's files, and of nothing beside them, such as a model.
    Raises DataError."""
    return _hash(b"".join(f"{file.name}\t{_hash(_read(file, 'the file'))}\n".encode(errors="surrogateescape")
                          for file in files_of(path)))


def _compare(out_dir: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    """Raises DataError, naming the first difference, unless the plans are one."""
    for name, entry in before.items():
        if entry == now.get(name):
            continue
        if not isinstance(entry, dict):
            raise DataError(f"the sources have changed since {out_dir} was begun: choose another --out-dir")
        after = now.get(name, {})
        key = next(key for key in {**entry, **after} if entry.get(key) != after.get(key))
        raise DataError(f"{out_dir} holds another preparation: its {key} is {entry.get(key)!r}, not "
                        f"{after.get(key)!r}; give what it was begun with, or choose another --out-dir")


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _read(path: Path, what: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {what} {path}: {error.strerror}") from error
