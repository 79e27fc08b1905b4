"""Whole trainings on a GPU, as a user starts them: their losses beside the CPU's, and shakespeare-char."""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from npgpt.inspection.metrics import read_metrics
from npgpt.tensor.device import AMPERE, capability, check_device, empty

SHOWN = (1, 2, 10, 50, 100, 150, 200)
NEAR  = 3e-4
"""How far, relative, a GPU's losses in float32 may be from the CPU's within SHOWN's steps. The CPU's own, in
float32 and in float64, are within 6e-5 of each other."""
RUNS  = {"CPU": "", "float32": "--device cuda", "tf32": "--device cuda --tf32",
         "bfloat16": "--device cuda --dtype bfloat16", "float16": "--device cuda --dtype float16"}
GOAL  = 1.47                            # nanoGPT reports 1.4697 for shakespeare-char


def losses() -> bool:
    """200 steps of the preset quick on the CPU, and on a GPU in every type; whether float32 stayed near."""
    check_device("cuda")
    steps  = f"{SHOWN[-1]}"
    curves = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, options in RUNS.items():
            if name == "bfloat16" and capability(empty(1, "float32", "cuda")) < AMPERE:
                continue
            run = Path(folder, name)
            train(run, *options.split(), "--max-iters", steps, "--log-interval", "1",
                  "--eval-interval", steps, "--eval-iters", "5", "--sample-tokens", "0")
            curves[name] = read_metrics(run)["train_loss"]
    return table_of_losses(curves)


def table_of_losses(curves: dict) -> bool:
    cpu   = dict(zip(curves["CPU"].step, curves["CPU"].value, strict=True))
    table = Table("step", *curves, box=box.SIMPLE_HEAD, title="loss in training, nats")
    for step in SHOWN:
        table.add_row(f"{step}", *(f"{curve.value[curve.step == step][0]:.5f}" for curve in curves.values()))
    apart = {name: max(abs(loss / cpu[step] - 1) for step, loss in zip(curve.step, curve.value, strict=True))
             for name, curve in curves.items()}
    table.add_row("apart", *(f"{each:.1e}" for each in apart.values()))
    Console(width=100).print(table)
    near = bool(apart["float32"] <= NEAR)
    print(f"float32 on the GPU is {'within' if near else 'NOT within'} {NEAR:g} of the CPU, relative")
    return near


def shakespeare(data: str, dtype: str) -> bool:
    """The preset shakespeare-char to its end; whether the best validation loss is as good as nanoGPT's."""
    check_device("cuda")
    with tempfile.TemporaryDirectory() as folder:
        run, begun = Path(folder, "run"), time.perf_counter()
        train(run, "--preset", "shakespeare-char", "--data", data, "--device", "cuda", "--dtype", dtype)
        seconds = time.perf_counter() - begun
        curve   = read_metrics(run)["val_loss"]
    best = curve.best()
    if best is None:
        print("no validation loss was finite")
        return False
    print(f"shakespeare-char in {dtype}: validation loss {curve.value[best]:.4f} at step "
          f"{curve.step[best]:.0f}, after {curve.seconds[best]:.0f} s; at the end {curve.value[-1]:.4f}, "
          f"after {curve.seconds[-1]:.0f} s, and {seconds:.0f} s with start and samples. nanoGPT: {GOAL}")
    return bool(curve.value[best] <= GOAL)


def train(run: Path, *options: str) -> None:
    """Raises SystemExit if it fails."""
    command = [sys.executable, "-m", "npgpt", "train", "--out-dir", str(run), *options]
    if subprocess.run(command).returncode:
        raise SystemExit(f"failed: npgpt {' '.join(command[3:])}")
