"""Times a training step (forward, backward, clip, AdamW) in which little is learned beside the full one:

    python tools/bench_finetune.py                 # a 12-layer model of 11 million parameters
    python tools/bench_finetune.py D64 --rounds 9  # GPT-2 124M, short sequences: bench_step.py's shapes

The competitors take turns (tools/competitors.py); the full step runs twice, to show the noise. Ratios are
medians of the ratios within each round. One thread each, and of that its processor time, so that another
program beside it changes little.
"""

import argparse
import os
import statistics
import sys
import time

from bench_step import SHAPES, Shape
from competitors import paired, take_turns
from rich import box
from rich.console import Console
from rich.table import Table

SHAPES = {"E": Shape(4096, 4, 128, 12, 4, 256), **SHAPES}
FULL   = "all parameters"
LORA   = {"LoRA of rank 8, c_attn": ("c_attn",), "LoRA of rank 8, all four": ("c_attn", "c_proj", "c_fc")}
NAMES  = (FULL, "all again", *LORA, "last 2 blocks", "last norm")
TURN   = 1.0        # seconds of steps, about, but at least 2 steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", nargs="?", default="E", choices=SHAPES, help="E")
    parser.add_argument("--rounds", type=int, default=7, help="turns of each competitor (7)")
    parser.add_argument("--work", choices=NAMES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work(options.work, SHAPES[options.shape])
        return
    turns = take_turns({name: [sys.executable, __file__, options.shape, "--work", name] for name in NAMES},
                       options.rounds)
    times = {name: [turn[0] for turn in turns[name]] for name in NAMES}
    table = Table("learned", "parameters", "ms a step", "spread", "of the full step", box=box.SIMPLE_HEAD,
                  title=", ".join(f"{k}={v}" for k, v in SHAPES[options.shape]._asdict().items()))
    for name in NAMES:
        seconds = times[name]
        table.add_row(name, f"{turns[name][0][1]:,.0f}", f"{1e3 * statistics.median(seconds):,.0f}",
                      f"{1e3 * min(seconds):,.0f}–{1e3 * max(seconds):,.0f}",
                      f"{paired(times[FULL], seconds):.2f}")
    Console(width=100).print(table)


def work(name: str, shape: Shape) -> None:
    """A competitor: for every line of standard input some steps, and a line with their median time."""
    import numpy as np

    from npgpt import GPT, AdamW, add_lora, clip_grad_norm
    model = GPT(shape.settings().model(shape.V))
    if name in LORA:
        add_lora(model, 8, 16, LORA[name])
    elif name.startswith("last"):
        kept = ("ln_f",) if name == "last norm" else tuple(f"h.{n}." for n in (shape.L - 2, shape.L - 1))
        model.freeze(lambda parameter: parameter.startswith(kept))
    optimizer = AdamW(model, 1e-4)
    tokens, targets = np.random.default_rng(0).integers(0, shape.V, (2, shape.B, shape.T))

    def step() -> float:
        begun = time.process_time()
        model.zero_grad()
        _, saved = model.loss(tokens, targets)
        model.backward(saved)
        clip_grad_norm(model, 1.0)
        optimizer.step()
        return time.process_time() - begun

    seconds = [step() for _ in range(2)]
    count   = max(2, round(TURN / seconds[-1]))
    for _ in sys.stdin:
        print(statistics.median(step() for _ in range(count)), model.flat.size, flush=True)


if __name__ == "__main__":
    for library in ("OPENBLAS", "OMP", "MKL"):
        os.environ.setdefault(f"{library}_NUM_THREADS", "1")
    main()
