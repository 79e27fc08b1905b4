"""`npgpt prepare` as a user types it: what it says, its exit status, one clear sentence for bad input."""

import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import commands
import preparing
import pytest
import tiny

from npgpt.cli.main import main
from npgpt.data import reading
from npgpt.data.plans import PrepareConfig
from npgpt.training.checkpoint import list_checkpoints

FLAGS = ["--vocab-size", "280", "--val-fraction", "0.25", "--workers", "1"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(reading, "_PART", 2000)
    preparing.write_corpus(tmp_path / "texts")
    return tmp_path


def refused(capsys, status, sentence, *arguments):
    commands.refused(capsys, status, sentence, "prepare", *arguments)


def test_prepare_then_train(folder, capsys):
    command = ["prepare", "texts", "--out-dir", "out", *FLAGS, "--max_characters", "2000", "--shard-tokens",
               "1000"]
    assert main(command) == 0
    said = capsys.readouterr().out
    manifest = json.loads(Path("out/manifest.json").read_text())
    for side, title in (("train", "training"), ("val", "validation")):
        own = manifest[side]
        assert re.search(rf"{title} +{own['documents']} +{own['characters']:,} +{own['tokens']:,} +"
                         rf"{len(own['shards'])} ", said) and len(own["shards"]) > 1
    assert re.search(r"near_duplicate +41 +40 +1 ", said)
    assert re.search(r"max_characters +44 +43 +1 +2,500", said)
    assert "byte order mark: 1 document\n" in said and "tokenizer: BPETokenizer, 280 tokens" in said
    assert re.search(r"MB in .* MB/s with 1 worker\n\nnext:  npgpt train --data out\n", said)
    assert "too few documents" not in said and "%" not in said                       # no bars: no terminal
    assert main(command) == 0
    assert "out was finished before" in capsys.readouterr().out
    assert main(["train", "--data", "out", *tiny.FLAGS, "--out-dir", "run", "--max-iters", "4"]) == 0
    assert "out, prepared: a tokenizer of 280 tokens" in capsys.readouterr().out
    assert list_checkpoints(Path("run"))


def test_of_few_documents_the_end_of_each_is_held_back(folder, capsys):
    command = ["prepare", "texts/a/00.txt", "--out-dir", "my [red] out", *FLAGS]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "too few documents to hold whole ones back: the end of each is for validation\n" in said
    assert said.endswith("next:  npgpt train --data 'my [red] out'\n")
    assert main(command) == 0
    assert "my [red] out was finished before\n" in capsys.readouterr().out


BAD = [
    (1, "no file or folder called 'absent'", ["absent", "--out-dir", "x"]),
    (1, "texts is the folder to write to", ["texts", "--out-dir", "texts"]),
    (1, "cannot prepare texts/a/00.txt/x: (File exists|Not a dir)",
     ["texts", "--out-dir", "texts/a/00.txt/x"]),
    (1, "00.txt exists and is not an empty folder", ["texts", "--out-dir", "texts/a/00.txt"]),
    (1, "a exists and is not an empty folder", ["texts", "--out-dir", "texts/a"]),
    (2, "out-dir", ["texts"]),
    (2, "PATH", ["--out-dir", "x"]),
    (2, "--shard-token.*did you mean --shard-tokens", ["texts", "--out-dir", "x", "--shard-token", "3"]),
    (2, "near-duplicates.*'many'", ["texts", "--out-dir", "x", "--near-duplicates", "many"]),
    (2, "format", ["texts", "--out-dir", "x", "--format", "parquet"]),
    (1, "workers must be at least 1", ["texts", "--out-dir", "x", "--workers", "0"]),
    (1, "near_duplicates must be above 0", ["texts", "--out-dir", "x", "--near-duplicates", "2"]),
    (1, "vocab_size must be at least 257", ["texts", "--out-dir", "x", "--vocab-size", "100"]),
    (1, "neither bpe nor character, and absent is no", ["texts", "--out-dir", "x", "--tokenizer", "absent"]),
    (1, "cannot read the stop words absent", ["texts", "--out-dir", "x", "--stop-words", "absent"]),
    (1, "words is not UTF-8", ["texts", "--out-dir", "x", "--stop-words", "words"]),
    (1, "no document is left.*min_words left out 44", ["texts", "--out-dir", "x", "--min-words", "600",
                                                       "--workers", "1"]),
    (1, "two bytes an id", ["texts", "--out-dir", "x", "--format", "llm.c", "--vocab-size", "70000"]),
]


@pytest.mark.parametrize("status, sentence, arguments", BAD, ids=[" ".join(row[2]) for row in BAD])
def test_bad_input(folder, capsys, status, sentence, arguments):
    Path("words").write_bytes(b"\xff")
    refused(capsys, status, sentence, *arguments)
    assert not Path("x").exists() or "no document is left" in sentence           # nothing was begun


def test_duplicates_can_be_kept(folder, capsys):
    assert main(["prepare", "texts", "--out-dir", "out", *FLAGS, "--near-duplicates", "None",
                 "--no-exact-duplicates"]) == 0
    assert "_duplicate" not in capsys.readouterr().out


def test_paths_are_read_in_the_order_in_which_they_are_given(folder):
    paths = [Path("texts/b"), Path("texts/a/00.txt"), Path("texts/a/01.txt")]
    assert main(["prepare", *map(str, paths), "--out-dir", "out", *FLAGS]) == 0
    config = PrepareConfig(vocab_size=280, val_fraction=0.25)
    preparing.prepare(paths, Path("library"), config, 1, lambda *_: None)
    assert preparing.contents(Path("out")) == preparing.contents(Path("library"))


def test_size_and_speed_are_those_of_the_text(folder, capsys, monkeypatch):
    """On a clock that goes on by a second whenever somebody looks."""
    monkeypatch.setattr("npgpt.cli.prepare.time", SimpleNamespace(perf_counter=itertools.count().__next__))
    Path("text.txt").write_text("to be or not to be, he said\n".ljust(100) * 2600)
    assert main(["prepare", "text.txt", "--out-dir", "out", *FLAGS]) == 0
    said    = capsys.readouterr().out
    seconds = int(re.search(r"\n0\.3 MB in (\d+)\.0 s, ", said)[1])
    assert f", {0.26 / seconds:.2f} MB/s with" in said and seconds > 2


def test_as_many_processes_work_as_are_asked_for_and_else_one_a_core(folder, capsys, monkeypatch):
    asked: list[int] = []
    monkeypatch.setattr("npgpt.cli.prepare.physical_cores", lambda: 3)
    monkeypatch.setattr("npgpt.cli.prepare.prepare", lambda paths, out_dir, settings, workers, progress:
                        asked.append(workers) or preparing.prepare(paths, out_dir, settings, 1, progress))
    for workers, flags in (("2", ["--workers", "2"]), ("3", [])):
        assert main(["prepare", "texts/a/00.txt", "--out-dir", workers, "--vocab-size", "280", *flags]) == 0
        assert f"MB/s with {workers} workers\n" in capsys.readouterr().out
    assert asked == [2, 3]


def test_interrupted_it_says_so_and_leaves_nothing_running(folder, capsys):
    for n in range(40):                                                                # some seconds of work
        Path(f"texts/{n}.txt").write_text(f"{n} is not one " * 70_000)
    command = ["prepare", "texts", "--out-dir", "out", "--vocab-size", "257"]
    with subprocess.Popen([sys.executable, "-m", "npgpt", *command, "--workers", "2"], text=True,
                          stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                          start_new_session=True) as process:
        while not list(folder.glob("out/unfinished/*.counts")):
            time.sleep(0.02)
        workers = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        assert len(workers) >= 2
        os.killpg(process.pid, signal.SIGINT)                                          # as Ctrl-C does
        assert process.wait(timeout=20) == 130
        assert process.stderr.read() == "npgpt: interrupted\n"
    assert not any(Path(f"/proc/{worker}/cwd").exists() for worker in workers)          # a zombie has none


def test_a_full_disk_is_one_sentence_and_the_same_command_goes_on(folder):
    """The limit on the size of a file lets the records through, but not the signatures."""
    code = ("import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (6000, 6000)); "
            "from npgpt.cli.main import main; sys.exit(main(sys.argv[1:]))")
    command = ["prepare", "texts", "--out-dir", "out", *FLAGS]
    done = subprocess.run([sys.executable, "-c", code, *command], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and done.stderr == "npgpt: cannot prepare out: File too large\n"
    assert not list(folder.glob("out/**/.*.partial"))
    assert main(command) == 0 and main([*command[:3], "quiet", *FLAGS]) == 0
    assert preparing.contents(folder / "out") == preparing.contents(folder / "quiet")
