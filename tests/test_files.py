import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from npgpt.files import atomic_folder, atomic_write, fsync_folder, make_folder

WORKER = Path(__file__).parent / "training" / "checkpoint_worker.py"


def test_written_whole_in_bytes_and_in_text(tmp_path):
    with atomic_write(tmp_path / "a") as file:
        file.write(b"\x00\xff\r\n")
    with atomic_write(tmp_path / "a", "w") as file:
        file.write("ä\n")
    assert (tmp_path / "a").read_bytes() == "ä\n".encode()
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_block_that_raises_changes_nothing(tmp_path):
    path = tmp_path / "a"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), atomic_write(path, "w") as file:
        file.write("new")
        raise KeyboardInterrupt
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_pipe_or_folder_is_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name in ("pipe", "folder", "."):
        with pytest.raises(OSError, match="no regular file"), atomic_write(tmp_path / name):
            pytest.fail("it was opened")
    assert (tmp_path / "pipe").is_fifo()


def test_everything_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    """A kill loses nothing that the kernel was given; a power cut what was not fsynced in this order."""
    done = []

    def fsync(descriptor, fsync=os.fsync):
        fsync(descriptor)
        done.append((str(Path(f"/proc/self/fd/{descriptor}").readlink()), os.fstat(descriptor).st_size))

    def rename(old, new, rename=os.replace):
        rename(old, new)
        done.append("renamed")

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", rename)
    monkeypatch.setattr(os, "rename", rename)
    with atomic_write(tmp_path / "a") as file:
        file.write(b"12345")
    (aside, size), *rest = done
    assert Path(aside).name.startswith(".a.") and size == 5  # when the last byte had left Python's buffer
    assert [event if event == "renamed" else event[0] for event in rest] == ["renamed", str(tmp_path)]

    done.clear()
    make_folder(tmp_path / "b" / "c")
    assert [folder for folder, _ in done] == [str(tmp_path), str(tmp_path / "b")]
    done.clear()
    make_folder(tmp_path / "b" / "c")
    assert not done

    (tmp_path / "e").mkdir()
    (tmp_path / "e" / "notes").touch()
    moved = [str(tmp_path / "e"), "renamed", str(tmp_path / "e")]     # the last file alone
    for name, placed in (("d", []), ("e", moved)):
        done.clear()
        with atomic_folder(tmp_path / name, "last") as aside:
            for file in ("last", "other"):
                (aside / file).touch()
        events = [event if event == "renamed" else event[0] for event in done]
        assert {*events[:2]} == {str(aside / "last"), str(aside / "other")}
        assert events[2:] == [str(aside), "renamed", *placed, str(tmp_path)]


def test_make_folder_where_a_file_stands(tmp_path):
    (tmp_path / "a").write_text("")
    with pytest.raises(OSError):
        make_folder(tmp_path / "a" / "b")
    with pytest.raises(OSError):
        fsync_folder(tmp_path / "a")


def test_killed_at_every_call(tmp_path):
    command = [sys.executable, WORKER, "every-call", "AtomicWrite", tmp_path]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    if result.returncode == 77:
        pytest.skip(result.stdout.strip())
    assert result.returncode == 0, result.stderr
    kills = json.loads(result.stdout)
    assert kills["write"] == kills["torn write"] >= 10 and kills["fsync"] == 2 and kills["rename"] == 1


@pytest.mark.parametrize("works", [True, False])
def test_on_macos_the_cache_of_the_drive_is_emptied_too(works, tmp_path, monkeypatch):
    asked = []

    def full(descriptor, command):
        asked.append(command)
        if not works:
            raise OSError(45, "Operation not supported")

    monkeypatch.setattr(fcntl, "F_FULLFSYNC", 51, raising=False)
    monkeypatch.setattr(fcntl, "fcntl", full)
    with atomic_write(tmp_path / "a") as file:
        file.write(b"a")
    assert asked == [51, 51] and (tmp_path / "a").read_bytes() == b"a"        # the file, and its folder
