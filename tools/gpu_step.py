"""A training step on a GPU: beside PyTorch's, in turns; and where its time goes."""

import functools
import itertools
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
from bench_step import Shape, pytorch_step
from competitors import paired, take_turns
from gpu_twins import WIDTH, name_of_gpu
from rich import box
from rich.console import Console
from rich.table import Table

from npgpt import GPT
from npgpt.cli.bench import training_step
from npgpt.tensor import to_device, twins
from npgpt.tensor.device import allow_tf32, bytes_held, check_device, empty, synchronize
from npgpt.training.communication import Ranks

SHAPES = {
    "gpt2": Shape(50304, 16, 1024, 12, 12, 768),            # 124M, its 50,257 tokens filled up as in nanoGPT
    "char": Shape(65, 64, 256, 6, 6, 384),                  # nanoGPT's shakespeare-char
    "tiny": Shape(65, 2, 16, 1, 2, 16),                     # for a test of this tool
}
OURS, PYTORCH = ("npgpt", "npgpt again"), ("torch compiled", "torch eager")
TURN  = {"cuda": 2.0, "cpu": 0.1}                           # seconds of steps, about, but at least 3 steps
LARGE = {"cuda": 8192, "cpu": 256}                          # rows of the product whose speed is the limit


class Competitor(NamedTuple):
    """step: queues one.  wait: until all is done.  product: queues a large one.  held: bytes of the GPU that
    the library has taken.
    """

    step: Callable[[], Any]
    wait: Callable[[], Any]
    product: Callable[[], Any]
    held: Callable[[], int]


def compare(shape: str, dtype: str, dropout: float, rounds: int) -> None:
    """Prints the table of tokens/s; npgpt is there twice, to show the noise."""
    check_device("cuda")
    import cupy
    tool  = str(Path(__file__).with_name("bench_gpu.py"))
    model = ["--shape", shape, "--dtype", dtype, "--dropout", str(dropout)]
    turns = take_turns({name: [sys.executable, tool, "compete", name, *model] for name in (*OURS, *PYTORCH)},
                       rounds, (OURS[1], *PYTORCH))
    table_of(turns, shape, f"{name_of_gpu(cupy)}, {dtype}", dropout)


def table_of(turns: dict[str, list[list[float]]], shape: str, title: str, dropout: float) -> None:
    V, B, T, L, H, C = SHAPES[shape]
    flops = SHAPES[shape].settings().model(V).flops_per_token
    table = Table("", "ms a step", "tokens/s", "spread", "npgpt over it", "product TFLOP/s", "of it",
                  "GB held", box=box.SIMPLE_HEAD,
                  title=f"{title}: V={V}, B={B}, T={T}, L={L}, H={H}, C={C}, dropout {dropout}")
    times = {name: [turn[0] for turn in turns[name]] for name in turns}
    for name in turns:
        rates = [B * T / seconds for seconds in times[name]]
        rate, limit = statistics.median(rates), statistics.median(turn[1] for turn in turns[name])
        table.add_row(name, f"{1e3 * B * T / rate:.1f}", f"{rate:,.0f}",
                      f"{min(rates):,.0f}–{max(rates):,.0f}", f"{paired(times['npgpt'], times[name]):.2f}",
                      f"{limit / 1e12:,.0f}", f"{flops * rate / limit:.0%}",
                      f"{turns[name][-1][2] / 1e9:.1f}")
    Console(width=WIDTH).print(table)


def compete(name: str, shape: str, dtype: str, dropout: float, device: str = "cuda") -> None:
    """For every line of standard input some steps, and a line that tells of them: seconds of one, the rate of
    a large product, bytes held. Steps are queued as fast as they can be, as in training.
    """
    make = torch_competitor if name.startswith("torch") else npgpt_competitor
    step, wait, product, held = make(name, SHAPES[shape], dtype, dropout, device)
    for _ in range(3):                                      # compiled, memory found
        first = _seconds(step, wait)
    count = max(3, round(TURN[device] / first))
    taken = held()                                          # before there is a large matrix
    while sys.stdin.readline():
        seconds = _seconds(lambda: [step() for _ in range(count)], wait) / count
        limit   = 2 * LARGE[device]**3 / min(_seconds(product, wait) for _ in range(5))
        print(seconds, limit, taken, flush=True)


def host(shape: str, dtype: str, dropout: float, steps: int = 40) -> None:
    """Prints how long a step takes where launching is all that takes any time."""
    step, wait, *_ = npgpt_competitor("npgpt", SHAPES[shape], dtype, dropout, "cuda")
    for _ in range(3):
        step()
    times = sorted(1e3 * _seconds(step, wait) for _ in range(steps))
    print(f"{shape}, {dtype}, dropout {dropout}: a step keeps the host for {statistics.median(times):.1f} ms "
          f"({times[0]:.1f}–{times[-1]:.1f})")


def npgpt_competitor(name: str, shape: Shape, dtype: str, dropout: float, device: str) -> Competitor:
    tf32   = dtype == "tf32"
    kind   = "float32" if tf32 else dtype
    config = shape.settings(dropout, device=device, dtype=kind, tf32=tf32)
    model  = GPT(config.model(shape.V), 0, device, kind)
    if tf32:
        allow_tf32()

    @functools.cache
    def matrix() -> Any:
        size   = LARGE[device]
        result = empty(size * size, kind, device).reshape(size, size)
        result[...] = to_device(np.random.default_rng(0).standard_normal((size, size), np.float32), device)
        return result

    return Competitor(training_step(config, model, Ranks()), lambda: synchronize(device),
                      lambda: matrix() @ matrix(), lambda: bytes_held(device) if device != "cpu" else 0)


def torch_competitor(name: str, shape: Shape, dtype: str, dropout: float, device: str) -> Competitor:
    import torch
    on_gpu = device != "cpu"
    kind   = getattr(torch, dtype if dtype != "tf32" else "float32")

    @functools.cache
    def matrix() -> Any:
        return torch.randn(LARGE[device], LARGE[device], device=device).to(kind)

    return Competitor(pytorch_step(shape, dropout, "compiled" in name, device, dtype),
                      torch.cuda.synchronize if on_gpu else lambda: None,
                      lambda: matrix() @ matrix(),
                      torch.cuda.max_memory_reserved if on_gpu else lambda: 0)


def profile(shape: str, dtype: str, dropout: float, steps: int = 5) -> None:
    """Prints where a step's time goes on the GPU: an op's lasts until the next one begins."""
    check_device("cuda")
    import cupy
    step, wait, *_ = npgpt_competitor("npgpt", SHAPES[shape], dtype, dropout, "cuda")
    for _ in range(3):
        step()
    marks: list[tuple[str, Any]] = []

    def mark(name: str) -> None:
        marks.append((name, cupy.cuda.Event()))
        marks[-1][1].record()

    def find_twin(formula: Callable, kind: str) -> Callable:
        def marked(*args: Any, **kwargs: Any) -> Any:
            mark(formula.__name__)
            return twin(*args, **kwargs) if twin else NotImplemented
        twin = search(formula, kind)
        return marked

    search = twins.find_twin
    with mock.patch.object(twins, "find_twin", find_twin):
        for _ in range(steps):
            mark("before the first op")
            step()
    mark("end")
    wait()
    spent: dict[str, list[float]] = defaultdict(list)
    for (name, begun), (_, ended) in itertools.pairwise(marks):
        spent[name].append(cupy.cuda.get_elapsed_time(begun, ended) / steps)
    whole = sum(map(sum, spent.values()))
    table = Table("op", "calls", "ms", "share", box=box.SIMPLE_HEAD,
                  title=f"{name_of_gpu(cupy)}, {dtype}, a step of {shape}")
    for name, each in sorted(spent.items(), key=lambda item: -sum(item[1])):
        table.add_row(name, f"{len(each) / steps:.0f}", f"{sum(each):.2f}", f"{sum(each) / whole:.1%}")
    table.add_row("the step", "", f"{whole:.2f}", "100%")
    Console(width=WIDTH).print(table)


def _seconds(work: Callable, wait: Callable) -> float:
    begun = time.perf_counter()
    work()
    wait()
    return time.perf_counter() - begun
