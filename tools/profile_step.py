"""Where the time of npgpt's training step goes, on one core, for a configuration of tools/bench_step.py:

    python tools/profile_step.py                   # configuration A
    python tools/profile_step.py B --steps 20

The step is one core's share of the batch: its sequences alone, on one BLAS thread, and AdamW of all weights,
which cores would divide among them. Each op's time includes the Python in it, but no op that it calls;
"between ops" is all that layers, model and trainer add. The last lines give two bounds.
Products: the step's matrix products at the rate of one large product, below which no step can come. Python:
the same step on one token of a model as narrow as can be, where nothing is left to compute, so that its time
is Python and calls into NumPy. Run nothing else meanwhile.
"""

import argparse
import functools
import os
import statistics
import time
from collections import defaultdict
from collections.abc import Callable

os.environ["OPENBLAS_NUM_THREADS"] = "1"

import numpy as np
from bench_step import SHAPES, Shape, sgemm
from rich import box
from rich.console import Console
from rich.table import Table

from npgpt import GPT
from npgpt.cli.bench import training_step
from npgpt.tensor import twins
from npgpt.training.communication import Ranks
from npgpt.workers import physical_cores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", nargs="?", default="A", choices=SHAPES, help="the configuration (A)")
    parser.add_argument("--steps", type=int, default=40, help="how many are timed (40)")
    parser.add_argument("--dropout", type=float, default=0.0, help="(0)")
    options = parser.parse_args()
    shape = SHAPES[options.shape]
    share = shape._replace(B=-(-shape.B // physical_cores()))
    empty = step_time(Shape(V=shape.V, B=1, T=1, L=shape.L, H=1, C=1), options.dropout, options.steps)
    limit = sgemm(np.ones((2000, 2000), np.float32))

    clock = Clock()
    twins.find_twin = clock.find_twin                                         # type: ignore[assignment]
    step = one_rank(share, options.dropout)
    step()
    clock.seconds.clear()
    clock.calls.clear()
    begun = time.perf_counter()
    for _ in range(options.steps):
        step()
    whole = (time.perf_counter() - begun) / options.steps

    title = ", ".join(f"{k}={v}" for k, v in share._asdict().items())
    table = Table("op", "calls", "ms", "share", box=box.SIMPLE_HEAD,
                  title=f"one core's part of {options.shape}: {title}")
    in_ops = 0.0
    for name, seconds in sorted(clock.seconds.items(), key=lambda item: -item[1]):
        in_ops += seconds / options.steps
        table.add_row(name, f"{clock.calls[name] // options.steps}", f"{1e3 * seconds / options.steps:.2f}",
                      f"{seconds / options.steps / whole:.1%}")
    table.add_row("between ops", "", f"{1e3 * (whole - in_ops):.2f}", f"{(whole - in_ops) / whole:.1%}")
    table.add_row("the step", "", f"{1e3 * whole:.2f}", "100%")
    console = Console(width=100)
    console.print(table)
    products = share.B * share.T * share.settings().model(share.V).flops_per_token / limit
    console.print(f"its products at {limit / 1e9:.0f} GFLOP/s: "
                  f"{1e3 * products:.1f} ms, {products / whole:.0%}")
    console.print(f"Python and calls, a step of one token: {1e3 * empty:.2f} ms, {empty / whole:.1%}")


def one_rank(shape: Shape, dropout: float) -> Callable[[], None]:
    """Its step."""
    config = shape.settings(dropout)
    return training_step(config, GPT(config.model(shape.V)), Ranks())


def step_time(shape: Shape, dropout: float, steps: int) -> float:
    """Median seconds of a step on one rank."""
    step, seconds = one_rank(shape, dropout), []
    for _ in range(steps + 2):
        begun = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - begun)
    return statistics.median(seconds[2:])


class Clock:
    """Stands in for the search for twins: hands out what it finds, or the formula, with a clock around it."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.calls: dict[str, int] = defaultdict(int)
        self.inner = 0.0                     # seconds of the ops that the present one has called
        self.find_twin = functools.cache(self._timed)
        self._search = twins.find_twin

    def _timed(self, formula, kind: str):
        twin, name = self._search(formula, kind), formula.__name__

        def op(*args, **kwargs):
            outer, self.inner = self.inner, 0.0
            begun  = time.perf_counter()
            result = twin(*args, **kwargs) if twin else NotImplemented
            if result is NotImplemented:
                result = formula(*args, **kwargs)
            whole = time.perf_counter() - begun
            self.seconds[name] += whole - self.inner
            self.calls[name] += 1
            self.inner = outer + whole
            return result

        return op


if __name__ == "__main__":
    main()
