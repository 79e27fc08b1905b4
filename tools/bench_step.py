"""Times one full training step (forward, backward, clip, AdamW) of npgpt beside a PyTorch GPT of its shape:

    python tools/bench_step.py                     # configurations A and B
    python tools/bench_step.py A C D64 --rounds 9
    python tools/bench_step.py B --formulas --dropout 0.2

Each competitor is a process of its own that stays; they take turns, and all but the one whose turn it is are
stopped, so that a drift of the machine meets all alike and nobody disturbs another. npgpt, on a thread for
each physical core, runs twice, to show the noise; `--formulas` adds it without twins. PyTorch runs eagerly
and compiled, and both again with MKL's check for an Intel processor answered yes (see `unbind_mkl`), for on
other processors MKL takes slower paths. Ratios are medians of the ratios within each round. "of sgemm" is the
share of what one large product of NumPy's BLAS reaches in the same rounds; "faults" are minor page faults a
step. Needs PyTorch; run nothing else meanwhile.
"""

import argparse
import ctypes
import math
import mmap
import os
import resource
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table


class Shape(NamedTuple):
    """V vocabulary, B batch, T context, L layers, H heads, C width."""

    V: int
    B: int
    T: int
    L: int
    H: int
    C: int


SHAPES = {
    "A": Shape(65, 12, 64, 4, 4, 128),
    "B": Shape(65, 16, 256, 6, 6, 384),
    "C": Shape(4096, 8, 256, 6, 8, 512),
    "D": Shape(50257, 4, 256, 12, 12, 768),         # GPT-2 124M
    "D64": Shape(50257, 4, 64, 12, 12, 768),
}
PYTORCH = ("torch eager", "torch compiled", "torch eager, unbound", "torch compiled, unbound")
TURN = 1.0          # seconds of steps, about, but at least 2 steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shapes", nargs="*", metavar="SHAPE", help="A, B, C, D or D64 (A and B)")
    parser.add_argument("--rounds", type=int, default=7, help="turns of each competitor (7)")
    parser.add_argument("--dropout", type=float, default=0.0, help="of all competitors (0)")
    parser.add_argument("--formulas", action="store_true", help="npgpt without its twins, too")
    parser.add_argument("--eager", action="store_true", help="of PyTorch's kinds the eager ones only")
    parser.add_argument("--work", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work(options.work[0], SHAPES[options.work[1]], options.dropout)
        return
    if unknown := set(options.shapes) - set(SHAPES):
        parser.error(f"unknown configuration {unknown.pop()!r}: use A, B, C, D or D64")
    names = ["npgpt", "npgpt again", *["npgpt formulas"] * options.formulas,
             *[name for name in PYTORCH if not options.eager or "eager" in name]]
    for name in options.shapes or ["A", "B"]:
        compare(name, names, options.rounds, options.dropout, Console(width=100))


def compare(name: str, names: list[str], rounds: int, dropout: float, console: Console) -> None:
    """Prints the table of one configuration."""
    shape = SHAPES[name]
    workers = {competitor: start(competitor, name, dropout) for competitor in names}
    times: dict[str, list[float]] = {competitor: [] for competitor in names}
    faults, limits = {}, []
    try:
        for _ in range(rounds):
            limits.append(sgemm())
            for competitor, process in workers.items():
                process.send_signal(signal.SIGCONT)
                seconds, faults[competitor] = map(float, ask(process).split())
                process.send_signal(signal.SIGSTOP)
                times[competitor].append(seconds)
        memory = {competitor: peak_memory(process.pid) for competitor, process in workers.items()}
    finally:
        for process in workers.values():
            process.kill()
    limit, tokens = statistics.median(limits), shape.B * shape.T
    title = ", ".join(f"{k}={v}" for k, v in shape._asdict().items())
    table = Table("", "tokens/s", "spread", "npgpt over it", "of sgemm", "faults", "peak MB",
                  box=box.SIMPLE_HEAD, title=f"{name}: {title}{f', dropout {dropout}' if dropout else ''}")
    for competitor in names:
        rate, rates = tokens / statistics.median(times[competitor]), [tokens / t for t in times[competitor]]
        table.add_row(competitor, f"{rate:,.0f}", f"{min(rates):,.0f}–{max(rates):,.0f}",
                      f"{ratio(times, competitor):.2f}", f"{flops(shape) * rate / limit:.0%}",
                      f"{faults[competitor]:,.0f}", f"{memory[competitor]:.0f}")
    console.print(table)
    kinds = {"PyTorch": [n for n in names if n in PYTORCH[:2]],
             "PyTorch with MKL unbound": [n for n in names if n in PYTORCH[2:]]}
    for kind, group in kinds.items():
        best = min(group, key=lambda competitor: statistics.median(times[competitor]))
        console.print(f"npgpt over the best of {kind} ({best}): {ratio(times, best):.2f}")
    console.print(f"sgemm of 2000 × 2000 × 2000: {limit / 1e9:.0f} GFLOP/s "
                  f"({min(limits) / 1e9:.0f}–{max(limits) / 1e9:.0f})\n")


def ratio(times: dict[str, list[float]], competitor: str) -> float:
    """npgpt's tokens/s over the competitor's, the median over rounds."""
    return statistics.median(theirs / ours for ours, theirs
                             in zip(times["npgpt"], times[competitor], strict=True))


def start(competitor: str, name: str, dropout: float) -> subprocess.Popen:
    """The competitor's process, warmed up and stopped."""
    command = [sys.executable, __file__, "--work", competitor, name, "--dropout", str(dropout)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    ask(process)
    process.send_signal(signal.SIGSTOP)
    return process


def ask(process: subprocess.Popen) -> str:
    """One turn: the median seconds of its steps, and page faults a step."""
    assert process.stdin and process.stdout
    process.stdin.write("\n")
    process.stdin.flush()
    answer = process.stdout.readline()
    if not answer:
        raise SystemExit(f"a competitor ended early: {process.args}")
    return answer


def work(competitor: str, shape: Shape, dropout: float) -> None:
    """A competitor: for every line of standard input some steps, and a line that tells of them."""
    if competitor in PYTORCH:
        import torch
        if "unbound" in competitor:
            unbind_mkl(torch)
        turns(pytorch_step(shape, dropout, "compiled" in competitor), lambda line: line)
        return
    from npgpt.tensor import twins
    from npgpt.training.communication import physical_cores, run_on_threads
    if competitor == "npgpt formulas":
        twins.find_twin = lambda *_: None                                     # type: ignore[assignment]
    trainer = npgpt_trainer(shape, dropout)
    run_on_threads(min(physical_cores(), shape.B),
                   lambda ranks: turns(trainer(ranks), ranks.broadcast, ranks.rank == 0))


def turns(step: Callable[[], None], agree: Callable, first: bool = True) -> None:
    """Steps as often as standard input has lines; `agree` tells all ranks what the first one has read."""
    for _ in range(3):
        begun = time.perf_counter()
        step()
    count = agree(max(2, math.ceil(TURN / (time.perf_counter() - begun))))
    while agree(sys.stdin.readline() if first else None):
        seconds, faults = [], resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(count):
            begun = time.perf_counter()
            step()
            seconds.append(time.perf_counter() - begun)
        faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults
        if first:
            print(statistics.median(seconds), faults / count, flush=True)


def npgpt_trainer(shape: Shape, dropout: float) -> Callable:
    """A function that gives each rank its step."""
    import npgpt
    from npgpt.training.config import TrainConfig
    from npgpt.training.trainer import Trainer
    V, B, T, L, H, C = shape
    config = TrainConfig(block_size=T, n_layer=L, n_head=H, n_embd=C, dropout=dropout, batch_size=B,
                         learning_rate=1e-4, max_iters=1_000_000, beta2=0.95)
    model  = npgpt.GPT(config.model(V))
    tokens = np.random.default_rng(0).integers(0, V, 4 * B * T)

    def on_rank(ranks) -> Callable[[], None]:
        trainer = Trainer(config, model.replica() if ranks.rank else model, tokens, tokens, ranks)
        return lambda: trainer.update(trainer.optimizer.updates) and None

    return on_rank


def pytorch_step(shape: Shape, dropout: float, compiled: bool) -> Callable[[], None]:
    import torch
    from torch import nn
    from torch.nn import functional as F
    V, B, T, L, H, C = shape

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.ln_1, self.ln_2 = nn.LayerNorm(C), nn.LayerNorm(C)
            self.c_attn, self.attn_proj = nn.Linear(C, 3 * C), nn.Linear(C, C)
            self.c_fc, self.mlp_proj = nn.Linear(C, 4 * C), nn.Linear(4 * C, C)

        def forward(self, x):
            B, T, _ = x.shape
            q, k, v = (part.view(B, T, H, C // H).transpose(1, 2)
                       for part in self.c_attn(self.ln_1(x)).split(C, 2))
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(B, T, C)
            x = x + F.dropout(self.attn_proj(y), dropout)
            h = F.gelu(self.c_fc(self.ln_2(x)), approximate="tanh")
            return x + F.dropout(self.mlp_proj(h), dropout)

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.wte, self.wpe, self.ln_f = nn.Embedding(V, C), nn.Embedding(T, C), nn.LayerNorm(C)
            self.h = nn.ModuleList(Block() for _ in range(L))

        def forward(self, tokens, targets):
            x = F.dropout(self.wte(tokens) + self.wpe(torch.arange(tokens.shape[1])), dropout)
            for block in self.h:
                x = block(x)
            logits = F.linear(self.ln_f(x), self.wte.weight)
            return F.cross_entropy(logits.view(-1, V), targets.view(-1))

    model = Model()
    run = torch.compile(model) if compiled else model
    x, y = torch.randint(0, V, (2, B, T))
    groups = [{"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": 0.1},
              {"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-4, betas=(0.9, 0.95))

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        run(x, y).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return step


def unbind_mkl(torch) -> None:
    """Makes MKL, inside PyTorch's library, find an Intel processor: the two functions that ask for one are
    overwritten in memory with `mov eax, 1; ret`. On x86-64 Linux.
    """
    library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
    protect = ctypes.CDLL(None).mprotect
    for name in ("mkl_serv_intel_cpu_true", "mkl_serv_intel_cpu"):
        place = ctypes.cast(getattr(library, name), ctypes.c_void_p).value
        page  = place - place % mmap.PAGESIZE
        if protect(ctypes.c_void_p(page), 2 * mmap.PAGESIZE, 7):              # read, write, execute
            raise SystemExit("cannot write to MKL's code")
        ctypes.memmove(place, b"\xb8\x01\x00\x00\x00\xc3", 6)


def flops(shape: Shape) -> float:
    """Of a training step, a token: 6 for each weight of a matrix product, and 12 L C T for attention."""
    return 6 * (12 * shape.L * shape.C**2 + shape.V * shape.C) + 12 * shape.L * shape.C * shape.T


def sgemm() -> float:
    """Operations a second of a large product in NumPy, on all cores: the best of five."""
    a, seconds = np.ones((2000, 2000), np.float32), []
    for _ in range(5):
        begun = time.perf_counter()
        a @ a
        seconds.append(time.perf_counter() - begun)
    return 2 * 2000**3 / min(seconds)


def peak_memory(pid: int) -> float:
    """The most memory that a process has held, in MB (Linux)."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1000
    return float("nan")


if __name__ == "__main__":
    os.environ.setdefault("PYTHONWARNINGS", "ignore")
    main()
