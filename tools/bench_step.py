"""Times one full training step (forward, backward, clip, AdamW) of npgpt beside a PyTorch GPT of its shape:

    python tools/bench_step.py                     # configurations A and B
    python tools/bench_step.py A C D64 --rounds 9
    python tools/bench_step.py B --formulas --dropout 0.2

The competitors take turns (tools/competitors.py). npgpt, in a process for each physical core, runs twice, to
show the noise; `--formulas` adds it without twins, `--threads` with threads in place of processes. PyTorch
runs eagerly and compiled, and both again with MKL's check for an Intel processor answered yes (see
`unbind_mkl`), for on other processors MKL takes slower paths. Ratios are medians of the ratios within each
round. "sgemm" is what each competitor's own BLAS reaches in one large product in the same rounds, in GFLOP/s,
and "of it" the share of that which its step comes to; "faults" are minor page faults a step. Needs PyTorch;
run nothing else meanwhile.
"""

import argparse
import ctypes
import math
import mmap
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from competitors import paired, take_turns
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

    def settings(self, dropout: float = 0.0, **others):
        """The TrainConfig. (Imported late: npgpt changes how a process keeps memory, which would be no
        PyTorch as one knows it.)  others: more of its settings.
        """
        from npgpt.training.config import TrainConfig
        return TrainConfig(vocab_size=self.V, batch_size=self.B, block_size=self.T, n_layer=self.L,
                           n_head=self.H, n_embd=self.C, dropout=dropout, learning_rate=1e-4,
                           max_iters=1_000_000, beta2=0.95, **others)


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
    parser.add_argument("--threads", action="store_true", help="npgpt with threads for its workers, too")
    parser.add_argument("--eager", action="store_true", help="of PyTorch's kinds the eager ones only")
    parser.add_argument("--work", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work(options.work[0], SHAPES[options.work[1]], options.dropout)
        return
    if unknown := set(options.shapes) - set(SHAPES):
        parser.error(f"unknown configuration {unknown.pop()!r}: use A, B, C, D or D64")
    names = ["npgpt", "npgpt again", *["npgpt formulas"] * options.formulas,
             *["npgpt threads"] * options.threads,
             *[name for name in PYTORCH if not options.eager or "eager" in name]]
    for name in options.shapes or ["A", "B"]:
        compare(name, names, options.rounds, options.dropout, Console(width=100))


def compare(name: str, names: list[str], rounds: int, dropout: float, console: Console) -> None:
    """Prints the table of one configuration."""
    shape = SHAPES[name]
    turns = take_turns({competitor: [sys.executable, __file__, "--work", competitor, name,
                                     "--dropout", str(dropout)] for competitor in names}, rounds, PYTORCH)
    names = list(turns)
    columns = {competitor: list(zip(*turns[competitor], strict=True)) for competitor in names}
    times, faults, memory, limits = ({competitor: columns[competitor][n] for competitor in names}
                                     for n in range(4))
    tokens = shape.B * shape.T
    flops  = shape.settings().model(shape.V).flops_per_token
    title = ", ".join(f"{k}={v}" for k, v in shape._asdict().items())
    table = Table("", "tokens/s", "spread", "npgpt over it", "sgemm", "of it", "faults", "peak MB",
                  box=box.SIMPLE_HEAD, title=f"{name}: {title}{f', dropout {dropout}' if dropout else ''}")
    for competitor in names:
        rate, rates = tokens / statistics.median(times[competitor]), [tokens / t for t in times[competitor]]
        limit = statistics.median(limits[competitor])
        table.add_row(competitor, f"{rate:,.0f}", f"{min(rates):,.0f}–{max(rates):,.0f}",
                      f"{paired(times['npgpt'], times[competitor]):.2f}", f"{limit / 1e9:.0f}",
                      f"{flops * rate / limit:.0%}",
                      f"{faults[competitor][-1]:,.0f}", f"{memory[competitor][-1]:.0f}")
    console.print(table)
    kinds = {"PyTorch": [n for n in names if n in PYTORCH[:2]],
             "PyTorch with MKL unbound": [n for n in names if n in PYTORCH[2:]]}
    for kind, group in kinds.items():
        if not group:
            continue
        best = min(group, key=lambda competitor: statistics.median(times[competitor]))
        console.print(f"npgpt over the best of {kind} ({best}): {paired(times['npgpt'], times[best]):.2f}")
    console.print()


def work(competitor: str, shape: Shape, dropout: float) -> None:
    """A competitor: for every line of standard input some steps, and a line that tells of them."""
    if competitor in PYTORCH:
        import torch
        if "unbound" in competitor:
            unbind_mkl(torch)
        turns(pytorch_step(shape, dropout, "compiled" in competitor), lambda: torch.ones(2000, 2000))
        return
    from npgpt import GPT
    from npgpt.cli.bench import training_step
    from npgpt.tensor import twins
    from npgpt.training.communication import run_on_threads
    from npgpt.training.forks import run_on_processes
    from npgpt.training.loop import number_of_workers
    if competitor == "npgpt formulas":
        twins.find_twin = lambda *_: None                                     # type: ignore[assignment]
    config = shape.settings(dropout)
    model  = GPT(config.model(shape.V))
    models = model.replicas(number_of_workers(config))
    run    = run_on_threads if competitor == "npgpt threads" else run_on_processes
    run(len(models), lambda ranks: turns(training_step(config, models[ranks.rank], ranks),
                                         lambda: np.ones((2000, 2000), np.float32), ranks))


def turns(step: Callable[[], None], matrix: Callable, ranks=None) -> None:
    """Steps as often as standard input has lines; the first of several ranks reads them and tells the others.

    matrix: makes one, of the library whose product is timed.
    """
    first, size = (ranks.rank == 0, ranks.size) if ranks else (True, 1)
    agree = ranks.broadcast if ranks else lambda line: line
    for _ in range(3):
        begun = time.perf_counter()
        step()
    count  = agree(max(2, math.ceil(TURN / (time.perf_counter() - begun))))
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000        # before there is a large matrix
    if ranks:
        from npgpt.cli.bench import memory_held
        memory, = ranks.all_reduce(memory_held() / 1e6)
    while agree(sys.stdin.readline() if first else None):
        seconds, faults = [], resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(count):
            begun = time.perf_counter()
            step()
            seconds.append(time.perf_counter() - begun)
        faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults
        limit  = size * sgemm(matrix())
        if first:
            print(statistics.median(seconds), faults / count, memory, limit, flush=True)


def pytorch_step(shape: Shape, dropout: float, compiled: bool, device: str = "cpu",
                 dtype: str = "float32") -> Callable[[], None]:
    """dtype: as in --dtype of npgpt train, or tf32; one of 16 bits is autocast's, as nanoGPT trains."""
    import torch
    from torch import nn
    from torch.nn import functional as F
    V, B, T, L, H, C = shape
    if dtype == "tf32":
        torch.set_float32_matmul_precision("high")

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
            x = F.dropout(self.wte(tokens) + self.wpe(places), dropout)
            for block in self.h:
                x = block(x)
            logits = F.linear(self.ln_f(x), self.wte.weight)
            return F.cross_entropy(logits.view(-1, V), targets.view(-1))

    model  = Model().to(device)
    run    = torch.compile(model) if compiled else model
    narrow = {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(dtype)
    places = torch.arange(T, device=device)
    x, y   = torch.randint(0, V, (2, B, T), device=device)
    scaler = torch.amp.GradScaler(device, enabled=narrow is torch.float16)
    groups = [{"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": 0.1},
              {"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-4, betas=(0.9, 0.95), fused=device != "cpu" or None)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device, narrow, enabled=narrow is not None):
            loss = run(x, y)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()

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


def sgemm(matrix) -> float:
    """Operations a second of its product with itself, on the caller's threads: the best of five."""
    seconds = []
    for _ in range(5):
        begun = time.perf_counter()
        matrix @ matrix
        seconds.append(time.perf_counter() - begun)
    return 2 * len(matrix)**3 / min(seconds)


if __name__ == "__main__":
    os.environ.setdefault("PYTHONWARNINGS", "ignore")
    main()
