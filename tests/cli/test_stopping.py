"""What ends a training without losing it: signals, and an output that fails."""

import contextlib
import os
import signal

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
