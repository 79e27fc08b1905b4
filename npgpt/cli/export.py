"""`npgpt export`: a trained GPT in Hugging Face's layout, with its tokenizer."""

import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import tyro

from npgpt.cli.arguments import parse
from npgpt.interop.huggingface import write_model
from npgpt.training.runs import load_model


@dataclass(frozen=True)
class Options:
    """Write a trained GPT and its tokenizer into a new folder, in Hugging Face's layout."""

    model: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN_OR_MODEL")]
    """The folder of a run or of a model, or the name of one on Hugging Face's hub."""
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
    model, tokenizer, _ = load_model(options.model, options.checkpoint, "cpu", _warn)
    arrays = {name: parameter.data for name, parameter in model.parameters.items()}
    write_model(options.out_dir, asdict(model.config), arrays, options.dtype or None, options.max_shard_size,
                tokenizer.eos_token_id, exact=False, beside=tokenizer.save)
    print(f"model: {options.out_dir}")
    return 0


def _warn(text: str) -> None:
    print(f"npgpt: warning: {text}", file=sys.stderr)
