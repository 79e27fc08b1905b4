"""A preparation that was stopped or killed goes on, and ends in the same bytes; a folder that is another's or
done is left alone.
"""

import fcntl
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import preparing
import pytest

from npgpt.data import parts
from npgpt.errors import DataError

HERE = Path(__file__).parent


def test_stopped_at_every_step_it_goes_on_and_ends_in_the_same_bytes(tmp_path, texts, monkeypatch):
    done = []
    for name in ("read_segment", "_load", "write_shard"):                           # read, encode, write
        function = getattr(parts, name)

        def counted(*arguments, name=name, function=function):
            done.append((name, str(arguments[0]) if name != "_load" else len(done)))
            return function(*arguments)

        monkeypatch.setattr(parts, name, counted)
    steps = []
    preparing.run(tmp_path / "texts", tmp_path / "quiet", progress=lambda *step: steps.append(step))
    quiet, work = preparing.contents(tmp_path / "quiet"), len(done)
    assert len(steps) > 15

    class Stop(Exception):
        pass

    for last in range(len(steps)):
        calls = iter(range(len(steps)))
        done.clear()

        def stop(*step, calls=calls, last=last):
            if next(calls) == last:
                raise Stop

        with pytest.raises(Stop):
            preparing.run(tmp_path / "texts", tmp_path / "out", progress=stop)
        assert not (tmp_path / "out/manifest.json").exists()
        (tmp_path / "out/.train-00000.bin.77.partial").write_text("of a process that was killed")
        preparing.run(tmp_path / "texts", tmp_path / "out")
        assert preparing.contents(tmp_path / "out") == quiet and len(done) == work   # nothing was done twice
        shutil.rmtree(tmp_path / "out")


def test_stopped_between_the_files_of_a_part_it_goes_on(tmp_path, texts, monkeypatch):
    preparing.run(tmp_path / "texts", tmp_path / "quiet")
    replace = Path.replace

    class Stop(Exception):
        pass

    for kind in "text", "records", "signatures", "counts", "train.0", "val.0":
        def stop(aside, path, name=f"00000.{kind}"):
            replace(aside, path)
            if path.name == name:
                raise Stop

        with monkeypatch.context() as patch, pytest.raises(Stop):
            patch.setattr(Path, "replace", stop)
            preparing.run(tmp_path / "texts", tmp_path / "out")
        (tmp_path / "out/unfinished/tokenizer").mkdir()                       # killed while it was written
        (tmp_path / "out/unfinished/tokenizer/.merges.txt.77.partial").touch()
        preparing.run(tmp_path / "texts", tmp_path / "out")
        assert preparing.contents(tmp_path / "out") == preparing.contents(tmp_path / "quiet")
        shutil.rmtree(tmp_path / "out")


def test_killed_at_fifty_random_moments(tmp_path, texts):
    done = subprocess.run([sys.executable, HERE / "preparation_worker.py", tmp_path, "50"], text=True,
                          capture_output=True, timeout=100, env=os.environ | {"OPENBLAS_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["kills"] >= 50 and said["finished"] >= 5 and said["resumed"] >= 10, said


def test_killed_with_its_workers_at_work(tmp_path, texts):
    """They leave as well, and what two workers began one can finish."""
    preparing.run(tmp_path / "texts", tmp_path / "quiet")
    code = ("import preparing, sys; from pathlib import Path; preparing.small_parts(); "
            "print('begun', flush=True); "
            "preparing.run(Path('texts'), Path('out'), workers=2, progress=lambda *a: print(*a, flush=True))")
    for lines in (3, 8):
        with subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, stdout=subprocess.PIPE, text=True,
                              env=os.environ | {"PYTHONPATH": f"{HERE.parent}:{HERE.parents[1]}"}) as process:
            for _ in range(lines):
                process.stdout.readline()
            workers = [int(child) for child in
                       Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
            process.kill()
        assert workers
        limit = time.monotonic() + 10
        while any(Path(f"/proc/{worker}/cwd").exists() for worker in workers):      # a zombie has none
            assert time.monotonic() < limit, "a worker outlives the process that started it"
            time.sleep(0.05)
    os.chdir(tmp_path)
    preparing.run(Path("texts"), Path("out"))
    out, quiet = preparing.contents(tmp_path / "out"), preparing.contents(tmp_path / "quiet")
    assert {name for name in out if out[name] != quiet.get(name)} <= {"manifest.json"}   # the path is another
    assert out.keys() == quiet.keys()


def test_a_worker_that_fails_is_heard_and_ends_the_work(tmp_path, texts):
    (tmp_path / "texts/b/two.jsonl.gz").write_bytes(b"no gzip")
    with pytest.raises(DataError, match="cannot read .*two.jsonl.gz"):
        preparing.run(tmp_path / "texts", tmp_path / "out", workers=2)
    assert not (tmp_path / "out/manifest.json").exists() and not list((tmp_path / "out").glob("*.bin"))


def test_a_folder_that_holds_something_else_is_refused(tmp_path, texts):
    def refused(says, out="out", **options):
        before = preparing.contents(tmp_path / out)
        with pytest.raises(DataError, match=says) as error:
            preparing.run(tmp_path / "texts", tmp_path / out, **options)
        assert "\n" not in str(error.value) and preparing.contents(tmp_path / out) == before

    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/mine.txt").write_text("do not touch")
    refused("notes exists and is not an empty folder: choose another --out-dir", "notes")
    (tmp_path / "notes/manifest.json").write_text("{}")
    refused("notes exists and is not an empty folder", "notes")

    def stop(step, *numbers):
        if step == "encoding":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        preparing.run(tmp_path / "texts", tmp_path / "out", progress=stop)
    refused("another preparation: its seed is 1337, not 1; give what it was begun with", seed=1)
    with pytest.raises(DataError, match="out is not fully prepared: run the same npgpt prepare again"):
        from npgpt.data.prepared import is_prepared
        is_prepared(tmp_path / "out")
    with (tmp_path / "out/unfinished/lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        refused("another process is preparing .*out: wait")
    source = tmp_path / "texts/a/00.txt"
    times, content = source.stat(), source.read_bytes()
    os.utime(source, (0, 0))
    refused("the sources have changed since")
    os.utime(source, ns=(times.st_atime_ns, times.st_mtime_ns))
    preparing.run(tmp_path / "texts", tmp_path / "out")

    refused("another preparation: its val_fraction is 0.25, not 0.5", val_fraction=0.5)
    source.write_bytes(content + b"x")
    refused("another preparation: its bytes is")
    source.write_bytes(content)
    source.rename(renamed := source.with_name("00a.txt"))                     # still before 01.txt
    refused("another preparation: its names and sizes is")
    renamed.rename(source)
    (tmp_path / "out/manifest.json").write_text("{")
    refused("cannot read .*manifest.json")


def test_a_finished_folder_is_left_as_it_is(tmp_path, texts):
    first = preparing.run(tmp_path / "texts", tmp_path / "out")
    def times():
        return {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*") if path.is_file()}

    before = times()
    (tmp_path / "out/unfinished").mkdir()  # killed while it was removed
    (tmp_path / "out/unfinished/plan.json").write_text("{}")
    (tmp_path / "out/.train-00000.bin.77.partial").write_text("left by a killed process")
    assert preparing.run(tmp_path / "texts", tmp_path / "out") == first
    assert times() == before
