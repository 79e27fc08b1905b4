"""`npgpt bench`: how fast a model trains and generates on this machine."""

import resource
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tyro
from rich import box
from rich.console import Console
from rich.table import Table

from npgpt.cli.arguments import parse, value_of
from npgpt.generation.decoding import stream
from npgpt.models import GPT
from npgpt.ranges import FINITE, check_range
from npgpt.tensor.device import allow_tf32, bytes_held, check_device, to_device
from npgpt.training.communication import Ranks
from npgpt.training.config import TrainConfig, read_settings
from npgpt.training.forks import run_on_processes
from npgpt.training.loop import number_of_workers
from npgpt.training.trainer import Trainer

CHARACTERS = 65         # vocabulary of a character preset, which comes from the text: as in tinyshakespeare
LARGE = {"cpu": 2000, "cuda": 8192}     # rows of a product whose speed is the limit


@dataclass(frozen=True)
class Options:
    """Time training and generation of a model on this machine, with random tokens. The model is described as
    for npgpt train: a preset, then --config, then the options below. One step is one batch, without
    accumulation."""

    preset: str = "quick"
    """Where settings start from: quick, shakespeare-char-cpu, shakespeare-char, gpt2-124m."""
    config: Path | None = None
    """A TOML file of settings that go over the preset's."""
    seconds: float = 10.0
    """About how long to time each of the two; at least three steps are."""
    settings: tyro.conf.OmitArgPrefixes[TrainConfig] = field(default_factory=TrainConfig)


def run(arguments: list[str]) -> int:
    preset  = value_of("preset", arguments, "a name") or "quick"
    file    = value_of("config", arguments, "a file")
    options = parse(Options, "bench", arguments, Options(settings=read_settings(preset, file)))
    check_range("seconds", options.seconds, above=0, most=FINITE)
    config  = replace(options.settings, gradient_accumulation_steps=1)
    check_device(config.device)
    if config.tf32:
        allow_tf32()
    shape   = config.model(CHARACTERS if config.tokenizer == "character" else config.vocab_size)
    model   = GPT(shape, config.seed, config.device, config.dtype)
    workers = number_of_workers(config)
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"{shape.n_layer} layers of {shape.n_head} heads, width {shape.n_embd}, context "
                  f"{shape.block_size}, {shape.vocab_size:,} tokens: {model.flat.size:,} parameters in "
                  f"{config.dtype}\na step: {config.batch_size} × {config.block_size} tokens, "
                  f"{workers} worker{'s' * (workers > 1)}, device {config.device}", markup=False)

    models  = model.replicas(workers)
    trained = run_on_processes(workers, lambda ranks: _time_training(config, models, options.seconds, ranks))
    tokens  = _time_generation(model, options.seconds)

    table  = Table("", "tokens/s", "spread", "milliseconds", "GFLOP/s", box=box.SIMPLE_HEAD)
    number = config.batch_size * config.block_size
    rate   = number / statistics.median(trained.seconds)
    table.add_row("training", f"{rate:,.0f}", _spread(trained.seconds, number),
                  f"{1e3 * number / rate:,.1f} a step",
                  f"{rate * shape.flops_per_token / 1e9:,.0f}")
    rate   = 1 / statistics.median(tokens)
    table.add_row("generation", f"{rate:,.0f}", _spread(tokens), f"{1e3 / rate:,.2f} a token", "")
    console.print(table)
    held = "training held at most" if config.device == "cpu" else "of the GPU's memory, training held"
    console.print(f"a large matrix product reaches {trained.product_rate / 1e9:,.0f} GFLOP/s; "
                  f"{held} {trained.memory / 1e6:,.0f} MB", markup=False)
    return 0


def training_step(config: TrainConfig, model: GPT, ranks: Ranks) -> Callable[[], None]:
    """What this rank does, with its own model, in one step of training on random tokens."""
    tokens  = np.random.default_rng(0).integers(0, model.config.vocab_size,
                                                4 * config.batch_size * config.block_size + 1)
    trainer = Trainer(config, model, tokens, tokens, ranks)

    def step() -> None:
        trainer.update(trainer.optimizer.updates)

    return step


def _product_rate(matrix: Any) -> float:
    """Operations a second of a square matrix times itself, on the caller's threads: the best of five."""
    seconds = []
    for _ in range(5):
        begun = time.perf_counter()
        float((matrix @ matrix)[0, 0])                     # a GPU's product is awaited by reading of it
        seconds.append(time.perf_counter() - begun)
    return 2 * len(matrix)**3 / min(seconds)


class _Training(NamedTuple):
    """Seconds of each step; the bytes that all ranks hold; what large products on all ranks reach."""

    seconds: list[float]
    memory: float
    product_rate: float


def _time_training(config: TrainConfig, models: list[GPT], seconds: float, ranks: Ranks) -> _Training:
    step = training_step(config, models[ranks.rank], ranks)
    step()                                                 # memory is found, kernels are compiled
    begun = time.perf_counter()
    step()
    count = ranks.broadcast(max(3, round(seconds / (time.perf_counter() - begun))))
    times  = [_seconds(step) for _ in range(count)]
    on_cpu  = config.device == "cpu"
    memory, = ranks.all_reduce(memory_held() if on_cpu else bytes_held(config.device))
    rows    = LARGE["cpu" if on_cpu else "cuda"]
    matrix  = to_device(np.ones((rows, rows), config.dtype), config.device)
    return _Training(times, memory, ranks.size * _product_rate(matrix))


def memory_held() -> float:
    """Bytes that this process holds, of shared ones its share; where the system does not tell, the most that
    it has held. (What a step has used is kept for the next: npgpt/tensor/memory.py.)
    """
    try:
        told = Path("/proc/self/smaps_rollup").read_text(encoding="utf-8")
        return 1024.0 * int(told.split("\nPss:")[1].split()[0])
    except (OSError, IndexError):
        unit = 1.0 if sys.platform == "darwin" else 1024.0
        return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _time_generation(model: GPT, seconds: float) -> list[float]:
    """Seconds of each token of one sequence, which grows from one token to the model's context, again and
    again."""
    times: list[float] = []
    while sum(times) < seconds:
        tokens = stream(model, np.zeros((1, 1), int), max_new_tokens=model.config.block_size, do_sample=True)
        for _ in range(model.config.block_size):
            times.append(_seconds(lambda tokens=tokens: next(tokens)))
            if sum(times) >= seconds:
                break
    return times


def _seconds(work: Callable) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def _spread(times: list[float], number: int = 1) -> str:
    """The rates of the middle nine tenths."""
    times = sorted(times)
    cut   = len(times) // 20
    return f"{number / times[-1 - cut]:,.0f}–{number / times[cut]:,.0f}"
