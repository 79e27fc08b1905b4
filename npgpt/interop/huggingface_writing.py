"""Models in Hugging Face's layout, as huggingface.py reads them, written."""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from npgpt.errors import CheckpointError, ConfigError
from npgpt.files import atomic_folder
from npgpt.interop.beside_models import CHAT_TEMPLATE, GENERATION, GPT2_NAMED, TOKENIZER_CONFIG, Carried
from npgpt.interop.classifiers import OWN_CLASSIFIER, Labels, label_entries, with_score
from npgpt.interop.families import FAMILIES, Settings, family_for
from npgpt.interop.huggingface import CONFIG, EMBEDDING, OWN, OWN_SETTINGS, prefixed
from npgpt.interop.layouts import taken_apart
from npgpt.interop.safetensors_files import INDEX, MODEL, NAMES, SIZES, safetensors_pieces, stored_type
from npgpt.interop.untrusted import read_json

UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def write_model(path: str | Path, settings: Settings, arrays: Mapping[str, Any], dtype: str | None = None,
                max_shard_size: int | str = "5GB", eos_token_ids: Sequence[int] = (),
                bos_token_id: int | None = None, exact: bool = True,
                beside: Callable[[Path], None] | None = None, labels: Labels | None = None,
                carried: Carried | None = None) -> None:
    """Writes a folder, whole or not at all.  settings: all of GPTConfig's fields.  arrays: by npgpt's names.

    dtype: float64, float32, float16 or bfloat16, by default the arrays'.  max_shard_size: bytes of a file, or
    as "200MB"; a larger model gets several.  exact: reading gives just this model back, if need be by npgpt
    alone; else what no family has a place for is refused, and absent biases of GPT-2 become zeros.
    beside: writes more files into the folder.  labels: of a classifier.  carried: as `read_carried` gives it.
    Raises ConfigError, CheckpointError.
    """
    if dtype is not None and dtype not in NAMES:
        raise ConfigError(f"dtype must be {', '.join(NAMES)}, not {dtype!r}")
    config, tensors = _translated(settings, arrays, exact, labels)
    config["torch_dtype"] = dtype or arrays[EMBEDDING].dtype.name
    first, *others = (*eos_token_ids, None)
    begin, ends = {"bos_token_id": bos_token_id}, {"eos_token_id": [*eos_token_ids] if others[1:] else first}
    carried    = carried or {}
    config     = begin | dict(carried.get(CONFIG, {})) | ends | config
    generation = dict(carried.get(GENERATION, {}))
    if eos_token_ids:
        generation = begin | generation | ends
    try:
        shards = list(_shards(tensors, dtype, _bytes(max_shard_size)))
        with atomic_folder(path, last=CONFIG) as folder:
            for file, names in shards:
                write_file(folder / file, safetensors_pieces({name: tensors[name] for name in names}, dtype,
                                                         {"format": "pt"}))
            if len(shards) > 1:
                total = sum(_size(name, tensor, dtype) for name, tensor in tensors.items())
                write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": {
                    name: file for file, names in shards for name in names}})
            write_json(folder / GENERATION, generation)
            if beside is not None:
                beside(folder)
            write_json(folder / CONFIG, config)
    except (OSError, ValueError) as error:      # the disk; a value that no file can hold
        reason = getattr(error, "strerror", None) or error
        raise CheckpointError(f"cannot save the model to {path}: {reason}") from error


def _translated(settings: Settings, arrays: Mapping[str, Any], exact: bool,
                labels: Labels | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """config.json, and the tensors by their names in the file."""
    if any(name.endswith("lora_A") for name in arrays):
        raise ConfigError("a model with LoRA cannot be saved as a model: merge it first, with merge_lora, or "
                          "save the adapter alone")
    found, told = family_for(settings, exact), label_entries(labels) if labels else {}
    if isinstance(found, str):
        if not exact:
            raise ConfigError(f"a model with {found} = {settings[found]!r} cannot be exported: no family of "
                              f"transformers that npgpt writes ({', '.join(FAMILIES)}) has a place for it")
        if labels:
            told |= {"architectures": [OWN_CLASSIFIER]}
        return {"model_type": OWN, OWN_SETTINGS: dict(settings), **told}, dict(arrays)
    kind, config = found
    family, tensors = FAMILIES[kind], {}
    interleaved = settings["position"] == "rotary" and settings["rope_interleaved"]
    places = family.places(settings)
    if labels:
        places = with_score(places, settings["n_embd"], labels)
    for place in places:
        array = arrays.get(place.name)
        if array is None:
            array = np.zeros(place.shape, arrays[EMBEDDING].dtype)
        tensors.update(taken_apart(prefixed(place, family.prefix), array, interleaved))
    architecture = family.classifier if labels else family.architectures[0]
    return {"model_type": kind, "architectures": [architecture], **config, **told}, tensors


def _shards(tensors: Mapping[str, Any], dtype: str | None, limit: int) -> Iterator[tuple[str, list[str]]]:
    """(file, names of its tensors); a file has more than the limit only where one tensor has."""
    groups: list[list[str]] = [[]]
    filled = 0
    for name, tensor in tensors.items():
        size = _size(name, tensor, dtype)
        if groups[-1] and filled + size > limit:
            groups.append([])
            filled = 0
        groups[-1].append(name)
        filled += size
    if len(groups) == 1:
        yield MODEL, groups[0]
        return
    for number, names in enumerate(groups, start=1):
        yield f"model-{number:05d}-of-{len(groups):05d}.safetensors", names


def _size(name: str, tensor: Any, dtype: str | None) -> int:
    return tensor.size * SIZES[stored_type(name, tensor.dtype, dtype)]


def _bytes(size: int | str) -> int:
    match = re.fullmatch(r"([0-9]{1,15})\s*([A-Z]*)", str(size).strip().upper())
    if not match or match[2] not in UNITS or int(match[1]) < 1:
        raise ConfigError(f"max_shard_size must be a number of bytes, or as 200MB or 5GB, not {size!r}")
    return int(match[1]) * UNITS[match[2]]


def write_tokenizer(folder: Path, tokenizer: Any, named_tokens: Mapping[str, str],
                    chat_template: str | None, carried: Carried | None = None) -> None:
    """tokenizer: with `save`.  named_tokens: as `read_named_tokens` gives them, and will again.
    carried: of a tokenizer that comes from elsewhere; then no other tokens have a name.
    """
    tokenizer.save(folder)
    config  = folder / TOKENIZER_CONFIG
    entries = read_json(config)
    if carried is not None:
        own     = {name: value for name, value in entries.items() if name not in GPT2_NAMED}
        entries = own | dict(carried.get(TOKENIZER_CONFIG, {}))
    write_json(config, entries | dict(named_tokens))
    if chat_template is not None:
        (folder / CHAT_TEMPLATE).write_text(chat_template, encoding="utf-8")


def write_file(path: Path, pieces: Iterator[bytes | memoryview]) -> None:
    with path.open("xb") as file:
        for piece in pieces:
            file.write(piece)


def write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
