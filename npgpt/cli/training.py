"""What `npgpt train` and `npgpt finetune` have in common: a run goes on in its folder, and can be stopped."""

import contextlib
import math
import os
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path

from rich.console import Console

from npgpt.data.examples import Examples
from npgpt.errors import ConfigError
from npgpt.interop.beside_models import read_chat_template
from npgpt.terminal import Steady, warn
from npgpt.tokenizers import BPETokenizer
from npgpt.training.checkpoint import list_checkpoints, lock_run, step_of
from npgpt.training.communication import Ranks
from npgpt.training.loading import load_run
from npgpt.training.loop import sample_text, train
from npgpt.training.monitor import Monitor, show_sample
from npgpt.training.run_data import Config
from npgpt.training.runs import Run, discard_run, open_run, tokenizer_folder, write_config

MAY_CHANGE = {   # settings that a resumed run may be given anew
    "dropout", "gradient_checkpointing", "max_iters", "learning_rate", "warmup_iters", "lr_decay_iters",
    "min_lr", "weight_decay", "beta1", "beta2", "grad_clip", "l1", "l2", "eval_interval", "eval_iters",
    "early_stopping_patience", "log_interval", "sample_tokens", "device", "workers", "tf32"}

# Ctrl-C, `kill`, a terminal that is closed, the limit on processor time
STOPPING = signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGXCPU
AGAIN = 0.5      # seconds: `timeout -s INT` and mpiexec send a process one Ctrl-C twice, hardly apart


def steady_console() -> Console:
    """Of a training, which goes on where standard output fails: metrics.jsonl has its numbers."""
    return Console(file=Steady(sys.stdout), highlight=False, soft_wrap=True)  # type: ignore[arg-type]


def go_on(path: Path, command: str, resume: bool, ranks: Ranks, console: Console) -> int:
    """Trains the run in the folder, until it is done or a signal stops it; returns the exit status. A new run
    that fails before its first step is done leaves nothing: by other settings it would be another run.
    """
    opened = open_run(path)
    console.print(f"run: {path}", markup=False)
    with Monitor(path, opened.config.max_iters, console) as monitor, \
            _stop_on_signals(say=ranks.rank == 0) as stop:
        try:
            finished = train(opened, monitor, resume=resume, stop=stop, processes=ranks)
        except Exception:
            if ranks.rank == 0 and not (resume or monitor.done):
                discard_run(path, opened.config)
            raise
    if not finished:
        console.print(f"stopped and saved; go on with:  npgpt {command} --resume {shlex.quote(str(path))}",
                      markup=False)
        return 130
    if ranks.rank == 0:
        _show_result(path, opened, console)
    return 0


def reopen(path: Path, before: Config, config: Config, console: Console) -> None:
    """Writes the settings that may change into the run's folder as they are now, and tells where the learning
    rate jumps by that."""
    for name in (f.name for f in fields(before)):
        if getattr(config, name) != getattr(before, name) and name not in MAY_CHANGE:
            raise ConfigError(f"{name} cannot change when a run goes on: "
                              f"{path} has {getattr(before, name)!r}, not {getattr(config, name)!r}")
    step = max(map(step_of, list_checkpoints(path)), default=0)
    if before.max_iters != config.max_iters < step:
        raise ConfigError(f"max_iters must be at least {step}, the step at which {path} is, "
                          f"not {config.max_iters}")
    if config != before:
        with lock_run(path):                  # a trainer that is at work there keeps its settings
            write_config(path, config)
    old, new = before.rate(step), config.rate(step)
    if config.lr_decay_iters is None and not math.isclose(old, new, rel_tol=0.01):
        console.print(f"the learning rate falls until max_iters, and so goes on at {new:.2e} instead of "
                      f"{old:.2e}: --lr-decay-iters {before.max_iters} keeps it", markup=False)


def _show_result(path: Path, opened: Run, console: Console) -> None:
    """The last words: how good the best checkpoint is, what it writes, and the next command to type."""
    model, _, checkpoint = load_run(path, "best", opened.config.device, warn)
    loss   = checkpoint.state["best_val_loss"]
    sample = sample_text(opened, model, 256 if opened.config.sample_tokens else 0)
    what   = "text" if sample is None else f"token (perplexity {math.exp(loss):.1f})"
    console.print(f"\nbest validation loss {loss:.4f} nats a {what} at step "
                  f"{checkpoint.state['best_step']}", markup=False)
    if sample and sample[1]:
        after = "the first example" if isinstance(opened.val, Examples) else "the start"
        console.print(f"after {after} of the validation data it writes:\n")
        console.print(show_sample(*sample) + "\n")
    name = shlex.quote(str(path))
    if sample is None:
        following = f"evaluate {name} --task classification --data FILE.jsonl"
    elif read_chat_template(tokenizer_folder(path)):
        following = f"chat {name}"
    elif isinstance(opened.val, Examples):
        following = f"sample {name} --no-do-sample --prompt {shlex.quote(sample[0])}"
    else:
        known     = set(map(opened.tokenizer.token_bytes, range(opened.tokenizer.vocab_size)))
        prompt    = "The" if isinstance(opened.tokenizer, BPETokenizer) else \
                    "\\n" if b"\n" in known else sample[0][0]
        following = f"sample {name} --prompt {shlex.quote(prompt)}"
    console.print(f"next:  npgpt {following}", markup=False)


@contextlib.contextmanager
def _stop_on_signals(say: bool = True) -> Iterator[Callable[[], bool]]:
    """Gives a function that says whether one of STOPPING has come. A SIGINT after that interrupts at once.

    say: tell it on standard error.
    """
    came: dict[int, float] = {}                            # which, and when first
    own = os.getpid()                                      # `timeout` sends it to the forked ranks, too

    def note(number: int, frame: object) -> None:
        if came and number == signal.SIGINT and time.monotonic() - came.get(number, -math.inf) >= AGAIN:
            raise KeyboardInterrupt
        first = not came
        came.setdefault(number, time.monotonic())
        if first and say and os.getpid() == own:
            with contextlib.suppress(OSError):             # `| tee log` has gone by the same Ctrl-C
                os.write(2, b"\nstopping after this step and saving; "
                            b"Ctrl-C again quits at once, without saving\n")

    before = {number: signal.signal(number, note) for number in STOPPING
              if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN}      # as nohup has it
    try:
        yield lambda: bool(came)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
