"""Writers killed at every call and at random moments, and full disks; checkpoint_worker.py does it."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

WORKER = Path(__file__).with_name("checkpoint_worker.py")


def work(*arguments, within=()):
    command = [*within, sys.executable, WORKER, *arguments]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    if result.returncode == 77:
        pytest.skip(result.stdout.strip())
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


@pytest.mark.parametrize(("scenario", "at_least"), [
    ("Save", {"write": 4, "torn write": 4, "fsync": 6, "rename": 1, "mkdir": 1}),
    ("FirstSave", {"write": 4, "torn write": 4, "fsync": 8, "rename": 1, "mkdir": 3}),
    ("SaveOverDamaged", {"write": 4, "torn write": 4, "fsync": 6, "rename": 2, "mkdir": 1}),
    ("SaveOverOutdated", {"write": 4, "torn write": 4, "fsync": 6, "rename": 2, "mkdir": 1, "unlink": 5}),
    ("Prune", {"rename": 2, "fsync": 1, "unlink": 10}),
])
def test_killed_at_every_call(tmp_path, scenario, at_least):
    kills = work("every-call", scenario, tmp_path)
    assert all(kills[kind] >= count for kind, count in at_least.items()), kills


def test_killed_at_a_hundred_random_moments(tmp_path):
    done = work("random-moments", tmp_path / "run", "100")
    assert done["kills"] == 100 and done["acknowledged"] >= 200, done  # some saved again before


def test_a_file_may_not_grow(tmp_path):
    assert "File too large" in work("file-limit", tmp_path)["sentence"]


def test_the_disk_is_full(tmp_path):
    """A file system of 256 KB of its own, in a name space of mounts that ends with the process."""
    mount = ["unshare", "--map-root-user", "--mount", "sh", "-c",
             'mount -t tmpfs -o size=256k none "$0" || exit 77; [ $# = 0 ] || exec "$@"', tmp_path]
    if not shutil.which("unshare") or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("this machine does not let a process mount a file system")
    assert "No space left on device" in work("disk-full", tmp_path, within=mount)["sentence"]
