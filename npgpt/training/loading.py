"""A model to write with, wherever it comes from: a run, a folder in Hugging Face's layout, a GGUF file."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from npgpt.interop.gguf_files import is_gguf, read_gguf
from npgpt.interop.huggingface import find_folder, is_model, read_chat_template, read_ends
from npgpt.models import GPT, GPTConfig
from npgpt.tokenizers import load_tokenizer
from npgpt.tokenizers.files import Tokenizer, assemble_tokenizer
from npgpt.training.runs import load_run


class Loaded(NamedTuple):
    """eos_token_ids: each ends a text.  chat_template: in Jinja, or None."""

    model: GPT
    tokenizer: Tokenizer
    eos_token_ids: tuple[int, ...]
    chat_template: str | None


def load_model(path: Path, which: str, device: str, warn: Callable[[str], None]) -> Loaded:
    """path: a run's folder, a model's, the name of one on Hugging Face's hub, or a GGUF file.

    which, warn: of a run's checkpoints, as in `load_run`.  Raises as that, and TokenizerError if there is no
    tokenizer beside the model.
    """
    if is_gguf(path):
        return _load_gguf(path, device)
    if (path / "config.toml").exists() or not (is_model(path) or ("/" in str(path) and not path.exists())):
        model, tokenizer, _ = load_run(path, which, device, warn)
        return Loaded(model, tokenizer, _ends(tokenizer), None)
    folder    = find_folder(str(path))
    tokenizer = load_tokenizer(folder)
    return Loaded(GPT.from_pretrained(folder, device), tokenizer,
                  read_ends(folder) or _ends(tokenizer), read_chat_template(folder))


def _load_gguf(path: Path, device: str) -> Loaded:
    config, tensors, parts = read_gguf(path, GPTConfig)
    tokenizer = assemble_tokenizer(path, parts.tokens, parts.special, parts.merges, parts.pattern)
    model = GPT(config, None, device)
    model.flat.load(tensors)
    return Loaded(model, tokenizer, _ends(tokenizer) if parts.eos_token_id is None else (parts.eos_token_id,),
                  parts.chat_template)


def _ends(tokenizer: Tokenizer) -> tuple[int, ...]:
    return () if tokenizer.eos_token_id is None else (tokenizer.eos_token_id,)
