"""`npgpt export`: a trained GPT in Hugging Face's layout, with its tokenizer."""

import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from npgpt.cli.arguments import parse
from npgpt.interop.gguf_files import GGUFTokenizer, is_gguf, read_gguf
from npgpt.interop.huggingface import CHAT_TEMPLATE, write_model
from npgpt.models import GPTConfig
from npgpt.tokenizers.byte_pair import BPETokenizer
from npgpt.tokenizers.files import Tokenizer
from npgpt.tokenizers.formats import checked_byte_pair
from npgpt.training.runs import load_model


@dataclass(frozen=True)
class Options:
    """Write a trained GPT and its tokenizer into a new folder, in Hugging Face's layout."""

    model: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN_OR_MODEL")]
    """The folder of a run or of a model, the name of one on Hugging Face's hub, or a GGUF file of a Llama."""
    out_dir: Path
    """The folder to write; it must hold no model yet."""
    dtype: str = ""
    """float32, float16, bfloat16 or float64; by default as the model is."""
    max_shard_size: str = "5GB"
    """A model larger than this gets several files."""
    checkpoint: str = "best"
    """Of a run: best (lowest validation loss), latest, or the number of a step."""


def run(arguments: list[str]) -> int:
    options = parse(Options, "export", arguments)
    if is_gguf(options.model):
        _convert(options)
        print(f"model: {options.out_dir}")
        return 0
    loaded = load_model(options.model, options.checkpoint, "cpu", _warn)
    arrays = {name: parameter.data for name, parameter in loaded.model.parameters.items()}
    _write(options, asdict(loaded.model.config), arrays, loaded.tokenizer, loaded.eos_token_ids,
           loaded.chat_template)
    print(f"model: {options.out_dir}")
    return 0


def _convert(options: Options) -> None:
    config, tensors, parts = read_gguf(options.model, GPTConfig)
    arrays = {name: tensor.astype("float32", copy=False) for name, tensor in tensors.items()}
    ends   = () if parts.eos_token_id is None else (parts.eos_token_id,)
    _write(options, asdict(config), arrays, _tokenizer(options.model, parts), ends, parts.chat_template)


def _write(options: Options, settings: dict[str, Any], arrays: dict[str, Any], tokenizer: Tokenizer,
           ends: tuple[int, ...], chat_template: str | None) -> None:
    def beside(folder: Path) -> None:
        tokenizer.save(folder)
        if chat_template is not None:
            (folder / CHAT_TEMPLATE).write_text(chat_template, encoding="utf-8")

    write_model(options.out_dir, settings, arrays, options.dtype or None, options.max_shard_size, ends,
                exact=False, beside=beside)


def _tokenizer(path: Path, parts: GGUFTokenizer) -> BPETokenizer:
    merges = ((f"merge {number}", left, right) for number, (left, right) in enumerate(parts.merges))
    return BPETokenizer(*checked_byte_pair(path, parts.tokens, path, merges, parts.special, parts.pattern,
                                           ignore_merges=parts.pattern == "llama3"))


def _warn(text: str) -> None:
    print(f"npgpt: warning: {text}", file=sys.stderr)
