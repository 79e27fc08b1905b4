"""What ends a training without losing it: signals, and an output that fails."""

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import termios

import pytest
import tiny

from npgpt.cli import training
from npgpt.cli.training import _stop_on_signals
from npgpt.training.checkpoint import list_checkpoints


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


def test_nohup_is_heeded():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with _stop_on_signals() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop()
    finally:
        signal.signal(signal.SIGHUP, before)


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
             "--max-iters", "1000000", "--sample-tokens", "0"]
    with subprocess.Popen(train, cwd=tmp_path, stdin=others, stdout=others, stderr=others,
                          start_new_session=True,
                          preexec_fn=with_a_terminal) as process:
        try:
            os.close(others)
            while not (steps := list_checkpoints(tmp_path / "run")):
                os.read(terminal, 10_000)
            os.close(terminal)
            assert process.wait(timeout=30) == 130
        finally:
            process.kill()
    assert list_checkpoints(tmp_path / "run")[0] > steps[0]
