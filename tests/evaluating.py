"""npgpt evaluate in a folder with runs and texts: what its tests have in common."""

import itertools
import json
import math
import re
from pathlib import Path

import numpy as np
import tiny

from npgpt.cli.main import main


def make_folder(folder):
    """run: characters, without an end of text.  run-bpe: with one.  model: the second, exported."""
    tiny.train_quietly(tiny.new_run(folder, val_fraction=0.3))
    tiny.train_quietly(tiny.new_run(folder, "run-bpe", tokenizer="bpe", vocab_size=270))
    assert main(["export", str(folder / "run-bpe"), "--out-dir", str(folder / "model")]) == 0
    (folder / "texts").mkdir()
    (folder / "texts" / "a.txt").write_text("to be or not\n")
    (folder / "texts" / "b.txt").write_text("é€ that is\n")
    return folder


def enter(folder, monkeypatch):
    """Makes it the current folder, without what an earlier test wrote there."""
    monkeypatch.chdir(folder)
    for name in ("result.json", "surprisal.jsonl", "predictions.jsonl", "records.jsonl"):
        Path(name).unlink(missing_ok=True)


def evaluate(*arguments):
    """The result file of a command that goes well."""
    assert main(["evaluate", *map(str, arguments), "--out", "result.json"]) == 0
    return json.loads(Path("result.json").read_text())


def refused(capsys, status, sentence, *arguments):
    capsys.readouterr()
    assert main(["evaluate", *map(str, arguments)]) == status
    said = capsys.readouterr()
    assert said.err.startswith("npgpt: ") and said.err.count("\n") == 1 and not said.out, said
    assert re.search(sentence, said.err), said.err


def check_bootstrap_and_batch_size(monkeypatch, kind, *command):
    """The intervals are those of so many resamples by this seed, and of what is to be scored no more than two
    go at once through a layer or model of that kind."""
    read, forward = [], kind.forward
    monkeypatch.setattr(kind, "forward", lambda self, x, *inputs, **options:
                        read.append(len(x)) or forward(self, x, *inputs, **options))
    intervals = [evaluate(*command, "--batch-size", 2, "--seed", seed, "--resamples", resamples)["intervals"]
                 for seed, resamples in ((0, 3), (1, 3), (0, 4))]
    assert all(one != other for one, other in itertools.combinations(intervals, 2))
    assert max(read) == 2


def nats(model, tokens, start, n):
    z = model.forward(np.array([tokens[start:n]]))[0][0, -1].astype(np.float64)
    return math.log(np.exp(z).sum()) - z[tokens[n]]


def write_records(*records):
    Path("records.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return "records.jsonl"


def lines_of(name):
    return [json.loads(line) for line in Path(name).read_text().splitlines()]
