"""A run's folder: made once from a configuration, opened again to go on or to sample.

    config.toml  metrics.jsonl  tokenizer/  data/train.bin  data/val.bin  checkpoints/step-000250/  lock

Where examples are learned, data/ has train.safetensors and val.safetensors. A fine-tuning has base/ in the
place of tokenizer/: the model it begins from, with its tokenizer. config.toml is written last: a folder
without one is not a run yet.
"""

import contextlib
import difflib
import os
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from npgpt.data.examples import open_examples
from npgpt.data.shards import open_shard
from npgpt.errors import DataError, TrainingError
from npgpt.files import PARTIAL, atomic_write, make_folder, sweep
from npgpt.models import GPT
from npgpt.tokenizers import load_tokenizer
from npgpt.tokenizers.files import Tokenizer
from npgpt.training.checkpoint import list_checkpoints, lock_run
from npgpt.training.config import TrainConfig, read_config_file
from npgpt.training.finetuning import BASE, FinetuneConfig, Loaded, finetuned_model
from npgpt.training.run_data import Config, Tokens, write_data

MADE = {"tokenizer", "data", BASE}         # the folders that create_run makes, before there is a run


class Run(NamedTuple):
    """A run's folder and what stands in it, the checkpoints aside.

    train, val: token ids, memory-mapped, or examples.
    """

    path: Path
    config: Config
    tokenizer: Tokenizer
    train: Tokens
    val: Tokens


def new_run_path(config: Config, name: str) -> Path:
    """Where a new run goes: out_dir, or the first free one of runs/NAME, runs/NAME-2, …, which is then made,
    for another process that begins a run might take it too.

    Raises TrainingError if out_dir holds a run already, or anything else.
    """
    if config.out_dir is None:
        return _take(Path("runs") / name)
    if not config.out_dir:                                 # Path("") is the current folder
        raise TrainingError("out_dir must be the name of a folder, not ''")
    path = Path(config.out_dir)
    if (path / "config.toml").exists():
        raise TrainingError(f"{path} already holds a run: go on with it by --resume "
                            f"{shlex.quote(str(path))}, or choose another --out-dir")
    if path.exists() and not (path.is_dir() and _is_free(path)):
        raise TrainingError(f"{path} exists and is not an empty folder: choose another --out-dir")
    return path


def create_run(path: Path, config: Config, note: Callable[[str], None], start: Loaded | None = None) -> Run:
    """Makes the run's folder from the configuration; `note` is told what is done.

    start: the model that a fine-tuning begins from.  Raises DataError, TokenizerError, TrainingError,
    ConfigError; then nothing of the new folder is left.
    """
    with lock_run(path):
        if (path / "config.toml").exists():
            raise TrainingError(f"another process has just made a run in {path}: choose another --out-dir")
        try:
            _clear(path)                                   # of what a process left that was killed here
            write_config(path, write_data(path, config, note, start))
            return open_run(path)
        except OSError as error:
            _remove(path, config)
            what = f": {error.filename}" if error.filename else ""            # maybe of the data
            raise TrainingError(f"cannot make the run {path}: {error.strerror or error}{what}") from error
        except BaseException:
            _remove(path, config)
            raise


def discard_run(path: Path, config: Config) -> None:
    """Removes the folder of a run that failed before its first step was done; not what is not the run's."""
    with lock_run(path):
        shutil.rmtree(path / "checkpoints", ignore_errors=True)               # the initial values'
        (path / "metrics.jsonl").unlink(missing_ok=True)
        _remove(path, config)


def open_run(path: str | Path) -> Run:
    """The run in a folder. Raises TrainingError if there is none; ConfigError, TokenizerError, DataError if
    damaged."""
    path      = Path(path)
    config    = read_config(path)
    tokenizer = load_tokenizer(tokenizer_folder(path))
    return Run(path, config, tokenizer, *(_open_tokens(path, name, tokenizer) for name in ("train", "val")))


def new_model(path: Path, config: Config, vocab_size: int) -> Any:
    """A run's model as it is before the first step: with initial values, or those it is fine-tuned from."""
    if isinstance(config, FinetuneConfig):
        return finetuned_model(path / BASE, config)
    return GPT(config.model(vocab_size), config.seed, config.device, config.dtype)


def read_config(path: Path) -> Config:
    """Of a run's folder. Raises TrainingError if it is none, ConfigError if config.toml is damaged."""
    file = path / "config.toml"
    if not file.is_file():
        what = "is an adapter alone, and the model that it is for is elsewhere: let PEFT merge them" \
            if (path / "adapter_config.json").exists() else "is not a run's folder: " + (
                f"it is a checkpoint of {run}" if (run := run_of(path)) else
                "it is a checkpoint away from its run, which has its settings and tokenizer"
                if (path / "state.json").exists() else
                "it has no config.toml" if path.is_dir() else f"there is no such folder{run_meant_by(path)}")
        raise TrainingError(f"{path} {what}")
    kind = FinetuneConfig if (path / BASE).is_dir() else TrainConfig
    return kind.parse(read_config_file(file), str(file))


def run_of(folder: Path) -> Path | None:
    """The run of which the folder is a checkpoint, if it is one."""
    run = Path(os.path.normpath(folder / ".." / ".."))
    return run if folder.resolve() in map(Path.resolve, list_checkpoints(run)) else None


def run_meant_by(path: Path) -> str:
    """"; did you mean runs/quick?" of a path that is no folder, where a run beside it or in runs/ is called
    nearly so, and nothing else."""
    files = [*Path("runs").glob("*/config.toml"), *path.parent.glob("*/config.toml")]
    known = {text: file.parent for file in files for text in (file.parent.name, str(file.parent))}
    near  = difflib.get_close_matches(str(path), known, n=1)
    return f"; did you mean {known[near[0]]}?" if near else ""


def write_config(path: Path, config: Config) -> None:
    """Writes config.toml, whole or not at all."""
    with atomic_write(path / "config.toml", "w") as file:
        file.write(config.to_toml())


def tokenizer_folder(path: Path) -> Path:
    """Where a run's tokenizer is, and its chat template if it has one."""
    return path / BASE if (path / BASE).is_dir() else path / "tokenizer"


def _open_tokens(path: Path, name: str, tokenizer: Tokenizer) -> Tokens:
    """The training or the validation tokens. Raises DataError if they are not this tokenizer's."""
    examples = path / "data" / f"{name}.safetensors"
    if examples.exists():
        found = open_examples(examples)
        if found.tokens.max(initial=0) >= tokenizer.vocab_size:
            raise DataError(f"{examples} has token {found.tokens.max()}, but the tokenizer beside it has "
                            f"{tokenizer.vocab_size}")
        return found
    shard = open_shard(path / "data" / f"{name}.bin")
    if shard.vocab_size != tokenizer.vocab_size:
        raise DataError(f"{path / 'data' / name}.bin was made with a vocabulary of {shard.vocab_size}, "
                        f"but the tokenizer beside it has {tokenizer.vocab_size}")
    return shard.tokens


def _take(path: Path) -> Path:
    """Makes the folder, or the first free one with -2, -3, … at its end."""
    name, number = path.name, 1
    try:
        make_folder(path.parent)
        while True:
            try:
                path.mkdir()
                return path
            except FileExistsError:
                number += 1
                path = path.with_name(f"{name}-{number}")
            except FileNotFoundError:               # another process, refused, has just taken it away
                make_folder(path.parent)
    except OSError as error:
        raise TrainingError(f"cannot use the run folder {path}: {error.strerror}") from error


def _is_free(path: Path) -> bool:
    """Whether a folder is empty, or has only what a killed create_run left, which makes the lock first."""
    entries = list(path.iterdir())
    return not entries or ((path / "lock").exists() and all(
        entry.match(PARTIAL) or entry.name in ("lock", *MADE) for entry in entries))


def _clear(path: Path) -> None:
    for name in MADE:
        shutil.rmtree(path / name, ignore_errors=True)
    sweep(path)


def _remove(path: Path, config: Config) -> None:
    """Removes what create_run and new_run_path made."""
    _clear(path)
    for name in ("config.toml", "lock"):
        (path / name).unlink(missing_ok=True)
    if not any(path.iterdir()):
        path.rmdir()
        if config.out_dir is None:
            with contextlib.suppress(OSError):      # there are other runs
                path.parent.rmdir()
