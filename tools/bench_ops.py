"""Times every CPU twin beside its formula, in turn, and prints medians, the ratio, and the formula's spread:

    python tools/bench_ops.py                      # all
    python tools/bench_ops.py attention gelu       # those whose names contain one of these

Shapes are those of a training step of 16 sequences of 256 tokens, 6 heads, width 384, in float32. GB/s counts
each input and output once. OPENBLAS_NUM_THREADS sets the number of threads. Run nothing else meanwhile.
"""

import statistics
import sys
import time
from collections.abc import Callable

import numpy as np
from chosen import chosen
from rich import box
from rich.console import Console
from rich.table import Table

from npgpt import ops
from npgpt.tensor import Key
from npgpt.tensor.twins import find_twin

ROUNDS = 15


def calls() -> dict[str, tuple[Callable, tuple, dict]]:
    """name → op, arguments, keyword arguments."""
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, dtype=np.float32)

    B, T, H, D, C, V = 16, 256, 6, 64, 384, 4096
    x, h, gamma, wide = normal(B, T, C), normal(B, T, C), normal(C), normal(B, T, 4 * C)
    q, k, v = normal(3, B, H, T, D)
    dropped = (q, k, v, True, None, None, 0.1, Key(1))
    tokens  = rng.integers(0, V, (B, T))
    w, g, m = normal(3, 10_000_000)
    variance = g * g
    return {
        "attention_forward": (ops.attention_forward, (q, k, v), {}),
        "attention_backward": (ops.attention_backward, (q, ops.attention_forward(q, k, v)[1]), {}),
        "attention_forward, dropout": (ops.attention_forward, dropped, {}),
        "attention_backward, dropout": (ops.attention_backward, (q, ops.attention_forward(*dropped)[1]), {}),
        "embedding_backward": (ops.embedding_backward, (x, (tokens, (V, C))), {}),
        "gelu_tanh_forward": (ops.gelu_tanh_forward, (wide,), {}),
        "layernorm_forward": (ops.layernorm_forward, (x, gamma, gamma), {}),
        "layernorm_backward": (ops.layernorm_backward, (x, ops.layernorm_forward(x, gamma, gamma)[1]), {}),
        "rmsnorm_forward": (ops.rmsnorm_forward, (x, gamma), {}),
        "rmsnorm_backward": (ops.rmsnorm_backward, (x, ops.rmsnorm_forward(x, gamma)[1]), {}),
        "residual_layernorm_forward": (ops.residual_layernorm_forward, (x, h, gamma, gamma), {}),
        "residual_layernorm_backward": (ops.residual_layernorm_backward, (
            (x, h), ops.residual_layernorm_forward(x, h, gamma, gamma)[1]), {}),
        "residual_rmsnorm_forward": (ops.residual_rmsnorm_forward, (x, h, gamma), {}),
        "residual_rmsnorm_backward": (ops.residual_rmsnorm_backward, (
            (x, h), ops.residual_rmsnorm_forward(x, h, gamma)[1]), {}),
        "swiglu_forward": (ops.swiglu_forward, (wide,), {}),
        "swiglu_backward": (ops.swiglu_backward, (wide[..., :2 * C].copy(), ops.swiglu_forward(wide)[1]), {}),
        "linear_cross_entropy_forward": (ops.linear_cross_entropy_forward, (x, normal(V, C), tokens), {}),
        "adamw": (ops.adamw, (w, g, m, variance, 3, 1e-3), {"out": (w, m, variance)}),
    }


def arrays_in(value) -> list[np.ndarray]:
    if isinstance(value, np.ndarray):
        return [value]
    return [array for part in value for array in arrays_in(part)] if isinstance(value, (tuple, list)) else []


def seconds(function: Callable, arguments: tuple, keywords: dict) -> float:
    begun = time.perf_counter()
    function(*arguments, **keywords)
    return time.perf_counter() - begun


def main() -> None:
    table = Table("op", "formula ms", "spread", "twin ms", "formula/twin", "twin GB/s", box=box.SIMPLE_HEAD)
    for name, (op, arguments, keywords) in chosen(calls(), sys.argv[1:]).items():
        assert find_twin(op.reference, "cpu"), f"{name} has no twin"
        touched = {id(a): a.nbytes for a in arrays_in([arguments, op(*arguments, **keywords)])}
        formula, twin = [], []
        for _ in range(ROUNDS):
            formula.append(seconds(op.reference, arguments, keywords))
            twin.append(seconds(op, arguments, keywords))
        slow, fast = statistics.median(formula), statistics.median(twin)
        ratio = statistics.median(f / t for f, t in zip(formula, twin, strict=True))
        table.add_row(name, f"{1e3 * slow:.2f}", f"{1e3 * min(formula):.1f}–{1e3 * max(formula):.1f}",
                      f"{1e3 * fast:.2f}", f"{ratio:.2f}", f"{sum(touched.values()) / fast / 1e9:.1f}")
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
