"""No damaged checkpoint is used: neither one of its arrays is read nor its state returned."""

import os
import shutil
import struct

import numpy as np
import pytest
from safetensors import SafetensorError

from npgpt.errors import CheckpointError
from npgpt.training import checkpoint as checkpoint_module
from npgpt.training.checkpoint import load_checkpoint, save_checkpoint

FILES = ["manifest.json", "model.safetensors", "optimizer.safetensors", "state.json"]
HEADER = b'{"w": {"dtype": "F8_E4M3", "shape": [1], "data_offsets": [0, 1]}}'
FLOAT8 = struct.pack("<Q", len(HEADER)) + HEADER + b"\0"     # a sound file of a type that NumPy has not


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A sound checkpoint of under 1 KB, from which an array cannot be read any more."""
    tensors = {"model": {"w": np.array([1.0, -2.0], np.float32)}, "optimizer": {"m": np.array([3.0])}}
    folder = save_checkpoint(tmp_path, 12, tensors, {"loss": 2.5, "text": "Ab"})
    assert load_checkpoint(folder).step == 12
    monkeypatch.setattr(checkpoint_module, "load_file", lambda path: pytest.fail(f"{path} was read"))
    return folder


def refused(folder, what):
    with pytest.raises(CheckpointError) as error:
        load_checkpoint(folder)
    assert str(folder) in str(error.value) and "\n" not in str(error.value), what
    return str(error.value)


@pytest.mark.parametrize("name", FILES)
def test_every_truncation(folder, name):
    whole = (folder / name).read_bytes()
    for length in range(len(whole)):
        (folder / name).write_bytes(whole[:length])
        assert "is damaged" in refused(folder, (name, length))
    for more in (b"\0", b"\n", b" ", whole):
        (folder / name).write_bytes(whole + more)
        refused(folder, (name, more))


@pytest.mark.parametrize("name", FILES)
def test_every_byte_flipped(folder, name):
    whole = (folder / name).read_bytes()
    for position in range(len(whole)):
        for mask in (0x01, 0x20, 0xFF):  # 0x20: the letter in the other case, the same to a lenient reader
            flipped = bytearray(whole)
            flipped[position] ^= mask
            (folder / name).write_bytes(flipped)
            message = refused(folder, (name, position, mask))
        assert name in message or name == "manifest.json"


def test_a_file_missing_or_too_many(folder):
    for name in FILES:
        (folder / name).rename(folder.parent / "away")
        assert "manifest.json" in refused(folder, name)
        (folder.parent / "away").rename(folder / name)
    shutil.copy(folder / "model.safetensors", folder / "more.safetensors")
    assert "more.safetensors" in refused(folder, "one more")
    (folder / "more.safetensors").unlink()
    os.mkfifo(folder / "pipe")
    assert "pipe is no regular file" in refused(folder, "a pipe")


def test_two_files_exchanged(folder):
    (folder / "model.safetensors").rename(folder.parent / "away")
    (folder / "optimizer.safetensors").rename(folder / "model.safetensors")
    (folder.parent / "away").rename(folder / "optimizer.safetensors")
    assert "model.safetensors and optimizer.safetensors" in refused(folder, "exchanged")


def test_manifests_that_are_no_manifests(folder):
    another_version = (folder / "manifest.json").read_bytes().replace(b'checkpoint": 1', b'checkpoint": 2')
    for text in (b"", b"{}", b"[]", b"null", b"[" * 100_000, b"\xff", another_version):
        (folder / "manifest.json").write_bytes(text)
        refused(folder, text[:20])
    assert "no checkpoint" in refused(folder.parent, "a folder without a manifest")
    assert "no checkpoint" in refused(folder / "nowhere", "no folder")


def test_a_manifest_that_fits_files_that_do_not(tmp_path):
    """Whoever writes the manifest anew gets an error, not a traceback, from what is in the files."""
    for number, (name, text) in enumerate([
        ("state.json", b"{"), ("state.json", b"[]"), ("state.json", b'{"step": 1}'), ("state.json", b"\xff"),
        ("state.json", b'{"step": "5", "state": {}}'), ("state.json", b'{"step": 6.0, "state": {}}'),
        ("state.json", b'{"step": 7, "state": []}'), ("state.json", b"[" * 100_000), ("state.json", None),
        ("model.safetensors", b""), ("model.safetensors", b"\xff" * 20), ("model.safetensors", b"12345678{}"),
        ("model.safetensors", FLOAT8),
    ]):
        folder = save_checkpoint(tmp_path, number, {"model": {"w": np.ones(3)}}, {})
        (folder / name).unlink()
        if text is not None:
            checkpoint_module._write(folder / name, [text])
        entries = {}
        for path in folder.iterdir():
            if path.name != "manifest.json":
                content = path.read_bytes()
                path.unlink()
                entries[path.name] = checkpoint_module._write(path, [content])
        (folder / "manifest.json").write_bytes(checkpoint_module._manifest(entries))
        refused(folder, (name, text))


@pytest.mark.parametrize("error", [OSError("x"), ValueError("x"), KeyError("x"), TypeError("x"),
                                   AttributeError("x"), SafetensorError("x")], ids=repr)
def test_whatever_reading_an_array_raises_is_one_sentence(folder, monkeypatch, error):
    """A type that NumPy has not is a TypeError or an AttributeError, as the type may be."""
    def load_file(path):
        raise error

    monkeypatch.setattr(checkpoint_module, "load_file", load_file)
    assert "cannot be read: " in refused(folder, error)
