"""`npgpt bench`: what it times, and what it tells of that."""

import itertools
import os
import re
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import strict_cupy
import tiny
from commands import refused

from npgpt.cli import bench
from npgpt.cli.main import main
from npgpt.training.config import TrainConfig


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_bench_times_the_model_it_was_told_to(folder, capsys):
    begun = time.perf_counter()
    assert main(["bench", *tiny.FLAGS, "--n-layer", "3", "--seconds", "0.3", "--workers", "2"]) == 0
    elapsed, said = time.perf_counter() - begun, capsys.readouterr().out
    assert "3 layers of 2 heads, width 8, context 8, 65 tokens" in said and "3 × 8 tokens, 2 workers" in said
    for line, tokens in (("training", 3 * 8), ("generation", 1)):
        rate, low, high, milliseconds = re.search(
            rf"{line} +([\d,]+) +([\d,]+)–([\d,]+) +([\d,.]+) a", said).groups()
        rate, low, high, milliseconds = (float(n.replace(",", "")) for n in (rate, low, high, milliseconds))
        assert low <= rate <= high and rate == pytest.approx(1e3 * tokens / milliseconds, rel=0.05)
    assert 0.6 < elapsed < 60 and not list(folder.glob("runs*"))
    refused(capsys, 1, "seconds must be above 0", "bench", "--seconds", "0")
    refused(capsys, 1, "unknown preset 'big'", "bench", "--preset", "big")
    refused(capsys, 2, "--preset needs a name", "bench", "--preset", "")
    refused(capsys, 2, "--config needs a file", "bench", "--config=")
    refused(capsys, 1, "workers must be 1 to 3", "bench", *tiny.FLAGS, "--workers", "4")     # not to 6


def test_bench_tells_what_follows_from_the_seconds_that_it_took(folder, capsys, monkeypatch):
    """A step takes 2⁻¹⁰ seconds here, a token 2⁻⁴, and a product 1/2 second or 1; each of two workers holds
    7 MB."""
    clock, slower = [0.0], itertools.cycle([1.0, 0.5])

    class Matrix:
        def __len__(self):
            return 1000

        def __matmul__(self, other):
            clock[0] += next(slower)
            return np.ones((1, 1))

    def update(self, step):
        clock[0] += 2.0**-10

    def stream(*inputs, max_new_tokens, **options):
        for _ in range(max_new_tokens):
            clock[0] += 2.0**-4
            yield

    monkeypatch.setattr(bench, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    monkeypatch.setattr(bench.Trainer, "update", update)
    monkeypatch.setattr(bench, "stream", stream)
    monkeypatch.setattr(bench, "to_device", lambda array, device: Matrix())
    monkeypatch.setattr(bench, "memory_held", lambda: 7e6)
    Path("mine.toml").write_text('dtype = "float64"')
    assert main(["bench", "--config", "mine.toml", *tiny.FLAGS, "--n-embd", "64", "--seconds", "1",
                 "--workers", "2"]) == 0
    assert clock == [1 + 1 + 2 * 2.0**-10 + 4]             # before the steps that count are two more
    rate  = 3 * 8 * 1024
    shape = TrainConfig(**tiny.SETTINGS | {"n_embd": 64}).model(65)
    said  = " ".join(capsys.readouterr().out.split())
    assert "65 tokens" in said and "parameters in float64" in said
    assert f"training {rate:,} {rate:,}–{rate:,} 1.0 a step {rate * shape.flops_per_token / 1e9:.0f} " in said
    assert "generation 16 16–16 62.50 a token" in said
    assert "a large matrix product reaches 8 GFLOP/s; training held at most 14 MB" in said


def test_where_the_system_does_not_tell_what_is_held_it_is_the_most_that_was(monkeypatch):
    def fail(*arguments, **options):
        raise OSError

    held = bench.memory_held()
    monkeypatch.setattr(bench.Path, "read_text", fail)
    most = bench.memory_held()
    assert 0.9 * held < most < 100 * held
    monkeypatch.setattr(sys, "platform", "darwin")         # where it is told in bytes
    assert bench.memory_held() == pytest.approx(most / 1024, rel=0.1)


def test_bench_of_a_gpu_tells_of_its_memory_and_heeds_tf32(folder, capsys, monkeypatch):
    strict_cupy.install(monkeypatch)
    monkeypatch.setenv("CUPY_TF32", "0")
    monkeypatch.setitem(bench.LARGE, "cuda", 700)
    assert main(["bench", *tiny.FLAGS, "--tokenizer", "bpe", "--vocab-size", "300", "--device", "cuda",
                 "--tf32", "--seconds", "0.1"]) == 0
    held = re.search(r", 300 tokens: (?s:.*)of the GPU's memory, training held (\d+) MB",
                     capsys.readouterr().out)
    assert held and 0 < int(held[1]) <= strict_cupy.machine.allocated / 1e6 - 700 * 700 * 4 / 1e6
    assert os.environ["CUPY_TF32"] == "1" and ((700, 700), "float32") in strict_cupy.machine.uploads
