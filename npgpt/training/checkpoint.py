"""Checkpoints that are either whole or not there.

    RUN/checkpoints/step-000250/    model.safetensors  optimizer.safetensors  state.json  manifest.json
    RUN/checkpoints/.step-000300.*  being written or removed: never looked at, swept by prune_checkpoints
    RUN/lock                        held by the one process that trains in this folder

A checkpoint is written into a hidden folder beside its place, every file fsynced, the manifest last; then the
folder is renamed and the parent fsynced. So a name `step-…` appears at once and whole, whenever the process
is killed or the power fails. The manifest holds size and SHA-256 of every other file and is a function of
them: a checkpoint is **sound** when the manifest rebuilt from the files that are there equals manifest.json
byte for byte.

Saving, pruning and sweeping suppose that no other process does so in the same run: hold `lock_run(run)`.
"""

import contextlib
import fcntl
import hashlib
import json
import operator
import os
import re
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from npgpt.errors import CheckpointError, TrainingError
from npgpt.files import file_sha256, fsync, fsync_folder, make_folder, remove
from npgpt.interop.safetensors_files import safetensors_pieces

VERSION = 1


class Checkpoint(NamedTuple):
    """What a sound checkpoint holds: tensors maps a file's stem, as "model", to its named arrays."""

    step: int
    tensors: dict[str, dict[str, np.ndarray]]
    state: dict[str, Any]


def save_checkpoint(
    run: str | Path, step: int, tensors: dict[str, dict[str, np.ndarray]], state: dict[str, Any]
) -> Path:
    """Writes and returns the folder RUN/checkpoints/step-…, which from then on survives a power cut.

    `state` is what JSON can hold. A sound checkpoint of that step and state is left as it is, one of another
    state makes room when the new one is whole; a damaged one is renamed to step-….damaged. Raises
    CheckpointError; no other checkpoint is ever touched.
    """
    folder = Path(run) / "checkpoints" / _name(step)
    aside, outdated = (folder.with_name(f".{folder.name}.{end}") for end in ("partial", "outdated"))
    try:
        text = json.dumps({"step": step, "state": state}, indent=1).encode()
        old  = outdated
        try:
            _check(folder)
            if (folder / "state.json").read_bytes() == text:
                return folder
        except CheckpointError:
            old = _free_name(folder.with_name(f"{folder.name}.damaged"))
        make_folder(folder.parent)
        for leftover in aside, outdated:  # of a writer that was killed
            remove(leftover)
        aside.mkdir()
        try:
            entries = {file: _write(aside / file, safetensors_pieces(arrays))
                       for stem, arrays in tensors.items() for file in [f"{stem}.safetensors"]}
            entries["state.json"] = _write(aside / "state.json", [text])
            _write(aside / "manifest.json", [_manifest(entries)])
            fsync_folder(aside)
            if os.path.lexists(folder):
                folder.rename(old)
            aside.rename(folder)
        except BaseException:
            shutil.rmtree(aside, ignore_errors=True)
            raise
        fsync_folder(folder.parent)
        shutil.rmtree(outdated, ignore_errors=True)
    except (OSError, TypeError, ValueError) as error:  # the disk; a state or an array that no file can hold
        reason = getattr(error, "strerror", None) or error
        raise CheckpointError(f"cannot save the checkpoint {folder}: {reason}; "
                              "the checkpoints before it are untouched") from error
    return folder


def load_checkpoint(folder: str | Path) -> Checkpoint:
    """Reads a checkpoint after checking every byte of it; CheckpointError if one is not as it was written."""
    folder = Path(folder)
    step, state = _check(folder)
    try:
        tensors = {path.stem: load_file(path) for path in sorted(folder.glob("*.safetensors"))}
    except (OSError, ValueError, LookupError, TypeError, AttributeError, SafetensorError) as error:
        raise CheckpointError(f"the arrays of the checkpoint {folder} cannot be read: {error}") from error
    return Checkpoint(step, tensors, state)


def list_checkpoints(run: str | Path) -> list[Path]:
    """The folders RUN/checkpoints/step-…, newest first; load_checkpoint says which are sound."""
    found = [folder for folder in (Path(run) / "checkpoints").glob("step-*")
             if folder.name.removeprefix("step-").isdecimal()
             and folder.name == _name(step_of(folder)) and folder.is_dir()]
    return sorted(found, key=step_of, reverse=True)


def step_of(folder: Path) -> int:
    """The step of a checkpoint, as its folder's name has it."""
    return int(folder.name.removeprefix("step-"))


def load_latest(run: str | Path, warn: Callable[[str], None]) -> Checkpoint:
    """The newest sound checkpoint; `warn` gets a sentence for each damaged one that is passed over."""
    folders = list_checkpoints(run)
    for folder in folders:
        try:
            return load_checkpoint(folder)
        except CheckpointError as error:
            warn(f"{error}; it is passed over for the one before")
    raise CheckpointError(f"none of the {len(folders)} checkpoints in {run} is sound" if folders else
                          f"there is no checkpoint in {run}; give the folder of a run that has saved one")


def prune_checkpoints(run: str | Path, keep: Collection[int]) -> None:
    """Removes the checkpoints of all steps but `keep`, and what killed writers left behind.

    Each is renamed to a hidden name before its files are deleted. Raises CheckpointError, with everything
    still there, when that would remove every checkpoint.
    """
    run     = Path(run)
    folders = list_checkpoints(run)
    doomed  = [folder for folder in folders if step_of(folder) not in keep]
    if doomed and len(doomed) == len(folders):
        raise CheckpointError(f"no checkpoint of the steps {sorted(keep)} is in {run}, so none is removed")
    try:
        _sweep(run)
        for folder in doomed:
            folder.rename(folder.with_name(f".{folder.name}.pruned"))
        if doomed:
            fsync_folder(run / "checkpoints")  # a power cut must not keep a name without its files
        _sweep(run)
    except OSError as error:
        raise CheckpointError(f"cannot remove old checkpoints in {run}: {error.strerror or error}; "
                              "the others are untouched") from error


@contextlib.contextmanager
def lock_run(run: str | Path) -> Iterator[None]:
    """Makes the folder of a run and holds it until the block or the process ends, however that dies.

    Raises TrainingError when another process holds it.
    """
    run = Path(run)
    try:
        make_folder(run)
        file = (run / "lock").open("a+b", buffering=0)  # stays: were it removed, two could hold one name
    except OSError as error:
        raise TrainingError(f"cannot use the run folder {run}: {error.strerror or error}") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            file.truncate(0)
            file.write(b"%d" % os.getpid())
        except BlockingIOError as error:
            file.seek(0)
            holder = f" (pid {pid.decode()})" if (pid := file.read(20)).isdigit() else ""
            raise TrainingError(f"another process{holder} is training in {run}; "
                                "wait for it, stop it, or choose another out_dir") from error
        except OSError as error:
            raise TrainingError(f"cannot lock the run folder {run}: {error.strerror or error}") from error
        yield


def _name(step: int) -> str:
    return f"step-{step:06d}"


def _free_name(path: Path) -> Path:
    """The path, or with -2, -3, … at its end the first that is not taken."""
    name, count = path.name, 1
    while os.path.lexists(path):
        count += 1
        path = path.with_name(f"{name}-{count}")
    return path


def _sweep(run: Path) -> None:
    for hidden in (run / "checkpoints").glob(".step-*"):
        remove(hidden)


def _write(path: Path, pieces: Iterable[bytes | memoryview]) -> dict[str, Any]:
    """Writes and fsyncs the pieces. The manifest's entry is of the bytes meant, not of those on the disk."""
    digest = hashlib.sha256()
    with path.open("xb") as file:
        for piece in pieces:
            digest.update(piece)
            file.write(piece)
        file.flush()
        fsync(file.fileno())
        return {"size": file.tell(), "sha256": digest.hexdigest()}


def _manifest(entries: dict[str, dict[str, Any]]) -> bytes:
    """manifest.json, a file a line; the same entries always give the same bytes."""
    lines = ",\n".join(f" {json.dumps(name)}: {json.dumps(entries[name])}" for name in sorted(entries))
    return f'{{"npgpt_checkpoint": {VERSION}, "files": {{\n{lines}\n}}}}\n'.encode()


def _check(folder: Path) -> tuple[int, dict[str, Any]]:
    """Step and state of a checkpoint; CheckpointError unless all of it is as it was written."""
    entries = {}
    try:
        written = (folder / "manifest.json").read_bytes()
        for path in folder.iterdir():
            if not path.is_file():  # opening a pipe would wait for ever
                raise OSError(f"{path.name} is no regular file")
            if path.name != "manifest.json":
                entries[path.name] = {"size": path.stat().st_size, "sha256": file_sha256(path)}
    except FileNotFoundError as error:
        raise CheckpointError(f"{folder} is no checkpoint: there is no {error.filename}") from error
    except OSError as error:
        raise CheckpointError(f"the checkpoint {folder} cannot be read: {error.strerror or error}") from error
    if written != _manifest(entries):
        changed = [name for name, entry in entries.items()
                   if _manifest({name: entry}).splitlines()[1] not in written]
        reason = (f"{' and '.join(sorted(changed))} is not as manifest.json has it" if changed else
                  "manifest.json is damaged, of another version, or lists a file that is gone")
        raise CheckpointError(f"the checkpoint {folder} is damaged: {reason}")
    try:
        content = json.loads((folder / "state.json").read_bytes())
        step, state = operator.index(content["step"]), {**content["state"]}
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise CheckpointError(f"the checkpoint {folder} is not one of npgpt's: {error!r}") from error
    if re.fullmatch(r"step-[0-9]+", folder.name) and folder.name != _name(step):
        raise CheckpointError(f"the checkpoint {folder} is of step {step}; give it back its name")
    return step, state
