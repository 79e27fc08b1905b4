"""Every CUDA twin beside its formula: on a GPU by the clock, without one by what both launch and move.

Shapes are those of a step of GPT-2 124M.
"""

import functools
import statistics
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
from chosen import chosen
from rich import box
from rich.console import Console
from rich.table import Table

from npgpt import GPT, GPTConfig, ops
from npgpt.kernels.cuda import biased_product, launch
from npgpt.tensor import Key, array_module, twins
from npgpt.tensor.device import check_device, empty
from npgpt.tensor.precision import NARROW, accumulator
from npgpt.training.optimizer import AdamW, clip_scale

ROUNDS = 20             # of which the formula, which may be slow, takes part in a few
WIDTH  = 110            # of what is printed
ADAMW  = 124_000_000    # numbers that it updates
LARGE  = 1 << 28        # numbers, 1 GiB: no cache holds them
FILLED = 47             # tokens that nobody uses
GPT2   = GPTConfig(50257 + FILLED, 1024, 12, 12, 768)
"""GPT-2 124M, its tokens filled up to a multiple of 64, as nanoGPT does: tensor cores like that"""


class Call(NamedTuple):
    op: Callable
    arguments: tuple
    keywords: Mapping[str, Any] = MappingProxyType({})
    again: int = 0          # bytes that cross the bus beside each array of a launch once: of what is changed
    flops: float = 0.0      # in place, or of a product's result


def calls(cupy: Any, B: int, dtype: str) -> dict[str, Call]:
    """name → a call of B sequences."""
    rng = np.random.default_rng(0)

    def normal(*shape: int, dtype: str = dtype) -> Any:
        result = empty(int(np.prod(shape)), dtype, "cuda").reshape(shape)
        result[...] = cupy.asarray(rng.standard_normal(shape, dtype=np.float32)).astype(result.dtype)
        return result

    T, H, D, C, V = GPT2.block_size, GPT2.n_head, GPT2.head_size, GPT2.n_embd, GPT2.vocab_size
    x, gain, wide, dy  = normal(B, T, C), normal(C), normal(B, T, 4 * C), normal(B, T, C)
    often = np.cumsum(1 / np.arange(1, V + 1))                  # as in texts: the n-th token 1/n as often as
    tokens = np.searchsorted(often, rng.uniform(0, often[-1], (B, T)))          # the first
    tokens, key, dloss = cupy.asarray(tokens), Key(1), cupy.asarray(np.float32(1))
    q, k, v  = normal(3, B, H, T, D)
    rotation = tuple(normal(T, D // 2, dtype=accumulator(dtype)) for _ in range(2))
    targets, rows = tokens.reshape(-1)[:512], x.reshape(-1, C)
    logits, thin, row = normal(512, V), normal(B, T, 16), normal(16, 4 * C)
    head   = (x, normal(V, C), tokens)
    as_is  = (x, head[1][:V - FILLED], tokens % (V - FILLED))
    losses = 2.0 * B * T * C * V
    attention = 2 * 2 * B * H * D * T * T / 2                   # two products, of half the scores
    dropped   = (q, k, v, True, None, None, 0.1, key)
    w, g, m, s = (cupy.zeros(ADAMW, accumulator(dtype)) for _ in range(4))
    narrow    = {} if dtype == w.dtype else {"narrow": empty(ADAMW, dtype, "cuda"), "key": key}
    saved = {name: op(*arguments)[1] for name, op, arguments in (
        ("layernorm", ops.layernorm_forward, (x, gain, gain)), ("rmsnorm", ops.rmsnorm_forward, (x, gain)),
        ("swiglu", ops.swiglu_forward, (wide,)), ("attention", ops.attention_forward, (q, k, v)),
        ("attention, dropout", ops.attention_forward, dropped),
        ("gelu", ops.gelu_tanh_forward, (wide,)), ("rotary", ops.rotary_forward, (q, rotation)),
        ("linear", ops.linear_forward, (thin, row, normal(4 * C))),
        ("dropout", ops.dropout_forward, (x, 0.1, key)),
        ("residual_layernorm", ops.residual_layernorm_forward, (x, dy, gain, gain)),
        ("residual_rmsnorm", ops.residual_rmsnorm_forward, (x, dy, gain)),
        ("cross_entropy", ops.cross_entropy_forward, (logits, targets)),
        ("head", ops.linear_cross_entropy_forward, head),
        ("head as is", ops.linear_cross_entropy_forward, as_is))}
    return {
        "attention_forward": Call(ops.attention_forward, (q, k, v), flops=attention),
        "attention_backward": Call(ops.attention_backward, (normal(B, H, T, D), saved["attention"]),
                                   flops=2.5 * attention),
        "attention_forward, dropout": Call(ops.attention_forward, dropped, flops=attention),
        "attention_backward, dropout": Call(ops.attention_backward,
                                            (normal(B, H, T, D), saved["attention, dropout"]),
                                            flops=2.5 * attention),
        "residual_layernorm_forward": Call(ops.residual_layernorm_forward, (x, dy, gain, gain)),
        "residual_layernorm_backward": Call(ops.residual_layernorm_backward,
                                            ((dy, x), saved["residual_layernorm"])),
        "layernorm_forward": Call(ops.layernorm_forward, (x, gain, gain)),
        "layernorm_backward": Call(ops.layernorm_backward, (dy, saved["layernorm"])),
        "residual_rmsnorm_forward": Call(ops.residual_rmsnorm_forward, (x, dy, gain)),
        "residual_rmsnorm_backward": Call(ops.residual_rmsnorm_backward,
                                          ((dy, x), saved["residual_rmsnorm"])),
        "rmsnorm_forward": Call(ops.rmsnorm_forward, (x, gain)),
        "rmsnorm_backward": Call(ops.rmsnorm_backward, (dy, saved["rmsnorm"])),
        "residual_forward": Call(ops.residual_forward, (x, dy)),
        "gelu_tanh_forward": Call(ops.gelu_tanh_forward, (wide,)),
        "gelu_tanh_backward": Call(ops.gelu_tanh_backward, (wide, saved["gelu"])),
        "swiglu_forward": Call(ops.swiglu_forward, (wide,)),
        "swiglu_backward": Call(ops.swiglu_backward, (wide[..., :2 * C].copy(), saved["swiglu"])),
        "rotary_forward": Call(ops.rotary_forward, (q, rotation)),
        "rotary_backward": Call(ops.rotary_backward, (k, saved["rotary"])),
        "dropout_forward": Call(ops.dropout_forward, (x, 0.1, key)),
        "dropout_backward": Call(ops.dropout_backward, (dy, saved["dropout"])),
        # A product so thin that what it reads and writes of the wide side is all it costs, and a bias. Of 16
        # bits that is added before y is written, else y is read and written for it.
        "linear_forward": Call(ops.linear_forward, (thin, row, normal(4 * C)),
                               again=wide.nbytes * (1 if dtype in NARROW else 2)),
        "linear_backward": Call(ops.linear_backward, (wide, saved["linear"]), again=2 * wide.nbytes),
        "weight_gradient": Call(ops.weight_gradient, (rows, rows), again=2 * rows.nbytes + 4 * C * C,
                                flops=2.0 * B * T * C * C),
        "cross_entropy_forward": Call(ops.cross_entropy_forward, (logits, targets)),
        "cross_entropy_backward": Call(ops.cross_entropy_backward, (dloss, saved["cross_entropy"])),
        "linear_cross_entropy_forward": Call(ops.linear_cross_entropy_forward, head, flops=losses),
        "linear_cross_entropy_backward": Call(ops.linear_cross_entropy_backward, (dloss, saved["head"]),
                                              flops=2 * losses),
        "linear_cross_entropy_forward, 50,257": Call(ops.linear_cross_entropy_forward, as_is, flops=losses),
        # Of a product as thin, whose logits are written by it, and read and written by the kernel.
        "linear_cross_entropy_forward, thin": Call(
            ops.linear_cross_entropy_forward, (thin, normal(V, 16), tokens),
            again=2 * B * T * V * x.dtype.itemsize),
        "linear_cross_entropy_backward, 50,257": Call(ops.linear_cross_entropy_backward,
                                                      (dloss, saved["head as is"]), flops=2 * losses),
        "embedding_backward": Call(ops.embedding_backward, (dy, (tokens, (V, C)))),
        "sum_of_squares": Call(ops.sum_of_squares, (g,)),
        "adamw": Call(ops.adamw, (w, g, m, s, 3, 1e-3), {"out": (w, m, s), **narrow}, again=3 * w.nbytes),
    }


# With a GPU

def time_twins(names: list[str], dtype: str, B: int) -> None:
    check_device("cuda")
    import cupy
    bandwidth = copy_bandwidth(cupy)
    table = Table("op", "formula ms", "twin ms", "formula/twin", "GB/s", "of copy", "TFLOP/s",
                  box=box.SIMPLE_HEAD, title=f"{dtype}, {name_of_gpu(cupy)}, a copy: "
                                             f"{bandwidth / 1e9:,.0f} GB/s")
    console = Console(width=WIDTH)
    try:
        for name, call in chosen(calls(cupy, B, dtype), names).items():
            if row := times_of(cupy, call, bandwidth):
                table.add_row(name, *row)
            else:
                console.print(f"{name}: its twin does not take {dtype}")
    finally:                                                    # if it is stopped, as far as it came
        console.print(table)


def times_of(cupy: Any, call: Call, bandwidth: float) -> list[str] | None:
    """A row of the table; None if there is no twin for that."""
    op, arguments, keywords, again, flops = call
    moved: list[int] = []
    with recorded(moved):
        result = twins.find_twin(op.reference, "cuda")(*arguments, **keywords)
    if result is NotImplemented:
        return None
    formula, twin = [], []
    for turn in range(ROUNDS + 1):                              # of which the first is not counted
        if turn < 2 + ROUNDS // 4:
            with mock.patch.object(twins, "find_twin", lambda *_: None):
                formula.append(seconds(cupy, lambda: op(*arguments, **keywords)))
        twin.append(seconds(cupy, lambda: op(*arguments, **keywords)))
    least      = sum(moved) + again
    slow, fast = statistics.median(formula[1:]), statistics.median(twin[1:])
    return [f"{1e3 * slow:.3f}", f"{1e3 * fast:.3f}", f"{slow / fast:.1f}", f"{least / fast / 1e9:,.0f}",
            f"{least / fast / bandwidth:.0%}", f"{flops / fast / 1e12:,.0f}" if flops else ""]


def copy_bandwidth(cupy: Any) -> float:
    """Bytes read and written a second by a large copy."""
    target, source = large(cupy)
    times = [seconds(cupy, lambda: cupy.copyto(target, source)) for _ in range(ROUNDS)]
    return 2 * source.nbytes / statistics.median(times)


@functools.cache
def large(cupy: Any) -> tuple[Any, Any]:
    """Two such arrays."""
    source = cupy.zeros(LARGE, "float32")
    return cupy.empty_like(source), source


def seconds(cupy: Any, function: Callable) -> float:
    """Of the GPU, for what the function queues. First it gets a large copy: meanwhile Python queues, which
    takes longer than many a kernel, and of what they read nothing is left in the cache.
    """
    begun, ended = cupy.cuda.Event(), cupy.cuda.Event()
    cupy.copyto(*large(cupy))
    begun.record()
    function()
    ended.record()
    ended.synchronize()
    return cupy.cuda.get_elapsed_time(begun, ended) / 1e3


def name_of_gpu(cupy: Any) -> str:
    return cupy.cuda.runtime.getDeviceProperties(cupy.cuda.Device().id)["name"].decode()


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
    import strict_cublas
    import strict_cupy
    sys.modules["cupy"] = strict_cupy.StrictCupy("cupy")
    library = strict_cublas.CublasLt(strict_cupy.machine)
    biased_product._library = lambda _: library  # type: ignore[assignment]
    cuda_on_cpu.launcher.only_counts, strict_cupy.machine.order = True, "C"
    return strict_cupy


def count(machine: Any, function: Callable, with_twins: bool = True) -> tuple[int, int]:
    """Launches, and the bytes that they move."""
    machine.launches.clear()
    with mock.patch.object(twins, "find_twin", twins.find_twin if with_twins else lambda *_: None):
        function()
    return len(machine.launches), sum(moved for _, moved in machine.launches)


def count_twins(names: list[str], dtype: str) -> None:
    cupy  = stand_in()
    table = Table("op", "launches: formula", "twin", "MB moved: formula", "twin", "formula/twin",
                  box=box.SIMPLE_HEAD, title=f"{dtype}, 1 × {GPT2.block_size} tokens")
    for name, (op, arguments, keywords, again, _) in chosen(calls(cupy, 1, dtype), names).items():
        (slow, more), (fast, less) = (count(cupy.machine, lambda: op(*arguments, **keywords), twin)  # noqa: B023
                                      for twin in (False, True))
        less += 0 if "linear" in name else again                # the stand-in counts products, too
        table.add_row(name, f"{slow}", f"{fast}", f"{more / 1e6:,.1f}", f"{less / 1e6:,.1f}",
                      f"{more / less:.1f}")
    Console(width=WIDTH).print(table)


def count_step(dtype: str) -> None:
    cupy  = stand_in()
    table = Table("a step of GPT-2 124M", "launches", "GB moved", box=box.SIMPLE_HEAD,
                  title=f"{dtype}, 1 × {GPT2.block_size} tokens")
    tokens, targets = np.random.default_rng(0).integers(0, GPT2.vocab_size, (2, 1, GPT2.block_size))
    for dropout in (0.0, 0.1):
        model = GPT(replace(GPT2, dropout=dropout, attention_dropout=dropout), device="cuda", dtype=dtype)
        adamw = AdamW(model)

        def step(model: GPT = model, adamw: AdamW = adamw) -> None:
            """As the trainer's, whose own makes no update of gradients that nobody has computed."""
            model.zero_grad()
            _, saved = model.loss(tokens, targets, Key(1))
            model.backward(saved)
            grad = model.flat.grad
            adamw.step(1e-4, clip_scale(array_module(grad).sqrt(ops.sum_of_squares(grad)), 1.0))

        for name, with_twins in (("formulas", False), ("twins", True)):
            launches, moved = count(cupy.machine, step, with_twins)
            table.add_row(f"{name}{f', dropout {dropout}' if dropout else ''}", f"{launches:,}",
                          f"{moved / 1e9:.1f}")
    Console(width=WIDTH).print(table)
