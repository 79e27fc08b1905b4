"""Models in Hugging Face's layout: a folder is read into (configuration, named tensors), or written so.

    config.json   generation_config.json   model.safetensors, or model-00001-of-00002.safetensors … and
    model.safetensors.index.json           the tokenizer's files beside them

Which tensor is which parameter depends on the family alone (families.py). What no family can hold, npgpt
writes under its own names, with model_type npgpt, for itself to read.
"""

import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from npgpt.errors import CheckpointError, ConfigError
from npgpt.files import atomic_folder
from npgpt.interop.classifiers import (
    HEADS,
    LANGUAGE_MODEL_HEAD,
    OWN_CLASSIFIER,
    SCORE,
    Labels,
    label_entries,
    read_labels,
    with_score,
)
from npgpt.interop.entries import Entries
from npgpt.interop.families import FAMILIES, Family, Settings, family_for
from npgpt.interop.hub import fetch, is_name
from npgpt.interop.layouts import Assembled, Piece, Place, taken_apart
from npgpt.interop.safetensors_files import (
    FLOATS,
    INDEX,
    MODEL,
    NAMES,
    SIZES,
    Tensor,
    member,
    open_folder,
    read_json,
    refused,
    safetensors_pieces,
    shown,
    stored_type,
)

CONFIG, GENERATION = "config.json", "generation_config.json"
CHAT_TEMPLATE, TOKENIZER_CONFIG = "chat_template.jinja", "tokenizer_config.json"
OWN, OWN_SETTINGS = "npgpt", "npgpt_config"
EMBEDDING = "wte.weight"
UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
CHUNK = 1 << 22                 # numbers compared at a time

C = TypeVar("C")


def find_folder(path_or_name: str | Path) -> Path:
    """The folder itself, or that of a model which is fetched by its name. Raises CheckpointError."""
    folder = Path(path_or_name)
    if folder.is_dir():
        return folder
    if isinstance(path_or_name, str) and is_name(path_or_name) and not folder.exists():
        return fetch(path_or_name)
    raise CheckpointError(f"{folder} is no folder: give that of a model, with a {CONFIG} and a {MODEL}")


def is_model(folder: Path) -> bool:
    """Whether it looks like a folder for `read_model`."""
    return (folder / CONFIG).is_file()


def is_classifier(folder: Path) -> bool:
    """Whether such a folder has a model for `read_classifier`."""
    classes = read_json(member(folder, CONFIG)).get("architectures")
    return isinstance(classes, list) and bool(classes) and isinstance(classes[0], str) and \
        (classes[0] == OWN_CLASSIFIER or classes[0].endswith("ForSequenceClassification"))


def read_model(folder: Path, make_config: Callable[..., C]) -> tuple[C, dict[str, Assembled]]:
    """The configuration, and the tensors by npgpt's names, still in the file.

    make_config: takes GPTConfig's arguments.  Raises ConfigError or CheckpointError, naming file and entry or
    tensor, unless every parameter is there in its shape and nothing else is.
    """
    path    = member(folder, CONFIG)
    entries = Entries(path, read_json(path))
    return _read(folder, entries, make_config, None)


def read_classifier(folder: Path, make_config: Callable[..., C]) -> tuple[C, Labels, dict[str, Assembled]]:
    """As read_model, of a classifier, with the names of its labels."""
    path    = member(folder, CONFIG)
    entries = Entries(path, read_json(path))
    labels  = read_labels(entries)
    config, tensors = _read(folder, entries, make_config, labels)
    return config, labels, tensors


def _read(folder: Path, entries: Entries, make_config: Callable[..., C],
          labels: Labels | None) -> tuple[C, dict[str, Assembled]]:
    """labels: of a classifier, None for a language model."""
    if entries.get("model_type") == OWN:
        _check_own_kind(entries, labels)
        own     = entries.inside(OWN_SETTINGS)
        config  = _made(entries.path, make_config, own.entries)
        tensors = open_folder(folder)
        own_places = _own_places(own, tensors)
        return config, {place.name: Assembled(place, tensors) for place in own_places}
    family   = _family(entries, labels is not None)
    settings = family.settings(entries)
    config   = _made(entries.path, make_config, settings)
    tensors  = open_folder(folder)
    places   = family.places(settings)
    if labels:
        places = with_score(places, settings["n_embd"], labels)
    return config, _arranged(folder, family, places, tensors, settings["tie_word_embeddings"])


def read_ends(folder: Path) -> tuple[int, ...]:
    """The tokens that end a text, by generation_config.json or config.json; none where neither says."""
    for name in (GENERATION, CONFIG):
        if (folder / name).exists():
            path = member(folder, name)
            ends = read_json(path).get("eos_token_id")
            ends = ends if isinstance(ends, list) else [] if ends is None else [ends]
            if not all(type(id) is int and 0 <= id < 2**31 for id in ends):
                raise refused(path, f"its eos_token_id is {shown(ends)}, which is no token or tokens")
            if ends:
                return tuple(ends)
    return ()


def read_chat_template(folder: Path) -> str | None:
    """How the model reads a conversation: a template in Jinja, in a file of its own or the tokenizer's."""
    if (folder / CHAT_TEMPLATE).exists():
        path = member(folder, CHAT_TEMPLATE)
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise refused(path, str(error)) from error
    if not (folder / TOKENIZER_CONFIG).exists():
        return None
    template = read_json(member(folder, TOKENIZER_CONFIG)).get("chat_template")
    if isinstance(template, list):                         # several by name
        template = next((entry.get("template") for entry in template
                         if isinstance(entry, dict) and entry.get("name") == "default"), None)
    return template if isinstance(template, str) else None


def _made(path: Path, make_config: Callable[..., C], settings: Settings) -> C:
    try:
        return make_config(**settings)
    except (ConfigError, TypeError) as error:       # TypeError: an unknown setting, or text for a number
        raise ConfigError(f"{path} cannot be used: {error}") from error


def _check_own_kind(e: Entries, labels: Labels | None) -> None:
    is_classifier = e.get("architectures") == [OWN_CLASSIFIER]
    if is_classifier and labels is None:
        raise e.refused(f"its architectures are {[OWN_CLASSIFIER]}, without a language model's head: "
                        "SequenceClassifier reads it")
    if labels and not is_classifier:
        raise e.refused("it is that of a language model, and has no classifier's head: GPT reads it")


def _family(e: Entries, classifier: bool) -> Family:
    kind, classes = e.get("model_type"), e.get("architectures", [])
    known = ", ".join(FAMILIES)
    if not isinstance(kind, str) or kind not in FAMILIES:
        raise e.refused(f"its model_type is {shown(kind)}, and npgpt reads {known}")
    family = FAMILIES[kind]
    if classifier and classes != [family.classifier]:
        raise e.refused(f"its architectures are {shown(classes)}, and a classifier's is {family.classifier}")
    if not classifier and classes == [family.classifier]:
        raise e.refused(f"its architectures are {classes}, without a language model's head: "
                        "SequenceClassifier reads it")
    if not classifier and (not isinstance(classes, list) or (classes and
                                                             classes[0] not in family.architectures)):
        raise e.refused(f"its architectures are {shown(classes)}, and of {kind} npgpt reads "
                        f"{' and '.join(family.architectures)}")
    for name in ("quantization_config", "compression_config"):
        if e.get(name) is not None:
            raise e.refused(f"it asks for {name}, and npgpt reads no quantised weights")
    return family


def _arranged(folder: Path, family: Family, places: Iterable[Place], tensors: dict[str, Tensor],
              tied: bool) -> dict[str, Assembled]:
    prefix = family.prefix if any(name.startswith(family.prefix) for name in tensors) else ""
    arranged, left = {}, set(tensors)
    for place in places:
        place = _prefixed(place, prefix)
        for piece in place.pieces:
            if piece.name not in tensors:
                raise CheckpointError(f"{folder} has no tensor {piece.name}, which its {CONFIG} asks for")
            tensor = tensors[piece.name]
            if tensor.shape != piece.shape:
                raise refused(tensor.path, f"{piece.name} has shape {tensor.shape}, and by {CONFIG} it is "
                                           f"{piece.shape}")
            if tensor.dtype not in FLOATS:
                raise refused(tensor.path, f"{piece.name} has type {tensor.dtype}, and a parameter is one of "
                                           f"{', '.join(FLOATS)}")
            left.discard(piece.name)
        arranged[place.name] = Assembled(place, tensors)
    if LANGUAGE_MODEL_HEAD in left and tied and SCORE not in arranged:
        _check_tied(tensors[LANGUAGE_MODEL_HEAD], next(iter(arranged[EMBEDDING].tensors)))
        left.discard(LANGUAGE_MODEL_HEAD)
    for name in sorted(left):
        if not name.endswith(family.ignored):
            raise refused(tensors[name].path, f"it has a tensor {shown(name)}, and the model of {CONFIG} has "
                                              "no place for it")
    return arranged


def _check_tied(head: Tensor, embedding: Tensor) -> None:
    """Some files hold the tied table twice; then both must be the same."""
    same = head.shape == embedding.shape and head.dtype == embedding.dtype
    if same:
        one, other = head.bits.reshape(-1), embedding.bits.reshape(-1)
        same = all(np.array_equal(one[start:start + CHUNK], other[start:start + CHUNK])
                   for start in range(0, one.size, CHUNK))
    if not same:
        raise refused(head.path, f"{LANGUAGE_MODEL_HEAD} differs from {embedding.name}, and by {CONFIG} they "
                                 "are one (tie_word_embeddings)")


def _prefixed(place: Place, prefix: str) -> Place:
    return Place(place.name, tuple(piece if piece.name in HEADS else piece._replace(name=prefix + piece.name)
                                   for piece in place.pieces))


def _own_places(e: Entries, tensors: dict[str, Tensor]) -> list[Place]:
    """Names and shapes are npgpt's: the model compares them. But first it must be of no other size than the
    files are, or making it could fill the memory.
    """
    layers = {match[1] for name in tensors if (match := re.match(r"h\.([0-9]+)\.", name))}
    if e.whole("n_layer") != len(layers):
        raise e.refused(f"its n_layer is {e.whole('n_layer')}, and there are tensors of {len(layers)} layers")
    total = sum(math.prod(tensor.shape) for tensor in tensors.values())
    sizes = ["vocab_size", "n_embd", "n_head", "n_kv_head", "head_dim", "n_inner"]
    if e.get("position") == "learned":
        sizes.append("block_size")
    for name in sizes:
        if e.whole(name, 1) > total:
            raise e.refused(f"its {name} is {e.whole(name):,}, and all tensors together have {total:,} "
                            "numbers")
    return [Place(name, (Piece(name, tensor.shape),)) for name, tensor in tensors.items()]


# Writing

def write_model(path: str | Path, settings: Settings, arrays: Mapping[str, Any], dtype: str | None = None,
                max_shard_size: int | str = "5GB", eos_token_ids: Sequence[int] = (), exact: bool = True,
                beside: Callable[[Path], None] | None = None, labels: Labels | None = None) -> None:
    """Writes a folder, whole or not at all.  settings: all of GPTConfig's fields.  arrays: by npgpt's names.

    dtype: float64, float32, float16 or bfloat16, by default the arrays'.  max_shard_size: bytes of a file, or
    as "200MB"; a larger model gets several.  exact: reading gives just this model back, if need be by npgpt
    alone; else what no family has a place for is refused, and absent biases of GPT-2 become zeros.
    beside: writes more files into the folder.  labels: of a classifier.  Raises ConfigError, CheckpointError.
    """
    if dtype is not None and dtype not in NAMES:
        raise ConfigError(f"dtype must be {', '.join(NAMES)}, not {dtype!r}")
    config, tensors = _translated(settings, arrays, exact, labels)
    kinds = {tensor.dtype.name for tensor in tensors.values()}
    config["torch_dtype"] = dtype or (kinds.pop() if len(kinds) == 1 else "float32")
    first, *others = (*eos_token_ids, None)                 # GPT-2 begins a text with what ends one
    ends = {"bos_token_id": first, "eos_token_id": first if len(others) < 2 else [*eos_token_ids]}
    config |= ends
    generation = ends if eos_token_ids else {}
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
        tensors.update(taken_apart(_prefixed(place, family.prefix), array, interleaved))
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


def write_file(path: Path, pieces: Iterator[bytes | memoryview]) -> None:
    with path.open("xb") as file:
        for piece in pieces:
            file.write(piece)


def write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
