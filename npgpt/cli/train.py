"""`npgpt train`: from a text to a GPT that writes."""

import contextlib
import math
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path

import tyro
from rich.console import Console

from npgpt.cli.arguments import parse, value_of
from npgpt.errors import ConfigError, UsageError
from npgpt.tensor.device import check_device
from npgpt.tokenizers import BPETokenizer
from npgpt.training.checkpoint import lock_run
from npgpt.training.communication import Ranks, processes
from npgpt.training.config import TrainConfig, read_settings
from npgpt.training.monitor import Monitor, show_sample
from npgpt.training.runs import Run, create_run, load_run, new_run_path, open_run, write_config
from npgpt.training.trainer import sample_text, train

MAY_CHANGE = {      # settings that a resumed run may be given anew
    "dropout", "gradient_checkpointing", "max_iters", "learning_rate", "warmup_iters", "lr_decay_iters",
    "min_lr", "weight_decay", "beta1", "beta2", "grad_clip", "l1", "l2", "eval_interval", "eval_iters",
    "log_interval", "sample_tokens", "device", "workers"}


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
    preset, file, resume = (value_of(name, arguments) for name in ("preset", "config", "resume"))
    if resume and (preset or file):
        raise UsageError("--resume starts from a run's own settings: give no --preset or --config with it")
    base    = open_run(Path(resume)).config if resume else read_settings(preset or "quick", file)
    config  = parse(Options, "train", arguments, Options(settings=base)).settings
    console = Console(highlight=False, soft_wrap=True)
    check_device(config.device)
    with stop_on_signals(say=ranks.rank == 0) as stop:
        path = Path(resume) if resume else None
        if ranks.rank == 0 and path:
            _reopen(path, base, config)
        elif ranks.rank == 0:
            path = new_run_path(config, Path(file).stem if file and not preset else preset or "quick")
            create_run(path, config, lambda text: console.print(text, markup=False))
        path = ranks.broadcast(path)                       # from here on the folder is there for every rank
        opened = open_run(path)
        console.print(f"run: {path}", markup=False)
        with Monitor(path, config.max_iters, console) as monitor:
            finished = train(opened, monitor, resume=resume is not None, stop=stop, processes=ranks)
    if not finished:
        console.print(f"stopped and saved; go on with:  npgpt train --resume {path}", markup=False)
        return 130
    if ranks.rank == 0:
        _show_result(path, opened, console)
    return 0


def _reopen(path: Path, before: TrainConfig, config: TrainConfig) -> None:
    """Writes the settings that may change into the run's folder as they are now."""
    for name in (f.name for f in fields(TrainConfig)):
        if getattr(config, name) != getattr(before, name) and name not in MAY_CHANGE:
            raise ConfigError(f"{name} cannot change when a run goes on: "
                              f"{path} has {getattr(before, name)!r}, not {getattr(config, name)!r}")
    if config != before:
        with lock_run(path):                  # a trainer that is at work there keeps its settings
            write_config(path, config)


def _show_result(path: Path, opened: Run, console: Console) -> None:
    """The last words: how good the best checkpoint is, what it writes, and the next command to type."""
    model, _, checkpoint = load_run(path, "best", opened.config.device, lambda text: None)
    loss = checkpoint.state["best_val_loss"]
    console.print(f"\nbest validation loss {loss:.4f} nats a token (perplexity {math.exp(loss):.1f}) "
                  f"at step {checkpoint.step}; after the start of the validation text it writes:\n",
                  markup=False)
    console.print(show_sample(*sample_text(opened, model, 256)) + "\n")
    prompt = "The" if isinstance(opened.tokenizer, BPETokenizer) else "\\n"
    console.print(f"next:  npgpt sample {path} --prompt '{prompt}'", markup=False)


@contextlib.contextmanager
def stop_on_signals(say: bool = True) -> Iterator[Callable[[], bool]]:
    """Gives a function that says whether SIGINT or SIGTERM has come. A second SIGINT interrupts at once.

    say: tell it on standard error.
    """
    came: list[int] = []

    def note(number: int, frame: object) -> None:
        if came and number == signal.SIGINT:
            raise KeyboardInterrupt
        if came:
            return
        came.append(number)
        if say:
            os.write(2, b"\nstopping after this step and saving; "
                        b"Ctrl-C again quits at once, without saving\n")

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(came)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
