"""`npgpt export`: a trained GPT in Hugging Face's layout, with its tokenizer."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import tyro

from npgpt.cli.arguments import parse
from npgpt.interop.huggingface import CHAT_TEMPLATE, write_model
from npgpt.terminal import warn
from npgpt.training.loading import load_any


@dataclass(frozen=True)
class Options:
    """Write a trained GPT and its tokenizer into a new folder, in Hugging Face's layout."""

    model: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN_OR_MODEL")]
    """The folder of a run or of a model in Hugging Face's layout, the name of one on its hub, or a GGUF
    file."""
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
    model, tokenizer, ends, chat_template = load_any(options.model, options.checkpoint, "cpu", warn)

    def beside(folder: Path) -> None:
        tokenizer.save(folder)
        if chat_template is not None:
            (folder / CHAT_TEMPLATE).write_text(chat_template, encoding="utf-8")

    arrays = {name: parameter.data for name, parameter in model.parameters.items()}
    write_model(options.out_dir, asdict(model.config), arrays, options.dtype or None, options.max_shard_size,
                ends, exact=False, beside=beside)
    print(f"model: {options.out_dir}")
    return 0
