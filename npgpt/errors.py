"""The project's own exceptions: whatever a user can cause is one of these, with one sentence that says
what is wrong, where, and what to do. The command line prints that sentence and exits with status 1."""

from typing import Any


class NpgptError(Exception):
    """Base of every error that npgpt raises on purpose."""


class ConfigError(NpgptError):
    """A setting that cannot be used: a wrong value, an unknown key, two settings that exclude each other."""


class DataError(NpgptError):
    """Text or token data that cannot be used: missing, empty, too short, not UTF-8, damaged."""


class TokenizerError(NpgptError):
    """A tokenizer, its files or its input that cannot be used."""


class CheckpointError(NpgptError):
    """A checkpoint that cannot be written, read or trusted."""


class DeviceError(NpgptError):
    """A device that is not there or cannot do what was asked of it."""


class TrainingError(NpgptError):
    """Training that cannot go on: NaN or Inf in loss or gradients, a run folder in use."""


class UsageError(NpgptError):
    """A command line that cannot be understood."""


def shown(value: Any) -> str:
    """A name or a value from a file, short enough for a sentence."""
    return shortened(repr(value), 80)


def shortened(text: str, most: int) -> str:
    """most: characters."""
    return text if len(text) <= most else f"{text[:most - 1]}…"
