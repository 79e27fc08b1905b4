"""What ends a training without losing it: signals, and an output that fails."""

import contextlib
import os
import signal

import pytest

from npgpt.cli import training
from npgpt.cli.training import _stop_on_signals


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
