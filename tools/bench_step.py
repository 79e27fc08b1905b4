"""Times one full training step (forward, backward, clip, AdamW) of npgpt beside a PyTorch GPT of its shape:

    python tools/bench_step.py                     # configurations A and B
    python tools/bench_step.py A C D64 --rounds 9

Each competitor is a process of its own that stays; they take turns, and all but the one whose turn it is are
stopped, so that a drift of the machine meets all alike and nobody disturbs another. npgpt runs twice, to show
the noise, and once with its formulas alone. Ratios are medians of the ratios within each round. Needs
PyTorch; run nothing else meanwhile. OPENBLAS_NUM_THREADS and OMP_NUM_THREADS set the threads.
"""

import argparse
import os
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
COMPETITORS = ("npgpt", "npgpt again", "npgpt formulas", "pytorch eager")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shapes", nargs="*", metavar="SHAPE", help="A, B, C, D or D64 (A and B)")
    parser.add_argument("--rounds", type=int, default=7, help="turns of each competitor (7)")
    parser.add_argument("--dropout", type=float, default=0.0, help="of all competitors (0)")
    parser.add_argument("--work", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work(options.work[0], SHAPES[options.work[1]], options.dropout)
        return
    if unknown := set(options.shapes) - set(SHAPES):
        parser.error(f"unknown configuration {unknown.pop()!r}: use A, B, C, D or D64")
    limit = statistics.median(sgemm() for _ in range(9))
    console = Console()
    console.print(f"sgemm of 2000 × 2000 × 2000: {limit / 1e9:.0f} GFLOP/s")
    for name in options.shapes or ["A", "B"]:
        console.print(compare(name, options.rounds, options.dropout, limit))


def compare(name: str, rounds: int, dropout: float, limit: float) -> Table:
    """The table of one configuration."""
    shape = SHAPES[name]
    workers = {competitor: start(competitor, name, dropout) for competitor in COMPETITORS}
    try:
        times: dict[str, list[float]] = {competitor: [] for competitor in COMPETITORS}
        for _ in range(rounds):
            for competitor, process in workers.items():
                process.send_signal(signal.SIGCONT)
                times[competitor].append(float(ask(process)))
                process.send_signal(signal.SIGSTOP)
        memory = {competitor: peak_memory(process.pid) for competitor, process in workers.items()}
    finally:
        for process in workers.values():
            process.kill()
    table = Table("", "tokens/s", "spread", "over PyTorch", "of sgemm", "peak MB", box=box.SIMPLE_HEAD,
                  title=f"{name}: {', '.join(f'{k}={v}' for k, v in shape._asdict().items())}")
    for competitor in COMPETITORS:
        seconds = statistics.median(times[competitor])
        ratio = statistics.median(theirs / ours for ours, theirs
                                  in zip(times[competitor], times["pytorch eager"], strict=True))
        tokens = shape.B * shape.T
        rates = [tokens / t for t in times[competitor]]
        table.add_row(competitor, f"{tokens / seconds:,.0f}", f"{min(rates):,.0f}–{max(rates):,.0f}",
                      f"{ratio:.2f}", f"{flops(shape) * tokens / seconds / limit:.0%}",
                      f"{memory[competitor]:.0f}")
    return table


def start(competitor: str, name: str, dropout: float) -> subprocess.Popen:
    """The competitor's process, warmed up and stopped."""
    command = [sys.executable, __file__, "--work", competitor, name, "--dropout", str(dropout)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    ask(process)
    process.send_signal(signal.SIGSTOP)
    return process


def ask(process: subprocess.Popen) -> str:
    """One turn: the median seconds of its steps."""
    assert process.stdin and process.stdout
    process.stdin.write("\n")
    process.stdin.flush()
    answer = process.stdout.readline()
    if not answer:
        raise SystemExit(f"a competitor ended early: {process.args}")
    return answer


def work(competitor: str, shape: Shape, dropout: float) -> None:
    """A competitor: for every line of standard input, steps for a second, and a line with their median."""
    rng = np.random.default_rng(0)
    tokens, targets = rng.integers(0, shape.V, (2, shape.B, shape.T))
    make = pytorch_step if competitor.startswith("pytorch") else npgpt_step
    if competitor == "npgpt formulas":
        from npgpt.tensor import twins
        twins.find_twin = lambda *_: None                                     # type: ignore[assignment]
    step = make(shape, dropout, tokens, targets)
    for _ in range(2):
        step()
    for _ in sys.stdin:
        seconds: list[float] = []
        while sum(seconds) < 1 or len(seconds) < 3:
            begun = time.perf_counter()
            step()
            seconds.append(time.perf_counter() - begun)
        print(statistics.median(seconds), flush=True)


def npgpt_step(shape: Shape, dropout: float, tokens: np.ndarray,
               targets: np.ndarray) -> Callable[[], None]:
    import npgpt
    from npgpt.tensor import Key
    V, _, T, L, H, C = shape
    model = npgpt.GPT(npgpt.GPTConfig(V, T, L, H, C, dropout=dropout))
    optimizer = npgpt.AdamW(model, lr=1e-4)

    def step() -> None:
        model.zero_grad()
        _, saved = model.loss(tokens, targets, Key(1, step=optimizer.updates) if dropout else None)
        model.backward(saved)
        npgpt.clip_grad_norm(model, 1.0)
        optimizer.step()

    return step


def pytorch_step(shape: Shape, dropout: float, tokens: np.ndarray,
                 targets: np.ndarray) -> Callable[[], None]:
    import torch
    from torch import nn
    from torch.nn import functional as F
    V, _, T, L, H, C = shape

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
    x, y = torch.tensor(tokens), torch.tensor(targets)
    groups = [{"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": 0.1},
              {"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-4, betas=(0.9, 0.95))

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        model(x, y).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return step


def flops(shape: Shape) -> float:
    """Of a training step, a token: 6 for each weight of a matrix product, and 12 L C T for attention."""
    return 6 * (12 * shape.L * shape.C**2 + shape.V * shape.C) + 12 * shape.L * shape.C * shape.T


def sgemm() -> float:
    """Operations a second of one large product in NumPy."""
    a = np.ones((2000, 2000), np.float32)
    begun = time.perf_counter()
    a @ a
    return 2 * 2000**3 / (time.perf_counter() - begun)


def peak_memory(pid: int) -> float:
    """The most memory that a process has held, in MB (Linux)."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1000
    return float("nan")


if __name__ == "__main__":
    os.environ.setdefault("PYTHONWARNINGS", "ignore")
    main()
