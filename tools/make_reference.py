"""Trains a preset with several seeds and stores their curves, for `npgpt verify` to compare other runs with:

    python tools/make_reference.py quick
    python tools/make_reference.py shakespeare-char-cpu --data tinyshakespeare.txt --seeds 8 --at-once 2

Runs are left in --runs (by default runs/reference) as PRESET-seed-N; one that is there and finished is not
trained again, one that was cut off goes on. The first seed is 1337, the presets' own; then come 1, 2, 3 …
Each run is one worker on one thread. The preset quick takes about nine minutes a seed, shakespeare-char-cpu
four. The file goes to npgpt/presets/PRESET.reference.json, and is the same for the same runs.
"""

import argparse
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

import npgpt
from npgpt.files import atomic_write
from npgpt.inspection.metrics import read_metrics
from npgpt.inspection.reference import (
    QUANTITIES,
    Reference,
    sample_curves,
    settings_that_matter,
    text_of,
    write_reference,
)
from npgpt.training.config import preset_names, read_settings
from npgpt.training.runs import open_run

EVALUATED_EVERY, LOGGED_EVERY, WINDOW = 50, 10, 200         # steps
BEGINNING = 5                                               # logged steps


def train(preset: str, data: str | None, seed: int, folder: Path) -> None:
    """The run of one seed, to its end."""
    max_iters = read_settings(preset, None).max_iters
    if (folder / "checkpoints" / f"step-{max_iters:06d}").exists():
        return
    start = ["--resume", str(folder)] if (folder / "config.toml").exists() else [
        "--preset", preset, "--seed", str(seed), "--out-dir", str(folder), "--workers", "1",
        "--sample-tokens", "0",
        "--eval-interval", str(EVALUATED_EVERY), "--log-interval", str(LOGGED_EVERY),
        *(["--data", data] if data else [])]
    one_thread = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-m", "npgpt", "train", *start], check=True, stdout=subprocess.DEVNULL,
                   env=os.environ | one_thread)
    print(f"seed {seed}: done", flush=True)


def collect(preset: str, seeds: list[int], folders: list[Path]) -> Reference:
    """The curves of the runs of a preset."""
    runs = [open_run(folder) for folder in folders]
    texts    = [text_of(Path(run.config.data).name, run.tokenizer, run.train, run.val) for run in runs]
    settings = [settings_that_matter(run.config, run.tokenizer.vocab_size) for run in runs]
    if any(text != texts[0] for text in texts) or any(s != settings[0] for s in settings):
        raise SystemExit("the runs are not all of the same text and settings: remove the leftovers")
    splits  = {text_of("", run.tokenizer, run.val) for run in runs}
    steps   = np.arange(0, runs[0].config.max_iters + 1, EVALUATED_EVERY)
    metrics = [read_metrics(folder) for folder in folders]
    sampled = [sample_curves(curves, steps, LOGGED_EVERY, WINDOW) for curves in metrics]
    return Reference(
        preset, npgpt.__version__, settings[0], texts[0], len(splits) == 1, tuple(seeds),
        LOGGED_EVERY, WINDOW, steps,
        {name: np.array([curves[name] for curves in sampled]) for name in QUANTITIES},
        LOGGED_EVERY * np.arange(1, BEGINNING + 1),
        {name: np.array([curves[name].value[:BEGINNING] for curves in metrics])
         for name in ("train_loss", "grad_norm")})


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("preset", choices=preset_names())
    parser.add_argument("--data", help="the text, where the preset has none of its own")
    parser.add_argument("--seeds", type=int, default=6, help="how many, at least 5")
    parser.add_argument("--at-once", type=int, default=2, help="runs at the same time, a core each")
    parser.add_argument("--runs", type=Path, default=Path("runs/reference"))
    options = parser.parse_args()
    if options.seeds < 5:
        parser.error("fewer than 5 seeds do not tell a spread")
    seeds   = [1337, *range(1, options.seeds)]
    folders = [options.runs / f"{options.preset}-seed-{seed}" for seed in seeds]
    with ThreadPoolExecutor(options.at_once) as pool:
        list(pool.map(lambda seed, folder: train(options.preset, options.data, seed, folder), seeds, folders))
    path = Path(npgpt.__file__).parent / "presets" / f"{options.preset}.reference.json"
    with atomic_write(path, "w") as file:
        file.write(write_reference(collect(options.preset, seeds, folders)))
    print(f"reference: {path}")


if __name__ == "__main__":
    main()
