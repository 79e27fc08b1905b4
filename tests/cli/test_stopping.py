"""What ends a training without losing it: signals, a full disk, an output that fails."""

import contextlib
import fcntl
import importlib
import os
import random
import re
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest
import tiny
from commands import refused

from npgpt.cli import training
from npgpt.cli.main import main
from npgpt.cli.training import _stop_on_signals
from npgpt.training.checkpoint import list_checkpoints, step_of
from npgpt.training.trainer import Trainer


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny.write_text(tmp_path)
    return tmp_path


@contextlib.contextmanager
def broken(descriptor):
    """Within the block, the descriptor is a pipe that nobody reads."""
    (reading, writing), kept = os.pipe(), os.dup(descriptor)
    os.close(reading)
    os.dup2(writing, descriptor)
    os.close(writing)
    try:
        yield
    finally:
        os.dup2(kept, descriptor)
        os.close(kept)


def test_a_signal_is_noted_where_nobody_can_be_told():
    with _stop_on_signals() as stop, broken(2):
        os.kill(os.getpid(), signal.SIGINT)
        assert stop()


def test_two_interrupts_at_once_are_one_and_a_later_one_quits(capfd, monkeypatch):
    monkeypatch.setattr(training, "AGAIN", 1e6)
    with _stop_on_signals() as stop:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
        assert stop()
        monkeypatch.setattr(training, "AGAIN", 0)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert capfd.readouterr().err.count("stopping after this step") == 1
    monkeypatch.setattr(training, "AGAIN", 1e6)
    with _stop_on_signals():
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):                                # which is no echo of the first
            os.kill(os.getpid(), signal.SIGINT)


def test_a_forked_rank_that_gets_the_signal_too_says_nothing(capfd):
    with _stop_on_signals():
        child = os.fork()
        if not child:
            os.kill(os.getpid(), signal.SIGTERM)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
    assert capfd.readouterr().err == ""


def test_nohup_is_heeded():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with _stop_on_signals() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop()
    finally:
        signal.signal(signal.SIGHUP, before)


@contextlib.contextmanager
def start(folder, *flags):
    """`npgpt train` in a process of its own, long enough to be stopped. It heeds SIGHUP even where these
    tests run under nohup, and ends with them.
    """
    with subprocess.Popen(
            [sys.executable, "-m", "npgpt", "train", "--data", "text.txt", *tiny.FLAGS,
             "--max-iters", "1000000", "--eval-interval", "100", "--out-dir", "run", *flags],
            cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),
            env=os.environ | {"OMP_NUM_THREADS": "1"}) as process:
        try:
            yield process
        finally:
            process.kill()


def wait_for(process, text):
    for line in process.stdout:
        if text in line:
            return
    raise AssertionError(process.stderr.read())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGXCPU])
def test_a_signal_saves_once_and_exits_with_130(folder, number, capsys):
    with start(folder) as process:
        wait_for(process, "step     12/")
        process.send_signal(number)
        said, errors = process.communicate(timeout=30)
    assert process.returncode == 130 and "Traceback" not in errors
    assert "stopping after this step and saving" in errors and "npgpt train --resume run" in said
    step = step_of(list_checkpoints(Path("run"))[0])
    assert step >= 12 and not list(Path("run/checkpoints").glob(".*"))
    assert main(["train", "--resume", "run", "--max-iters", str(step + 3)]) == 0
    assert f"going on at step {step}" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["train", "finetune"])
def test_an_interrupt_before_there_is_a_step_to_save_quits_at_once(folder, command, monkeypatch, capsys):
    assert main(["train", "--data", "text.txt", *tiny.FLAGS, "--max-iters", "1", "--out-dir", "base"]) == 0
    module = importlib.import_module(f"npgpt.cli.{command}")
    monkeypatch.setattr(module, "create_run", lambda *arguments: os.kill(os.getpid(), signal.SIGINT))
    capsys.readouterr()
    model = ["base"] if command == "finetune" else []
    assert main([command, *model, "--data", "text.txt", "--out-dir", "run"]) == 130
    assert capsys.readouterr().err == "npgpt: interrupted\n" and not Path("run").exists()


def test_a_second_interrupt_quits_at_once(folder):
    with start(folder, "--gradient-accumulation-steps", "100000") as process:            # steps of minutes
        wait_for(process, "validation loss")
        wait_for(process, "    | ")
        while not list_checkpoints(folder / "run"):
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        assert "stopping after this step" in process.stderr.readline() + process.stderr.readline()
        process.send_signal(signal.SIGINT)
        said, errors = process.communicate(timeout=30)
    assert process.returncode == 130 and errors == "npgpt: interrupted\n" and "--resume" not in said


def test_a_second_trainer_is_refused_while_the_first_goes_on(folder, capsys):
    with start(folder) as process:
        wait_for(process, "step     12/")
        before = Path("run/config.toml").read_text()
        refused(capsys, 1, "training in run", "train", "--resume", "run")
        refused(capsys, 1, "training in run", "train", "--resume", "run", "--max-iters", "7")
        assert Path("run/config.toml").read_text() == before
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)
    assert process.returncode == 130


def test_a_run_that_fails_before_its_first_step_is_done_leaves_nothing(folder, monkeypatch, capsys):
    """As one for which a GPU's memory is too small: what it would be resumed with is what failed."""
    update = Trainer.update

    def fail_from(step):
        def step_of_memory(self, at):
            if at >= step:
                raise MemoryError
            return update(self, at)
        monkeypatch.setattr(Trainer, "update", step_of_memory)

    fail_from(0)
    command = ["train", "--data", "text.txt", *tiny.FLAGS, "--workers", "1"]
    refused(capsys, 1, "out of memory", *command)
    refused(capsys, 1, "out of memory", *command, "--out-dir", "mine/run")
    assert sorted(path.name for path in folder.rglob("*")) == ["mine", "text.txt"]
    fail_from(1)
    refused(capsys, 1, "out of memory", *command)
    fail_from(0)
    refused(capsys, 1, "out of memory", "train", "--resume", "runs/quick")
    assert [step_of(checkpoint) for checkpoint in list_checkpoints(Path("runs/quick"))] == [0]


def test_a_full_disk_is_one_sentence_and_the_last_checkpoint_loads(folder, capsys):
    """The limit on the size of a file lets everything through but the optimiser's state of a larger model."""
    assert main(["train", "--data", "text.txt", *tiny.FLAGS, "--out-dir", "run"]) == 0
    code = ("import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000)); "
            "from npgpt.cli.main import main; sys.exit(main(sys.argv[1:]))")
    done = subprocess.run([sys.executable, "-c", code, "train", "--resume", "run", "--max-iters", "30"],
                          capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and done.stderr.count("\n") == 1, done.stderr
    assert "cannot save the checkpoint" in done.stderr and "File too large" in done.stderr
    assert list_checkpoints(Path("run"))[0].name == "step-000020"
    assert main(["sample", "run"]) == 0


def test_killed_at_random_moments_a_run_ends_as_if_it_had_not_been(folder):
    """SIGKILL during `npgpt train`, again and again, until it gets to the end; compared with a quiet run."""
    flags = ["--data", "text.txt", *tiny.FLAGS, "--max-iters", "60", "--eval-interval", "5",
             "--sample-tokens", "0"]
    assert main(["train", *flags, "--out-dir", "quiet"]) == 0
    patience, kills, command = random.Random(0), 0, ["train", *flags, "--out-dir", "run"]
    while not Path("run/checkpoints/step-000060").exists():
        with subprocess.Popen([sys.executable, "-m", "npgpt", *command], stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, text=True) as process:
            said = [process.stdout.readline() for _ in range(patience.randrange(5, 10))]
            time.sleep(patience.random() * 0.02)
            process.kill()
            kills += 1
        assert kills < 40, said
        command = ["train", "--resume", "run"]
    assert kills >= 3
    assert main(["train", "--resume", "run"]) == 0
    quiet, run = (list_checkpoints(Path(name))[0] for name in ("quiet", "run"))
    for name in ("model.safetensors", "optimizer.safetensors"):
        assert (run / name).read_bytes() == (quiet / name).read_bytes()


@pytest.mark.parametrize("output, told", [("> /dev/full", "No space left"), ("| true", "Broken pipe"),
                                          ("2>&1 | true", ""), ("> /dev/full 2>&1", "")])
def test_training_goes_on_where_its_output_fails(tmp_path, output, told):
    tiny.write_text(tmp_path)
    train = f"{sys.executable} -m npgpt train --data text.txt --out-dir run {' '.join(tiny.FLAGS)} {output}"
    done = subprocess.run(f"{train}; exit ${{PIPESTATUS[0]}}", shell=True, executable="/bin/bash", text=True,
                          cwd=tmp_path, capture_output=True, timeout=60,
                          env={name: value for name, value in os.environ.items()
                               if name != "PYTHONUNBUFFERED"})                # as a user has it
    assert done.returncode == 0 and not done.stdout
    assert told in done.stderr and done.stderr.count("\n") == bool(told), done.stderr
    assert list_checkpoints(tmp_path / "run")[0].name == "step-000020"


def with_a_terminal():
    """Its own, and not under nohup, though these tests may be."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def test_a_closed_terminal_saves(tmp_path):
    """With the live line, whose thread also finds it gone."""
    tiny.write_text(tmp_path)
    terminal, others = os.openpty()
    train = [sys.executable, "-m", "npgpt", "train", "--data", "text.txt", "--out-dir", "run", *tiny.FLAGS,
             "--max-iters", "1000000", "--eval-interval", "1000000", "--sample-tokens", "0"]
    with subprocess.Popen(train, cwd=tmp_path, stdin=others, stdout=others, stderr=others,
                          start_new_session=True,
                          preexec_fn=with_a_terminal) as process:
        try:
            os.close(others)
            shown = b""
            while not re.search(rb"[1-9]\d*/1000000", shown):               # past the evaluation at 0
                shown += os.read(terminal, 10_000)
            os.close(terminal)
            assert process.wait(timeout=30) == 130
        finally:
            process.kill()
    assert step_of(list_checkpoints(tmp_path / "run")[0]) > 0
