"""`npgpt finetune`: a model that is there learns on, from texts, pairs, conversations or labelled texts."""

import shlex
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from npgpt.cli.arguments import parse, value_of
from npgpt.cli.training import go_on, reopen, steady_console
from npgpt.errors import ConfigError, UsageError
from npgpt.models import SequenceClassifier
from npgpt.terminal import warn
from npgpt.training.communication import Ranks, processes
from npgpt.training.config import read_config_file
from npgpt.training.finetuning import FinetuneConfig
from npgpt.training.loading import load_any
from npgpt.training.loop import check_ranks
from npgpt.training.nccl import own_device
from npgpt.training.runs import create_run, new_run_path, read_config


@dataclass(frozen=True)
class Settings(FinetuneConfig):
    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")] = ""
    """What to begin from: the folder of a run or of a model in Hugging Face's layout, the name of one on its
    hub, or a GGUF file."""


@dataclass(frozen=True)
class Options:
    """Teach a GPT that is there: on text, or on examples whose answers alone are learned. All weights learn,
    or some of them (--trainable), or adapters beside them (--lora-rank). The run's folder holds everything,
    with the best checkpoint by validation loss; sample, chat, evaluate and export take it. Ctrl-C saves and
    stops; --resume goes on bit for bit."""

    config: Path | None = None
    """A TOML file of settings; the options below go over it."""
    resume: Path | None = None
    """The folder of a fine-tuning to go on with, from its latest checkpoint; then no MODEL is named."""
    settings: tyro.conf.OmitArgPrefixes[Settings] = field(default_factory=Settings)


def run(arguments: list[str]) -> int:
    with processes() as ranks:
        return _run(arguments, ranks)


def _run(arguments: list[str], ranks: Ranks) -> int:
    file   = value_of("config", arguments, "a file")
    resume = value_of("resume", arguments, "the folder of a fine-tuning")
    if resume and file:
        raise UsageError("--resume starts from a run's own settings: give no --config with it")
    base    = _base(file, resume)
    given   = parse(Options, "finetune", arguments, Options(settings=Settings(**vars(base)))).settings
    config  = FinetuneConfig(**{f.name: getattr(given, f.name) for f in fields(FinetuneConfig)})
    console = steady_console()
    own_device(ranks, config.device)
    check_ranks(config, ranks)
    if resume:
        if not config.max_iters or config.epochs != base.epochs:
            raise ConfigError("epochs are counted when a fine-tuning begins: to go on give max_iters, of "
                              f"which {resume} has {base.max_iters}")
        config = config.resolved(rows=0)                   # of which only max_iters would depend on them
    path = Path(resume) if resume else None
    if ranks.rank == 0 and path:
        reopen(path, base, config, console)
    elif ranks.rank == 0:
        path = _create(config, console)
    path = ranks.broadcast(path)                           # from here on the folder is there for every rank
    return go_on(path, "finetune", resume is not None, ranks, console)


def _base(file: str | None, resume: str | None) -> FinetuneConfig:
    if not resume:
        return FinetuneConfig.parse(read_config_file(Path(file)), file) if file else FinetuneConfig()
    config = read_config(Path(resume))
    if not isinstance(config, FinetuneConfig):
        raise ConfigError(f"{resume} is no fine-tuning: go on with it by npgpt train --resume "
                          f"{shlex.quote(resume)}")
    return config


def _create(config: FinetuneConfig, console: Console) -> Path:
    if not config.model:
        raise UsageError("no model is named (npgpt finetune MODEL --data FILE.jsonl)")
    if not config.data:
        raise UsageError("say by --data what is to be learned (npgpt finetune MODEL --data FILE.jsonl)")
    start = load_any(config.model, config.checkpoint, "cpu", warn)
    if isinstance(start.model, SequenceClassifier):
        raise ConfigError(f"{config.model} is a classifier, and learns no further: begin from the model that "
                          "it was made of")
    path = new_run_path(config, f"{Path(config.model).absolute().name.removesuffix('.gguf')}-finetuned")
    create_run(path, config, lambda text: console.print(text, markup=False), start)
    return path
