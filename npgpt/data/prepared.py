"""The folder that `npgpt prepare` makes, and opening it again.

    manifest.json  tokenizer/  train-00000.bin  train-00001.bin …  val-00000.bin …
    unfinished/    while it is being made: plan.json and the parts; then manifest.json is not there yet

manifest.json is written last, so where there is one everything that it lists is there.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from npgpt.data.shards import open_shard
from npgpt.errors import DataError

KIND = "npgpt prepare 1"
"""The manifest's first entry: what wrote it, and the version of its layout."""


class Prepared(NamedTuple):
    """A prepared folder: the folder of its tokenizer and the ids of its shards, memory-mapped."""

    tokenizer: Path
    train: list[np.ndarray]
    val: list[np.ndarray]


def has_manifest(folder: Path) -> bool:
    """Whether `npgpt prepare` has finished in this folder."""
    return (folder / "manifest.json").is_file() and _read(folder).get("kind") == KIND


def is_prepared(folder: Path) -> bool:
    """Whether `npgpt prepare` made this folder. Raises DataError if it has not finished doing so."""
    if has_manifest(folder):
        return True
    if (folder / "unfinished" / "plan.json").is_file():
        raise DataError(f"{folder} is not fully prepared: run the same npgpt prepare again, and it goes on")
    return False


def read_manifest(folder: Path) -> dict[str, Any]:
    """manifest.json of a prepared folder. Raises DataError if that cannot be used."""
    manifest = _read(folder)
    if manifest.get("kind") != KIND:
        raise DataError(f"{folder / 'manifest.json'} is not one of {KIND!r}: prepare the folder anew")
    return manifest


def open_prepared(folder: Path) -> Prepared:
    """Maps all shards. Raises DataError, naming the file, if one is not as the manifest says."""
    manifest = read_manifest(folder)
    try:
        format, vocab_size = manifest["options"]["format"], manifest["tokenizer"]["vocab_size"]
        sides: list[list[np.ndarray]] = []
        for side in ("train", "val"):
            sides.append([])
            for entry in manifest[side]["shards"]:
                path = folder / entry["name"]
                tokens = open_shard(path, format).tokens
                if len(tokens) != entry["tokens"]:
                    raise DataError(f"{path} has {len(tokens)} tokens, but manifest.json says "
                                    f"{entry['tokens']}; prepare the folder anew")
                if len(tokens) and tokens.max() >= vocab_size:
                    raise DataError(f"{path} has the token id {tokens.max()}, but its tokenizer only "
                                    f"{vocab_size} tokens; prepare the folder anew")
                sides[-1].append(tokens)
    except (KeyError, TypeError) as error:
        raise DataError(f"{folder / 'manifest.json'} is incomplete: prepare the folder anew") from error
    return Prepared(folder / "tokenizer", *sides)


def _read(folder: Path) -> dict[str, Any]:
    path = folder / "manifest.json"
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error
    return manifest if isinstance(manifest, dict) else {}
