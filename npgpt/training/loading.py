"""A model to write with, wherever it comes from: a run, a folder in Hugging Face's layout, a GGUF file."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from npgpt.errors import CheckpointError, ConfigError, TrainingError
from npgpt.interop.beside_models import read_carried, read_chat_template, read_ends, read_named_tokens
from npgpt.interop.gguf_files import is_gguf, read_gguf
from npgpt.interop.huggingface import find_folder, is_classifier, is_model
from npgpt.layers import merge_lora
from npgpt.models import GPT, GPTConfig, SequenceClassifier
from npgpt.tensor.precision import accumulator
from npgpt.tokenizers import load_tokenizer
from npgpt.tokenizers.files import Tokenizer, assemble_tokenizer
from npgpt.training.checkpoint import Checkpoint, list_checkpoints, load_checkpoint, load_latest, step_of
from npgpt.training.finetuning import Loaded
from npgpt.training.runs import new_model, read_config, run_meant_by, run_of, tokenizer_folder

BY_NAME = ("best", "latest")        # checkpoints that are not asked for by their step


def load_model(path: str | Path, which: str, device: str, warn: Callable[[str], None]) -> Loaded:
    """path: a run's folder, a model's, or a GGUF file; a str may be a model's name on Hugging Face's hub.

    which, warn: of a run's checkpoints, as in `load_run`.  Raises as that, TokenizerError if there is no
    tokenizer beside the model, and ConfigError for a classifier.
    """
    loaded = load_any(path, which, device, warn)
    if isinstance(loaded.model, SequenceClassifier):
        raise ConfigError(f"{path} is a classifier, which writes nothing: npgpt evaluate {path} --task "
                          "classification has it tell classes")
    return loaded


def load_classifier(path: str | Path, which: str, device: str,
                    warn: Callable[[str], None]) -> tuple[SequenceClassifier, Tokenizer]:
    """As `load_model`, of a classifier. Raises ConfigError for a model that is none."""
    loaded = load_any(path, which, device, warn)
    if not isinstance(loaded.model, SequenceClassifier):
        raise ConfigError(f"{path} is no classifier: npgpt finetune {path} --data FILE.jsonl, with labels, "
                          "makes one of it")
    return loaded.model, loaded.tokenizer


def load_any(path_or_name: str | Path, which: str, device: str, warn: Callable[[str], None]) -> Loaded:
    """A model of either kind."""
    if path_or_name == "":                                 # Path("") is the current folder
        raise TrainingError("no model is named: give a run's folder, a model's, its name on the hub, or a "
                            "GGUF file")
    path = Path(path_or_name)
    if run := run_of(path):
        raise TrainingError(f"{path} is a checkpoint: use {run} --checkpoint {step_of(path.resolve())}")
    if is_gguf(path):
        _check_alone(path, which)
        return _load_gguf(path, device)
    if (path / "config.toml").exists() or (path.exists() and not is_model(path)):
        model, tokenizer, _ = load_run(path, which, device, warn)
        folder = tokenizer_folder(path)
        merge_lora(model)
        return _loaded(model, tokenizer, folder)
    try:
        folder = find_folder(path_or_name)
    except CheckpointError as error:
        raise CheckpointError(f"{str(error).rstrip('.')}{run_meant_by(path)}") from error
    _check_alone(path_or_name, which)
    tokenizer = load_tokenizer(folder)
    kind      = SequenceClassifier if is_classifier(folder) else GPT
    return _loaded(kind.from_pretrained(folder, device), tokenizer, folder)


def _check_alone(path: str | Path, which: str) -> None:
    if which not in BY_NAME:
        raise CheckpointError(f"{path} has no checkpoint {which!r}: it is a model by itself, and not a run")


def _loaded(model: Any, tokenizer: Tokenizer, folder: Path) -> Loaded:
    """With what the folder says of texts and conversations."""
    ends  = read_ends(folder) or _ends(tokenizer)
    named = {"eos_token": tokenizer.decode(ends[:1])} if ends and ends[0] in tokenizer else {}
    return Loaded(model, tokenizer, ends, read_chat_template(folder), named | read_named_tokens(folder),
                  read_carried(folder))


def load_run(path: str | Path, which: str, device: str,
             warn: Callable[[str], None]) -> tuple[Any, Tokenizer, Checkpoint]:
    """The model of a run as a checkpoint holds it, LoRA's adapters apart, with its tokenizer.

    which: "best" (lowest validation loss), "latest", or a step's number.  warn: gets a sentence where another
    than was asked for is taken.  Raises as `open_run`, and CheckpointError.
    """
    path      = Path(path)
    config    = read_config(path)
    config    = replace(config, device=device, dtype=accumulator(config.dtype), tf32=False, workers=None)
    tokenizer = load_tokenizer(tokenizer_folder(path))
    if which in BY_NAME:
        checkpoint = load_latest(path, warn)
        best = checkpoint.state.get("best_step")
        if which == "best" and best is not None and best != checkpoint.step:
            try:
                checkpoint = load_checkpoint(_at_step(path, best))
            except CheckpointError as error:
                warn(f"the best checkpoint of {path} is lost, and its latest is taken: {error}")
    else:
        checkpoint = load_checkpoint(_at_step(path, which))
    model = new_model(path, config, tokenizer.vocab_size)
    model.flat.load(checkpoint.tensors["model"])
    return model, tokenizer, checkpoint


def _at_step(path: Path, step: int | str) -> Path:
    steps = {str(step_of(folder)): folder for folder in list_checkpoints(path)}
    if str(step) not in steps:
        known = ", ".join([*BY_NAME, *steps])
        raise CheckpointError(f"{path} has no checkpoint {step!r}: use {known}")
    return steps[str(step)]


def _load_gguf(path: Path, device: str) -> Loaded:
    config, tensors, parts = read_gguf(path, GPTConfig)
    tokenizer = assemble_tokenizer(path, parts.tokens, parts.special, parts.merges, parts.pattern,
                                   parts.prefix_token, parts.added)
    model = GPT(config, None, device)
    model.flat.load(tensors)
    ends  = _ends(tokenizer) if parts.eos_token_id is None else (parts.eos_token_id,)
    named = {"bos_token": parts.bos_token_id, "eos_token": next(iter(ends), None)}
    ends  = tuple(dict.fromkeys([*ends, *parts.further_ends]))
    return Loaded(model, tokenizer, ends, parts.chat_template,
                  {name: tokenizer.decode([id]) for name, id in named.items() if id is not None}, {})


def _ends(tokenizer: Tokenizer) -> tuple[int, ...]:
    return () if tokenizer.eos_token_id is None else (tokenizer.eos_token_id,)
