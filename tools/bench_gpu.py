"""Times every CUDA twin beside its formula on a GPU; or counts, without one, what both launch and move.

    python tools/bench_gpu.py                      # all; needs a GPU and CuPy
    python tools/bench_gpu.py layernorm adamw      # those whose names contain one of these
    python tools/bench_gpu.py --count              # kernels and bytes, on the stand-in for CuPy of the tests
    python tools/bench_gpu.py --count step         # of a training step of GPT-2 124M on 1024 tokens

Shapes are those of GPT-2 124M with 16 sequences of 1024 tokens (--count: 1 sequence), in float32. A twin's
bytes are the floor: each of its arrays crosses the memory bus once, twice if it is changed in place. (Of an
embedding the whole table is counted, and only the rows used are touched.) Formula and twin take turns; times
are medians, between events on the GPU. "of copy" is the share of a copy's bandwidth in the same run.
"""

import argparse
import statistics
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from npgpt import GPT, GPTConfig, ops
from npgpt.kernels.cuda import launch
from npgpt.tensor import Key, twins
from npgpt.training.optimizer import AdamW, clip_grad_norm

ROUNDS = 20


class Call(NamedTuple):
    op: Callable
    arguments: tuple
    keywords: Mapping[str, Any] = MappingProxyType({})
    again: int = 0                     # bytes of what a twin changes in place


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ops", nargs="*", metavar="OP", help="part of a name (all)")
    parser.add_argument("--count", action="store_true", help="count instead of timing; needs no GPU")
    options = parser.parse_args()
    if not options.count:
        time_twins(options.ops)
    elif options.ops == ["step"]:
        count_step()
    else:
        count_twins(options.ops)


def calls(cupy: Any, B: int) -> dict[str, Call]:
    """name → a call at the size of GPT-2 124M."""
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> Any:
        return cupy.asarray(rng.standard_normal(shape, dtype=np.float32))

    T, H, D, C, V, N = 1024, 12, 64, 768, 50257, 124_000_000
    x, gain, wide, dy  = normal(B, T, C), normal(C), normal(B, T, 4 * C), normal(B, T, C)
    tokens, key, dloss = cupy.asarray(rng.integers(0, V, (B, T))), Key(1), cupy.asarray(np.float32(1))
    heads    = normal(B, T, 3, H, D)[:, :, 0].transpose(0, 2, 1, 3)
    rotation = (normal(T, D // 2), normal(T, D // 2))
    logits   = normal(512, V)
    targets  = tokens.reshape(-1)[:512]
    w, g, m, v = (cupy.zeros(N, "float32") for _ in range(4))
    saved = {name: op(*arguments)[1] for name, op, arguments in (
        ("layernorm", ops.layernorm_forward, (x, gain, gain)), ("rmsnorm", ops.rmsnorm_forward, (x, gain)),
        ("swiglu", ops.swiglu_forward, (wide,)), ("attention", ops.attention_forward, (heads, heads, heads)),
        ("cross_entropy", ops.cross_entropy_forward, (logits, targets)))}
    return {
        "attention_forward": Call(ops.attention_forward, (heads, heads, heads)),
        "attention_backward": Call(ops.attention_backward, (normal(B, H, T, D), saved["attention"])),
        "layernorm_forward": Call(ops.layernorm_forward, (x, gain, gain)),
        "layernorm_backward": Call(ops.layernorm_backward, (dy, saved["layernorm"])),
        "rmsnorm_forward": Call(ops.rmsnorm_forward, (x, gain)),
        "rmsnorm_backward": Call(ops.rmsnorm_backward, (dy, saved["rmsnorm"])),
        "gelu_tanh_forward": Call(ops.gelu_tanh_forward, (wide,)),
        "swiglu_forward": Call(ops.swiglu_forward, (wide,)),
        "swiglu_backward": Call(ops.swiglu_backward, (wide[..., :2 * C].copy(), saved["swiglu"])),
        "rotary_forward": Call(ops.rotary_forward, (heads, rotation)),
        "dropout_forward": Call(ops.dropout_forward, (x, 0.1, key)),
        "cross_entropy_forward": Call(ops.cross_entropy_forward, (logits, targets)),
        "cross_entropy_backward": Call(ops.cross_entropy_backward, (dloss, saved["cross_entropy"])),
        "embedding_backward": Call(ops.embedding_backward, (dy, (tokens, (V, C)))),
        "adamw": Call(ops.adamw, (w, g, m, v, 3, 1e-3), {"out": (w, m, v)}, again=3 * 4 * N),
    }


# With a GPU

def time_twins(names: list[str]) -> None:
    try:
        import cupy
        cupy.cuda.runtime.getDeviceCount()
    except Exception as error:                     # no CuPy, no driver, no GPU
        raise SystemExit(f"needs CuPy and an NVIDIA GPU ({error}); --count needs neither") from error
    source = cupy.zeros(1 << 28, "float32")
    target = cupy.empty_like(source)
    copy   = statistics.median(seconds(cupy, lambda: cupy.copyto(target, source)) for _ in range(ROUNDS))
    bandwidth = 2 * source.nbytes / copy
    table = Table("op", "formula ms", "twin ms", "formula/twin", "twin GB/s", "of copy", box=box.SIMPLE_HEAD,
                  title=f"{cupy.cuda.runtime.getDeviceProperties(0)['name'].decode()}, "
                        f"copy {bandwidth / 1e9:,.0f} GB/s")
    for name, (op, arguments, keywords, again) in calls(cupy, 16).items():
        if names and not any(part in name for part in names):
            continue
        moved = []
        with recorded(moved):
            op(*arguments, **keywords)
        formula, twin = [], []
        for _ in range(ROUNDS):
            formula.append(seconds(cupy, lambda: op.reference(*arguments, **keywords)))    # noqa: B023
            twin.append(seconds(cupy, lambda: op(*arguments, **keywords)))                 # noqa: B023
        least      = sum(moved) + again
        slow, fast = statistics.median(formula), statistics.median(twin)
        table.add_row(name, f"{1e3 * slow:.3f}", f"{1e3 * fast:.3f}", f"{slow / fast:.1f}",
                      f"{least / fast / 1e9:,.0f}", f"{least / fast / bandwidth:.0%}")
    Console(width=110).print(table)


def seconds(cupy: Any, function: Callable) -> float:
    begun, ended = cupy.cuda.Event(), cupy.cuda.Event()
    begun.record()
    function()
    ended.record()
    ended.synchronize()
    return cupy.cuda.get_elapsed_time(begun, ended) / 1e3


def recorded(moved: list[int]) -> Any:
    """Within, the bytes of the arrays of every launch are put on the list."""
    original = launch.launch

    def recording(file: str, kernel: str, blocks: int, *args: Any, **options: Any) -> None:
        moved.append(sum(getattr(array, "nbytes", 0) for array in {id(a): a for a in args}.values()))
        original(file, kernel, blocks, *args, **options)

    return mock.patch.object(launch, "launch", recording)


# Without one

def stand_in() -> Any:
    """The module that stands in for CuPy, whose kernels are counted and not run."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    import cuda_on_cpu
    import strict_cupy
    module = strict_cupy.StrictCupy("cupy")
    sys.modules["cupy"] = module
    cuda_on_cpu.launcher.only_counts, strict_cupy.machine.order = True, "C"
    return strict_cupy


def count(machine: Any, function: Callable, with_twins: bool = True) -> tuple[int, int]:
    """Launches, and the bytes that they move."""
    machine.launches.clear()
    with mock.patch.object(twins, "find_twin", twins.find_twin if with_twins else lambda *_: None):
        function()
    return len(machine.launches), sum(moved for _, moved in machine.launches)


def count_twins(names: list[str]) -> None:
    cupy  = stand_in()
    table = Table("op", "launches: formula", "twin", "MB moved: formula", "twin", "formula/twin",
                  box=box.SIMPLE_HEAD)
    for name, (op, arguments, keywords, again) in calls(cupy, 1).items():
        if names and not any(part in name for part in names):
            continue
        (slow, more), (fast, less) = (count(cupy.machine, lambda: op(*arguments, **keywords), twin)  # noqa: B023
                                      for twin in (False, True))
        less += again
        table.add_row(name, f"{slow}", f"{fast}", f"{more / 1e6:,.1f}", f"{less / 1e6:,.1f}",
                      f"{more / less:.1f}")
    Console(width=110).print(table)


def count_step() -> None:
    cupy  = stand_in()
    table = Table("a step of GPT-2 124M", "launches", "GB moved", box=box.SIMPLE_HEAD)
    tokens, targets = np.random.default_rng(0).integers(0, 50257, (2, 1, 1024))
    for dropout in (0.0, 0.1):
        model = GPT(GPTConfig(50257, 1024, 12, 12, 768, dropout=dropout), device="cuda")
        adamw = AdamW(model, lr=1e-4)

        def step(model: GPT = model, adamw: AdamW = adamw) -> None:
            model.zero_grad()
            _, saved = model.loss(tokens, targets, Key(1))
            model.backward(saved)
            clip_grad_norm(model, 1.0)
            adamw.step(lr=1e-4)

        for name, with_twins in (("formulas", False), ("twins", True)):
            launches, moved = count(cupy.machine, step, with_twins)
            table.add_row(f"{name}{f', dropout {dropout}' if dropout else ''}", f"{launches:,}",
                          f"{moved / 1e9:.1f}")
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
