"""`npgpt train`: from a text to a GPT that writes."""

import shlex
from dataclasses import dataclass, field
from pathlib import Path

import tyro

from npgpt.cli.arguments import parse, value_of
from npgpt.cli.training import go_on, reopen, steady_console
from npgpt.errors import ConfigError, UsageError
from npgpt.training.communication import Ranks, processes
from npgpt.training.config import TrainConfig, read_settings
from npgpt.training.loop import check_ranks
from npgpt.training.nccl import own_device
from npgpt.training.runs import create_run, new_run_path, read_config


@dataclass(frozen=True)
class Options:
    """Train a GPT on a text. Settings come from a preset, then --config, then the options below. The run's
    folder holds everything: settings, tokenizer, tokens, metrics.jsonl and checkpoints. Ctrl-C saves and
    stops; --resume goes on bit for bit."""

    preset: str = "quick"
    """Where settings start from: quick, shakespeare-char-cpu, shakespeare-char, gpt2-124m."""
    config: Path | None = None
    """A TOML file of settings that go over the preset's."""
    resume: Path | None = None
    """The folder of a run to go on with, from its latest checkpoint; its own settings are the start."""
    settings: tyro.conf.OmitArgPrefixes[TrainConfig] = field(default_factory=TrainConfig)


def run(arguments: list[str]) -> int:
    with processes() as ranks:
        return _run(arguments, ranks)


def _run(arguments: list[str], ranks: Ranks) -> int:
    preset = value_of("preset", arguments, "a name")
    file   = value_of("config", arguments, "a file")
    resume = value_of("resume", arguments, "the folder of a run")
    if resume and (preset or file):
        raise UsageError("--resume starts from a run's own settings: give no --preset or --config with it")
    base    = read_config(Path(resume)) if resume else read_settings(preset or "quick", file)
    if not isinstance(base, TrainConfig):
        raise ConfigError(f"{resume} is a fine-tuning: go on with it by npgpt finetune --resume "
                          f"{shlex.quote(str(resume))}")
    config  = parse(Options, "train", arguments, Options(settings=base)).settings
    console = steady_console()
    own_device(ranks, config.device)
    check_ranks(config, ranks)
    path = Path(resume) if resume else None
    if ranks.rank == 0 and path:
        reopen(path, base, config, console)
    elif ranks.rank == 0:
        path = new_run_path(config, Path(file).stem if file and not preset else preset or "quick")
        create_run(path, config, lambda text: console.print(text, markup=False))
    path = ranks.broadcast(path)                           # from here on the folder is there for every rank
    return go_on(path, "train", resume is not None, ranks, console)
