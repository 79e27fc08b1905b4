"""The smallest run that is a real one: a text, settings and the commands' main, for tests of training."""

import random
from pathlib import Path

from npgpt.training.config import TrainConfig
from npgpt.training.loop import train
from npgpt.training.monitor import Monitor
from npgpt.training.runs import Run, create_run

SETTINGS = {
    "tokenizer": "character", "block_size": 8, "n_layer": 2, "n_head": 2, "n_embd": 8, "dropout": 0.2,
    "batch_size": 3, "gradient_accumulation_steps": 2, "max_iters": 20, "learning_rate": 1e-2,
    "warmup_iters": 5, "eval_interval": 10, "eval_iters": 3, "log_interval": 4, "sample_tokens": 5,
}
FLAGS = [word for name, value in SETTINGS.items() for word in (f"--{name}", str(value))]


def write_text(folder: Path, characters: int = 700) -> Path:
    """A text of a few words in a random order, always the same."""
    vocabulary = ["to", "be", "or", "not", "that", "is", "the", "question\n"]
    words = random.Random(0).choices(vocabulary, k=characters)
    path = folder / "text.txt"
    path.write_text(" ".join(words)[:characters], encoding="utf-8")
    return path


def new_run(folder: Path, name: str = "run", **settings) -> Run:
    """A run in folder/name, created and not yet trained."""
    config = TrainConfig(**SETTINGS | {"data": str(write_text(folder))} | settings)
    return create_run(folder / name, config, note=lambda text: None)


def train_quietly(run: Run, resume: bool = False, stop=lambda: False) -> bool:
    with Monitor(run.path, run.config.max_iters) as monitor:
        return train(run, monitor, resume, stop)
