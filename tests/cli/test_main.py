"""What befalls any command outside its own work: outputs that fail, encodings, want of threads."""

import os
import subprocess
import sys

import pytest
import tiny

from npgpt.cli.main import main

NPGPT = f"{sys.executable} -m npgpt"


def shell(command, **variables):
    """The command in bash, without what this suite's own environment says of Python's output."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHONUN")}
    return subprocess.run(command, shell=True, executable="/bin/bash", capture_output=True, text=True,
                          timeout=60, env=environment | variables)


@pytest.mark.parametrize("command", ["--help", "--version", "sample --help", "gradcheck relu"])
def test_an_output_that_fails_is_one_sentence_or_none(command):
    done = shell(f"{NPGPT} {command} > /dev/full")
    assert (done.returncode, done.stderr) == (1, "npgpt: No space left on device: standard output\n")
    done = shell(f"{NPGPT} {command} | true; exit ${{PIPESTATUS[0]}}")
    assert (done.returncode, done.stderr) == (1, "")


def test_an_error_that_cannot_be_told_keeps_its_status():
    assert shell(f"{NPGPT} tarin 2> /dev/full").returncode == 2


def test_the_c_locale_is_shown_question_marks():
    done = shell(f"{NPGPT} --help", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0", LC_ALL="C")
    assert done.returncode == 0 and "[OPTION ?]" in done.stdout and not done.stderr


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_a_wrong_option_is_one_sentence_in_any_encoding(encoding):
    done = shell(f"{NPGPT} train --max-iter 3", PYTHONIOENCODING=encoding)
    assert done.returncode == 2
    assert done.stderr.startswith("npgpt: Unrecognized options: --max-iter, 3; did you mean --max-iters? (")
    assert done.stderr.count("\n") == 1


def test_want_of_threads_is_one_sentence_and_other_errors_keep_their_traceback(capsys, monkeypatch):
    error = RuntimeError("can't start new thread")                            # as Thread.start says it

    def run(arguments):
        raise error

    monkeypatch.setattr("npgpt.cli.sample.run", run)
    assert main(["sample"]) == 1
    assert capsys.readouterr().err == "npgpt: no more threads can be started: see what `ulimit -u` allows\n"
    error = RuntimeError("a bug")
    with pytest.raises(RuntimeError, match="a bug"):
        main(["sample"])


def test_windows_is_one_sentence_and_the_library_is_there_to_import(capsys, monkeypatch):
    monkeypatch.setattr("npgpt.cli.main.WINDOWS", True)
    assert main(["train"]) == 1 and main(["--version"]) == 0
    assert capsys.readouterr().err == \
        "npgpt: the commands of npgpt run on Linux and macOS: on Windows, run them within WSL\n"
    lacking = "fcntl", "resource", "termios", "pwd", "grp"
    code = f"import sys; sys.modules.update(dict.fromkeys({lacking})); import npgpt.cli.main, npgpt.testing"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("error, status, sentence", [
    (KeyboardInterrupt(), 130, "npgpt: interrupted"),
    (MemoryError(), 1, "npgpt: out of memory: use a smaller model or batch"),
    (OSError(28, "No space left on device", "runs/x"), 1, "npgpt: No space left on device: runs/x"),
])
def test_what_befalls_a_command_is_one_sentence(error, status, sentence, capsys, monkeypatch):
    def fail(arguments):
        raise error

    monkeypatch.setattr("npgpt.cli.sample.run", fail)
    assert main(["sample"]) == status
    assert capsys.readouterr().err == sentence + "\n"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    run = tiny.new_run(tmp_path_factory.mktemp("runs"), tokenizer="bpe", vocab_size=260, max_iters=1)
    tiny.train_quietly(run)
    return run.path


@pytest.mark.parametrize(("closed", "status"), [
    ("gradcheck relu >&-", 0), ("tokenizer encode tokenizer <&-", 0), ("sample absent 2>&-", 1)])
def test_a_closed_stream_is_one_without_anything(run, closed, status):
    done = shell(f"cd {run} && {NPGPT} {closed}")
    assert done.returncode == status and not done.stderr


def test_what_an_encoding_cannot_show_is_a_question_mark(run):
    done = shell(f"{NPGPT} sample {run} --prompt ü😀x", PYTHONIOENCODING="ascii:strict")
    assert done.returncode == 0 and done.stdout.startswith("??x") and not done.stderr
