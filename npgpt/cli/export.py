"""`npgpt export`: a trained GPT in Hugging Face's layout, with its tokenizer."""

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import tyro

from npgpt.cli.arguments import parse
from npgpt.errors import ConfigError
from npgpt.interop.classifiers import Labels
from npgpt.interop.huggingface_writing import write_model, write_tokenizer
from npgpt.interop.peft_files import write_adapter
from npgpt.models import SequenceClassifier
from npgpt.terminal import warn
from npgpt.training.finetuning import BASE, FinetuneConfig
from npgpt.training.loading import load_any, load_run
from npgpt.training.runs import read_config


@dataclass(frozen=True)
class Options:
    """Write a trained GPT and its tokenizer into a new folder, in Hugging Face's layout."""

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN_OR_MODEL")]
    """The folder of a run or of a model in Hugging Face's layout, the name of one on its hub, or a GGUF
    file."""
    out_dir: Path
    """The folder to write. It may hold other files, but no run, no model and none of what is written."""
    dtype: str = ""
    """float32, float16, bfloat16 or float64; by default as the model is."""
    max_shard_size: str = "5GB"
    """A model larger than this gets several files."""
    adapter: bool = False
    """Of a run with LoRA: write its adapters alone, for PEFT to put on the model that was fine-tuned. Without
    it they are merged into the weights."""
    checkpoint: str = "best"
    """Of a run: best (lowest validation loss), latest, or the number of a step."""


def run(arguments: list[str]) -> int:
    options = parse(Options, "export", arguments)
    for name, what in ("config.toml", "a run"), ("manifest.json", "a checkpoint of a run"):
        if (options.out_dir / name).exists():
            raise ConfigError(f"{options.out_dir} holds {what}: choose another --out-dir")
    if options.adapter:
        return _adapter(options)
    loaded = load_any(options.model, options.checkpoint, "cpu", warn)
    model  = loaded.model

    def beside(folder: Path) -> None:
        write_tokenizer(folder, loaded.tokenizer, loaded.named_tokens, loaded.chat_template,
                        loaded.carried)
        for name in sorted(file.name for file in folder.iterdir()):
            if os.path.lexists(options.out_dir / name):
                raise ConfigError(f"{options.out_dir} already holds a {name}: choose another --out-dir")

    labels = Labels(model.labels, model.pad_token_id) if isinstance(model, SequenceClassifier) else None
    arrays = {name: parameter.data for name, parameter in model.parameters.items()}
    write_model(options.out_dir, asdict(model.config), arrays, options.dtype or None, options.max_shard_size,
                loaded.eos_token_ids, loaded.bos_token_id, exact=False, beside=beside, labels=labels,
                carried=loaded.carried)
    print(f"model: {options.out_dir}")
    return 0


def _adapter(options: Options) -> int:
    path   = Path(options.model)
    config = read_config(path)
    if not isinstance(config, FinetuneConfig) or not config.lora_rank:
        raise ConfigError(f"{path} has no adapters: it was not fine-tuned with --lora-rank")
    model, _, _ = load_run(path, options.checkpoint, "cpu", warn)
    arrays = {name: parameter.data for name, parameter in model.flat.parameters.items()}
    write_adapter(options.out_dir, asdict(model.config), arrays, config.lora_alpha, str(path / BASE))
    print(f"adapter: {options.out_dir}, for the model in {path / BASE}")
    return 0
