"""TensorBoard's event files by tensorboardX (extra `tensorboard`), which only this file imports.

A run's curves become one file, LOGDIR/NAME/events.out.tfevents.npgpt. It is a function of the metrics alone:
writing it again changes nothing, and for a run that has gone on it only grows, which a TensorBoard that is
open follows.
"""

import tempfile
from pathlib import Path

from npgpt.errors import ConfigError
from npgpt.files import atomic_write, make_folder
from npgpt.inspection.metrics import Curve

TAGS = {            # in the order in which a run records them at one step, so that a file need only grow
    "train_loss":        "loss/training",
    "learning_rate":     "learning rate",
    "grad_norm":         "gradient norm",
    "tokens_per_second": "tokens per second",
    "val_loss":          "loss/validation",
}
FILE_VERSION = "brain.Event:2"          # what the first event of a file must say


def write_event_file(curves: dict[str, Curve], begun: float, folder: Path) -> Path:
    """Writes a run's curves into a folder, for `tensorboard --logdir`; returns the file.

    begun: when the run began, in seconds since 1970. The wall time of a value is that plus the seconds
    trained so far, as if the run had never been stopped.  Raises ConfigError if tensorboardX is not installed
    or the file cannot be written.
    """
    content = _events(curves, begun)
    file = folder / "events.out.tfevents.npgpt"
    try:
        make_folder(folder)
        before = file.read_bytes() if file.exists() else b""
        if before and content.startswith(before):
            with file.open("ab") as open_file:
                open_file.write(content[len(before):])
        else:
            with atomic_write(file) as open_file:
                open_file.write(content)
    except OSError as error:
        raise ConfigError(f"cannot write {file}: {error.strerror or error}") from error
    return file


def _events(curves: dict[str, Curve], begun: float) -> bytes:
    """The bytes of an event file: each value an event of its own, by rising steps."""
    try:
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.proto.summary_pb2 import Summary
        from tensorboardX.record_writer import RecordWriter
    except ImportError as error:
        raise ConfigError("event files need tensorboardX: install it by "
                          "pip install 'npgpt[tensorboard]'") from error
    values = [(step, order, begun + seconds, tag, value)
              for order, (key, tag) in enumerate(TAGS.items()) if key in curves
              for step, _, seconds, value in zip(*curves[key], strict=True)]
    with tempfile.TemporaryDirectory() as folder:               # RecordWriter writes to a named file alone
        path   = Path(folder) / "events"
        writer = RecordWriter(str(path))
        writer.write(Event(wall_time=begun, file_version=FILE_VERSION).SerializeToString())
        for step, _, time, tag, value in sorted(values, key=lambda row: row[:2]):
            summary = Summary(value=[Summary.Value(tag=tag, simple_value=value)])
            writer.write(Event(wall_time=time, step=int(step), summary=summary).SerializeToString())
        writer.close()
        return path.read_bytes()
