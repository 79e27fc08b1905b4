"""Models in Hugging Face's layout: a folder is read into (configuration, named tensors).

    config.json   model.safetensors, or model-00001-of-00002.safetensors … and model.safetensors.index.json

What stands beside these, beside_models.py reads.

Which tensor is which parameter depends on the family alone (families.py). What no family can hold, npgpt
writes under its own names (huggingface_writing.py), with model_type npgpt, for itself to read.
"""

import math
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

import numpy as np

from npgpt.errors import CheckpointError, ConfigError, shortened, shown
from npgpt.hub import fetch, is_name
from npgpt.interop.classifiers import (
    HEADS,
    LANGUAGE_MODEL_HEAD,
    OWN_CLASSIFIER,
    SCORE,
    Labels,
    read_labels,
    with_score,
)
from npgpt.interop.entries import Entries
from npgpt.interop.families import FAMILIES, Family, Settings
from npgpt.interop.layouts import Assembled, Piece, Place
from npgpt.interop.safetensors_files import FLOATS, INDEX, MODEL, Tensor, open_folder
from npgpt.interop.untrusted import member, read_json, refused

CONFIG, ADAPTER_CONFIG = "config.json", "adapter_config.json"
FETCHED = (CONFIG, ADAPTER_CONFIG, "generation_config.json", MODEL, INDEX, "model-*-of-*.safetensors",
           "tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "added_tokens.json",
           "special_tokens_map.json", "chat_template.jinja")
OWN, OWN_SETTINGS = "npgpt", "npgpt_config"
EMBEDDING = "wte.weight"
CHUNK = 1 << 22                 # numbers compared at a time

C = TypeVar("C")


def find_folder(path_or_name: str | Path) -> Path:
    """The folder itself, or that of a model which is fetched by its name. Raises CheckpointError."""
    folder = Path(path_or_name)
    if not folder.is_dir():
        if not is_name(path_or_name):
            raise CheckpointError(f"{folder} is no folder: give that of a run, or of a model with a {CONFIG} "
                                  f"and a {MODEL}, or a GGUF file")
        folder = fetch(str(path_or_name), "model", FETCHED, CheckpointError)
    if (folder / "config.toml").is_file() and not is_model(folder):
        raise CheckpointError(f"{folder} is a run's folder, which npgpt.load reads, and of which npgpt "
                              "export makes a model's")
    if (folder / ADAPTER_CONFIG).exists() and not is_model(folder):
        raise CheckpointError(f"{path_or_name} is an adapter alone ({ADAPTER_CONFIG}), and the model that it "
                              "is for is elsewhere: let PEFT merge them (merge_and_unload, save_pretrained)")
    return folder


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
    if (folder / ADAPTER_CONFIG).exists():
        raise CheckpointError(f"{folder} has an adapter beside its model ({ADAPTER_CONFIG}), which "
                              "transformers puts on it and npgpt does not: let PEFT merge them, or move it")
    if entries.get("model_type") == OWN:
        _check_own_kind(entries, labels)
        own     = entries.inside(OWN_SETTINGS)
        config  = made(entries.path, make_config, own.entries)
        tensors = open_folder(folder)
        own_places = _own_places(own, tensors)
        return config, {place.name: Assembled(place, tensors) for place in own_places}
    family   = _family(entries, labels is not None)
    settings = family.settings(entries)
    config   = made(entries.path, make_config, settings)
    tensors  = open_folder(folder)
    places   = family.places(settings)
    if labels:
        places = with_score(places, settings["n_embd"], labels)
    return config, _arranged(folder, family, places, tensors, settings["tie_word_embeddings"])


def made(path: Path, make_config: Callable[..., C], settings: Settings) -> C:
    """The configuration; raises ConfigError that names the file."""
    try:
        return make_config(**settings)
    except (ConfigError, TypeError) as error:       # TypeError: an unknown setting, or text for a number
        raise ConfigError(f"{path} cannot be used: {shortened(str(error), 200)}") from error


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
    e.only("is_causal", True)
    return family


def _arranged(folder: Path, family: Family, places: Iterable[Place], tensors: dict[str, Tensor],
              tied: bool) -> dict[str, Assembled]:
    prefix = family.prefix if any(name.startswith(family.prefix) for name in tensors) else ""
    arranged, left = {}, set(tensors)
    for place in places:
        place = prefixed(place, prefix)
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


def prefixed(place: Place, prefix: str) -> Place:
    """The place, whose pieces have names that begin so; heads have no prefix."""
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
