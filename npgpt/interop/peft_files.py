"""LoRA in PEFT's files: a folder that `PeftModel.from_pretrained` puts on a model of transformers.

    adapter_config.json   adapter_model.safetensors:

    base_model.model.transformer.h.0.attn.c_attn.lora_A.weight  (r, C)      Aᵀ
    base_model.model.transformer.h.0.attn.c_attn.lora_B.weight  (D, r)      Bᵀ

Where transformers has several layers for one of npgpt's (queries, keys and values of a Llama, its gate and
up), each gets the same A, and of B the columns that are its own: x A [B₁ | B₂ | B₃] is x A B₁ beside x A B₂
beside x A B₃. A classifier's head goes along, since the model that the adapter is put on has none.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from npgpt.errors import CheckpointError, ConfigError
from npgpt.files import atomic_folder
from npgpt.interop.classifiers import SCORE
from npgpt.interop.families import FAMILIES, Family, Settings, family_for
from npgpt.interop.huggingface import ADAPTER_CONFIG
from npgpt.interop.huggingface_writing import write_file, write_json
from npgpt.interop.layouts import taken_apart
from npgpt.interop.safetensors_files import safetensors_pieces

ADAPTER = "adapter_model.safetensors"


def write_adapter(path: str | Path, settings: Settings, arrays: Mapping[str, Any], alpha: float,
                  base_model: str | None = None) -> None:
    """Writes such a folder, whole or not at all, for the model as npgpt exports it (GPT-2 without biases gets
    zeros for them).

    settings: all of GPTConfig's fields.  arrays: LoRA's, of one layer at least, and what else was learned, by
    npgpt's names: h.0.attn.c_attn.lora_A (C, r) and .lora_B (r, D), …, and score.weight of a classifier.
    alpha: s r.
    base_model: the name or folder of the model that was fine-tuned, which PEFT itself may fetch.
    Raises ConfigError for a model that transformers has not, CheckpointError.
    """
    found = family_for(settings, exact=False)
    if isinstance(found, str):
        raise ConfigError(f"LoRA on a model with {found} = {settings[found]!r} cannot be saved for PEFT: no "
                          f"family of transformers that npgpt writes ({', '.join(FAMILIES)}) has a place for "
                          "it; merge it and save the model")
    family, tensors, targets, left = FAMILIES[found[0]], {}, set[str](), set(arrays)
    for name, target, A, B in _pieces(family, settings, arrays, left):
        tensors[f"base_model.model.{family.prefix}{name}.lora_A.weight"] = A
        tensors[f"base_model.model.{family.prefix}{name}.lora_B.weight"] = B
        targets.add(target)
    is_classifier = SCORE in left
    if is_classifier:
        tensors[f"base_model.model.{SCORE}"] = arrays[SCORE].T
        left.discard(SCORE)
    if left:
        raise ConfigError(f"{sorted(left)[0]} was learned beside LoRA, and an adapter has no place for it: "
                          "merge it and save the model")
    config = {
        "peft_type": "LORA", "task_type": "SEQ_CLS" if is_classifier else "CAUSAL_LM",
        "base_model_name_or_path": base_model, "r": next(iter(tensors.values())).shape[0],
        "lora_alpha": alpha, "target_modules": sorted(targets), "fan_in_fan_out": found[0] == "gpt2",
        "lora_dropout": 0.0, "bias": "none", "use_rslora": False, "use_dora": False,
        "init_lora_weights": True, "inference_mode": True,
        "modules_to_save": ["score"] if is_classifier else None,
    }
    try:
        with atomic_folder(path, last=ADAPTER_CONFIG) as folder:
            write_file(folder / ADAPTER, safetensors_pieces(tensors, metadata={"format": "pt"}))
            write_json(folder / ADAPTER_CONFIG, config)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise CheckpointError(f"cannot save the adapter to {path}: {reason}") from error


def _pieces(family: Family, settings: Settings, arrays: Mapping[str, Any],
            left: set[str]) -> Iterator[tuple[str, str, Any, Any]]:
    """Of each layer of transformers with LoRA: its name, that within a block, Aᵀ and Bᵀ; its arrays are taken
    out of `left`.
    """
    interleaved = settings["position"] == "rotary" and settings["rope_interleaved"]
    for place in family.places(settings):
        name_A, name_B = (f"{place.name.removesuffix('.weight')}.lora_{end}" for end in "AB")
        if name_A in arrays:
            left -= {name_A, name_B}
            parts = taken_apart(place, arrays[name_B], interleaved)
            for piece in place.pieces:
                B = parts[piece.name]
                name = piece.name.removesuffix(".weight")                     # h.0.attn.c_attn
                yield name, name.split(".", 2)[2], arrays[name_A].T, B if piece.transposed else B.T
