"""A run's folder: made once from a configuration, opened again to go on or to sample.

    config.toml  metrics.jsonl  tokenizer/  data/train.bin  data/val.bin  checkpoints/step-000250/  lock

config.toml is written last: a folder without one is not a run yet.
"""

import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from npgpt.data.corpora import read_documents, split_documents
from npgpt.data.prepared import is_prepared, open_prepared
from npgpt.data.shards import open_shard, write_shard
from npgpt.errors import CheckpointError, DataError, TrainingError
from npgpt.files import atomic_write
from npgpt.models import GPT
from npgpt.tokenizers import BPETokenizer, CharacterTokenizer, load_tokenizer
from npgpt.tokenizers.files import Tokenizer
from npgpt.training.checkpoint import Checkpoint, list_checkpoints, load_checkpoint, load_latest, lock_run
from npgpt.training.config import TrainConfig, read_config_file

UNFINISHED = {"tokenizer", "data", "lock"}      # what a folder may hold that was killed while it was made


class Run(NamedTuple):
    """A run's folder and what stands in it, the checkpoints aside. train, val: token ids, memory-mapped."""

    path: Path
    config: TrainConfig
    tokenizer: Tokenizer
    train: np.ndarray
    val: np.ndarray


def new_run_path(config: TrainConfig, name: str) -> Path:
    """Where a new run goes: out_dir, or the first free one of runs/NAME, runs/NAME-2, …

    Raises TrainingError if out_dir holds a run already, or anything else.
    """
    if config.out_dir is None:
        number, path = 1, Path("runs") / name
        while path.exists():
            number += 1
            path = Path("runs") / f"{name}-{number}"
        return path
    path = Path(config.out_dir)
    if (path / "config.toml").exists():
        raise TrainingError(f"{path} already holds a run: go on with it by --resume {path}, "
                            "or choose another --out-dir")
    if path.exists() and (not path.is_dir() or {entry.name for entry in path.iterdir()} - UNFINISHED):
        raise TrainingError(f"{path} exists and is not an empty folder: choose another --out-dir")
    return path


def create_run(path: Path, config: TrainConfig, note: Callable[[str], None]) -> Run:
    """Makes the run's folder from the configuration; `note` is told what is done.

    Raises DataError, TokenizerError, TrainingError; then nothing of the new folder is left.
    """
    with lock_run(path):
        if (path / "config.toml").exists():
            raise TrainingError(f"another process has just made a run in {path}: choose another --out-dir")
        try:
            return _fill(path, config, note)
        except OSError as error:
            _clear(path)
            raise TrainingError(f"cannot write the run's folder {path}: {error.strerror}") from error
        except BaseException:
            _clear(path)
            raise


def _fill(path: Path, config: TrainConfig, note: Callable[[str], None]) -> Run:
    """Makes the tokenizer and the token files, of a text or of a prepared folder, and writes config.toml."""
    make = _copy_prepared if is_prepared(Path(config.data)) else _encode_text
    tokenizer, counts = make(path, config, note)
    for name, count in zip(("training", "validation"), counts, strict=True):
        if count <= config.block_size:
            raise DataError(f"the {name} text has {count} tokens, but one window of block_size "
                            f"{config.block_size} needs {config.block_size + 1}: give more text, "
                            "a smaller block_size or another val_fraction")
    write_config(path, config)
    return Run(path, config, tokenizer, *_open_tokens(path, tokenizer))


def _encode_text(path: Path, config: TrainConfig, note: Callable[[str], None]) -> tuple[Tokenizer, list[int]]:
    """The run's tokenizer and token files from a text; returns the tokens of training and validation."""
    documents = read_documents(config.data)
    note(f"{config.data}: {len(documents):,} document{'s' * (len(documents) != 1)}, "
         f"{sum(map(len, documents)):,} characters")
    train, val = split_documents(documents, config.val_fraction, config.seed)
    tokenizer = _make_tokenizer(config, documents, train)
    counts = _save(path, tokenizer, _encoded(train, tokenizer), _encoded(val, tokenizer))
    note(f"tokenizer: {config.tokenizer}, {tokenizer.vocab_size:,} tokens; "
         f"{counts[0]:,} to train on, {counts[1]:,} to validate")
    return tokenizer, counts


def _copy_prepared(path: Path, config: TrainConfig,
                   note: Callable[[str], None]) -> tuple[Tokenizer, list[int]]:
    """The same from a folder that npgpt prepare made. Its shards become one file a side: a window of the
    training data may then lie across two of them, and the run's folder needs no other."""
    prepared  = open_prepared(Path(config.data))
    tokenizer = load_tokenizer(prepared.tokenizer)
    counts    = _save(path, tokenizer, _chunks(prepared.train), _chunks(prepared.val))
    note(f"{config.data}, prepared: a tokenizer of {tokenizer.vocab_size:,} tokens; "
         f"{counts[0]:,} to train on, {counts[1]:,} to validate")
    return tokenizer, counts


def _save(path: Path, tokenizer: Tokenizer, train: Iterable[np.ndarray],
          val: Iterable[np.ndarray]) -> list[int]:
    tokenizer.save(path / "tokenizer")
    (path / "data").mkdir(exist_ok=True)
    return [write_shard(path / "data" / f"{name}.bin", chunks, tokenizer.vocab_size)
            for name, chunks in (("train", train), ("val", val))]


def _chunks(shards: Iterable[np.ndarray], size: int = 1 << 20) -> Iterator[np.ndarray]:
    for shard in shards:
        for start in range(0, len(shard), size):
            yield shard[start:start + size]


def open_run(path: Path) -> Run:
    """The run in a folder. Raises TrainingError if there is none; ConfigError, TokenizerError, DataError if
    damaged."""
    config = _read_config(path)
    tokenizer = load_tokenizer(path / "tokenizer")
    return Run(path, config, tokenizer, *_open_tokens(path, tokenizer))


def write_config(path: Path, config: TrainConfig) -> None:
    """Writes config.toml, whole or not at all."""
    with atomic_write(path / "config.toml", "w") as file:
        file.write(config.to_toml())


def load_run(path: Path, which: str, device: str,
             warn: Callable[[str], None]) -> tuple[GPT, Tokenizer, Checkpoint]:
    """The model of a run as a checkpoint holds it, with its tokenizer.

    which: "best" (lowest validation loss), "latest", or a step's number.  Raises as `open_run`, and
    CheckpointError.
    """
    config = _read_config(path)
    tokenizer = load_tokenizer(path / "tokenizer")
    if which in ("best", "latest"):
        checkpoint = load_latest(path, warn)
        best = checkpoint.state.get("best_step")
        if which == "best" and best is not None and best != checkpoint.step:
            checkpoint = load_checkpoint(_at_step(path, best))
    else:
        checkpoint = load_checkpoint(_at_step(path, which))
    model = GPT(config.model(tokenizer.vocab_size), None, device, config.dtype)
    model.flat.load(checkpoint.tensors["model"])
    return model, tokenizer, checkpoint


def _read_config(path: Path) -> TrainConfig:
    file = path / "config.toml"
    if not file.is_file():
        raise TrainingError(f"{path} is not a run's folder: it has no config.toml")
    return TrainConfig.parse(read_config_file(file), str(file))


def _at_step(path: Path, step: int | str) -> Path:
    steps = {str(int(folder.name.removeprefix("step-"))): folder for folder in list_checkpoints(path)}
    if str(step) not in steps:
        known = ", ".join(["best", "latest", *steps])
        raise CheckpointError(f"{path} has no checkpoint {step!r}: use {known}")
    return steps[str(step)]


def _make_tokenizer(config: TrainConfig, documents: list[str], train: list[str]) -> Tokenizer:
    if config.tokenizer == "character":
        return CharacterTokenizer.train(documents)          # of all the text: a character must not be unknown
    if config.tokenizer == "bpe":
        return BPETokenizer.train(train, config.vocab_size)
    return load_tokenizer(Path(config.tokenizer))


def _encoded(documents: list[str], tokenizer: Tokenizer) -> Iterator[np.ndarray]:
    """Each document's ids, with the end-of-text id after it where the tokenizer has one."""
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    for document in documents:
        yield np.array(tokenizer.encode_ordinary(document) + end, np.int64)


def _open_tokens(path: Path, tokenizer: Tokenizer) -> list[np.ndarray]:
    """The training and the validation tokens. Raises DataError if they are not this tokenizer's."""
    shards = {name: open_shard(path / "data" / name) for name in ("train.bin", "val.bin")}
    for name, shard in shards.items():
        if shard.vocab_size != tokenizer.vocab_size:
            raise DataError(f"{path / 'data' / name} was made with a vocabulary of {shard.vocab_size}, "
                            f"but the tokenizer beside it has {tokenizer.vocab_size}")
    return [shard.tokens for shard in shards.values()]


def _clear(path: Path) -> None:
    """Removes what create_run made."""
    for name in ("tokenizer", "data"):
        shutil.rmtree(path / name, ignore_errors=True)
    for name in ("config.toml", "lock"):
        (path / name).unlink(missing_ok=True)
    if not any(path.iterdir()):
        path.rmdir()
