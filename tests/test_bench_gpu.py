"""What tools/bench_gpu.py will print on a GPU, tried on the stand-in for CuPy, whose clock goes on by what
launches move: a GPU of 1 GB/s, whose every number can be told beforehand.
"""

import importlib
import io
import os
import re
import select
import signal
import subprocess
import sys
import types
from pathlib import Path

import cuda_on_cpu
import numpy as np
import pytest
import strict_cupy
from kernels.test_cuda_twins import TWINS, WITH_TWIN, placed
from kernels.test_twins import case_in

from npgpt.inspection.examples import Sizes
from npgpt.inspection.metrics import Curve
from npgpt.kernels.cuda import launch, rotary
from npgpt.models import GPTConfig

TOOLS = Path(__file__).parents[1] / "tools"


@pytest.fixture
def tool(monkeypatch):
    """A function: the module of tools/ of that name."""
    monkeypatch.syspath_prepend(TOOLS)
    return importlib.import_module


@pytest.fixture
def cupy(monkeypatch, tool):
    """The stand-in as a GPU of 1 GB/s, whose kernels are counted and not run; and small arrays."""
    module, machine = strict_cupy.install(monkeypatch, with_twins=True), strict_cupy.machine
    cuda_on_cpu.launcher.only_counts, machine.order = True, "C"

    class Event:
        def record(self):
            self.bytes = sum(moved for _, moved in machine.launches)

        def synchronize(self):
            pass

    def copyto(target, source):
        machine.count("copyto", target, source)

    module.cuda.Event, module.copyto, module.empty_like = Event, copyto, strict_cupy.FUNCTIONS["zeros_like"]
    module.cuda.get_elapsed_time = lambda begun, ended: (ended.bytes - begun.bytes) / 1e6       # milliseconds
    module.cuda.runtime.getDeviceProperties = lambda device: {"name": b"a GPU of 1 GB/s"}
    module.get_default_memory_pool = lambda: types.SimpleNamespace(total_bytes=lambda: 5_000_000_000)
    twins = tool("gpu_twins")
    monkeypatch.setattr(twins, "GPT2", GPTConfig(65, 64, 1, 2, 64))
    monkeypatch.setattr(twins, "ADAMW", 4096)
    monkeypatch.setattr(twins, "ROUNDS", 3)
    monkeypatch.setattr(twins, "LARGE", 64)
    monkeypatch.setattr(twins, "copy_bandwidth", lambda cupy: 1e9)
    yield module
    cuda_on_cpu.launcher.__init__()


def rows(text):
    """first word of a line → the numbers in it"""
    return {line.split()[0]: [float(number.replace(",", "")) for number in re.findall(r" (\d[\d,.]*)", line)]
            for line in text.splitlines() if line.split()}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_twin_has_a_row(cupy, tool, dtype):
    assert {name.partition(",")[0] for name in tool("gpu_twins").calls(cupy, 1, dtype)} == set(TWINS)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_twin_that_moves_what_it_must_is_as_fast_as_a_copy(cupy, tool, capsys, dtype):
    tool("gpu_twins").time_twins(["gelu", "layernorm", "attention"], dtype, 1)
    table = rows(capsys.readouterr().out)
    size  = np.dtype("float32").itemsize if dtype == "float32" else 2
    for name, arrays in {"gelu_tanh_forward": 3 * 64 * 256, "gelu_tanh_backward": 3 * 64 * 256,
                         "attention_forward": 4 * 64 * 64}.items():
        formula, twin, ratio, _, share, *_ = table[name]
        assert twin == pytest.approx(arrays * size / 1e6, abs=1e-3) and share == pytest.approx(100, abs=7)
        assert ratio == pytest.approx(formula / twin, rel=0.1) and (ratio > 5 or name == "gelu_tanh_backward")
    assert {"layernorm_backward", "residual_layernorm_forward"} < set(table) and "adamw" not in table


def test_a_twin_is_timed_behind_a_large_copy(cupy, tool):
    """Which is not counted, and leaves Python time to queue what is."""
    machine, array = strict_cupy.machine, cupy.zeros(1000, "float32")
    assert tool("gpu_twins").seconds(cupy, lambda: machine.count("twin", array)) == 4000 / 1e9
    assert [name for name, _ in machine.launches[-2:]] == ["copyto", "twin"]


def test_twins_that_are_stopped_say_how_far_they_came(cupy, tool, monkeypatch, capsys):
    tools   = tool("gpu_twins")
    measure = tools.times_of

    def stopped(cupy, call, bandwidth):
        if call.op.__name__ == "layernorm_forward":
            raise KeyboardInterrupt
        return measure(cupy, call, bandwidth)

    monkeypatch.setattr(tools, "times_of", stopped)
    with pytest.raises(KeyboardInterrupt):
        tools.time_twins(["layernorm"], "float32", 1)
    assert {"residual_layernorm_forward", "residual_layernorm_backward"} <= set(rows(capsys.readouterr().out))


def test_a_twin_that_was_not_called_is_told_of(cupy, tool, capsys, monkeypatch):
    monkeypatch.setattr(rotary, "_turned", lambda *_: NotImplemented)
    tool("gpu_twins").time_twins(["rotary_forward"], "bfloat16", 1)
    assert "rotary_forward: its twin does not take bfloat16" in capsys.readouterr().out


def test_what_is_counted_is_what_a_step_launches(tool, monkeypatch, capsys, cupy):
    twins = tool("gpu_twins")
    monkeypatch.setattr(twins, "stand_in", lambda: strict_cupy)
    twins.count_step("bfloat16")
    table = rows(capsys.readouterr().out)
    assert table["formulas"][0] > 2 * table["twins"][0] > 0
    assert {name for name, _ in strict_cupy.machine.launches} >= {"adamw_narrow<bfloat16>",
                                                                  "cross_entropy_in_place<bfloat16>"}
    twins.count_twins(["adamw"], "float32")
    # Its weights, moments and gradients once, w, m, v once more, the scale; and the scale was filled in.
    assert rows(capsys.readouterr().out)["adamw"][1] == 2


def test_the_profile_is_all_of_a_step(cupy, tool, capsys):
    tool("gpu_step").profile("tiny", "float32", 0.0, steps=1)
    table = rows(capsys.readouterr().out)
    whole = table.pop("the")
    assert table["gelu_tanh_forward"][0] == table["layernorm_forward"][0] / 2 == 1
    assert table["linear_backward"][0] == 4 and table["embedding_backward"][0] == 2
    parts = [numbers[-1] for name, numbers in table.items() if "_" in name or name in ("adamw", "before")]
    assert sum(parts) == pytest.approx(100, abs=1) and whole[-1] == 100


def test_competitors_on_the_stand_in_say_what_their_library_holds(cupy, tool, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n\n"))
    step = tool("gpu_step")
    monkeypatch.setitem(step.LARGE, "cuda", 16)
    monkeypatch.setitem(step.TURN, "cuda", 20.0)
    monkeypatch.setattr(step, "_seconds", lambda work, wait: (work(), 5.0)[1])
    taken = iter([5_000_000_000, 7_000_000_000])            # the latter with the product's matrix
    monkeypatch.setattr(cupy, "get_default_memory_pool",
                        lambda: types.SimpleNamespace(total_bytes=lambda: next(taken)))
    step.compete("npgpt", "tiny", "bfloat16", 0.1)
    lines = capsys.readouterr().out.splitlines()
    assert lines == [f"{5 / 4} {2 * 16**3 / 5} 5000000000"] * 2               # four steps in five seconds


def test_competitors_take_turns_and_those_that_cannot_are_left_out(tool, capsys):
    pytest.importorskip("torch")
    command = [sys.executable, str(TOOLS / "bench_gpu.py"), "compete"]
    options = ["--shape", "tiny", "--device", "cpu", "--dtype", "float32"]
    turns   = tool("competitors").take_turns(
        {"npgpt": [*command, "npgpt", *options], "torch eager": [*command, "torch eager", *options],
         "torch compiled": [sys.executable, "-c", "raise SystemExit(1)"]}, 2, ("torch compiled",))
    assert {name: len(numbers) for name, numbers in turns.items()} == {"npgpt": 2, "torch eager": 2}
    assert "torch compiled ended and is left out" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="npgpt ended early"):
        tool("competitors").take_turns({"npgpt": [sys.executable, "-c", ""]}, 1)


def test_the_table_of_competitors(tool, capsys):
    tool("gpu_step").table_of({"npgpt": [[0.030, 8e14, 6e9], [0.032, 8e14, 7e9], [0.031, 8e14, 7.5e9]],
                               "torch eager": [[0.060, 7e14, 9e9], [0.064, 7e14, 9e9], [0.062, 7e14, 9e9]]},
                              "gpt2", "a GPU", 0.0)
    table = rows(capsys.readouterr().out)
    # 12 layers of width 768: 6 operations a token and weight, and attention's 12 L C T
    assert table["npgpt"][:2] == [31.0, 528516] and table["npgpt"][-1] == 7.5
    assert table["npgpt"][-2] == pytest.approx(
        100 * 528516 * (6 * (12 * 12 * 768**2 + 768 * 50304) + 12 * 12 * 1024 * 768) / 8e14, abs=1)
    assert table["torch"][0] == 62.0 and 2.0 in table["torch"]


def curve(steps, values):
    return Curve(np.array(steps, float), np.zeros(len(steps)), np.arange(float(len(steps))), np.array(values))


@pytest.mark.parametrize(("drift", "near"), [(1e-4, True), (1e-3, False)])
def test_losses_that_are_apart_are_told(tool, capsys, drift, near):
    steps  = range(1, 201)
    losses = np.linspace(7, 3, 200)
    curves = {"CPU": curve(steps, losses), "float32": curve(steps, losses * (1 + drift)),
              "bfloat16": curve(steps, losses * 1.01)}
    assert tool("gpu_training").table_of_losses(curves) is near
    assert f"{drift:.1e}" in capsys.readouterr().out


def test_losses_are_followed_in_the_types_that_the_gpu_has(cupy, tool, monkeypatch):
    training, trained = tool("gpu_training"), []
    monkeypatch.setattr(training, "train", lambda run, *options: trained.append(run.name))
    monkeypatch.setattr(training, "read_metrics", lambda run: {"train_loss": None})
    monkeypatch.setattr(training, "table_of_losses", lambda curves: True)
    for strict_cupy.machine.capability in "75", "80":
        training.losses()
    assert trained.count("float16") == 2 and trained.count("bfloat16") == 1


@pytest.mark.parametrize(("best", "good"), [(1.469, True), (1.47, True), (1.4701, False)])
def test_shakespeares_best_loss_is_judged(cupy, tool, monkeypatch, capsys, best, good):
    training = tool("gpu_training")
    monkeypatch.setattr(training, "train", lambda run, *options: None)
    curves = {"val_loss": curve([0, 250, 500], [4, best, 1.5])}
    monkeypatch.setattr(training, "read_metrics", lambda run: curves)
    assert training.shakespeare("text", "bfloat16") is good
    assert "at step 250, after 1 s; at the end 1.5000" in capsys.readouterr().out


def test_all_goes_on_after_what_fails_and_what_takes_too_long(tool, monkeypatch, tmp_path, capsys):
    bench, script, out = tool("bench_gpu"), tmp_path / "parts.py", tmp_path / "new" / "out"
    script.write_text("import sys, time\nprint(sys.argv[1:])\n"
                      "time.sleep(60 * (sys.argv[1] == 'step'))\nsys.exit(sys.argv[1] == 'tests')\n")
    monkeypatch.setattr(bench, "HERE", script)
    monkeypatch.setattr(bench, "PARTS", dict.fromkeys(bench.PARTS, 10) | {"step": 2})
    monkeypatch.setattr(sys, "argv", ["bench_gpu", "all", "--out", str(out), "--data", "t.txt",
                                      "--dtype", "float16", "--parts", "tests", "step", "shakespeare"])
    assert bench.main() == 1
    said = capsys.readouterr().out
    assert "tests: failed (1)" in said and "step: took too long" in said and "shakespeare: fine" in said
    assert (out / "shakespeare.txt").read_text() \
        == "['shakespeare', '--data', 't.txt', '--dtype', 'float16']\n"
    assert (out / "tests.txt").read_text() == "['tests']\n"


def test_all_leaves_out_what_might_not_end_within_its_limit_and_names_it(tool, monkeypatch, tmp_path, capsys):
    """Of 100 seconds: 60 are left, and 40 after a part that took less than it might have."""
    bench, ran = tool("bench_gpu"), []
    clock = iter([0, 0, 0, 40, 40, 60])                    # when it begins; before each part
    monkeypatch.setattr(bench.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(bench, "ending_of", lambda command, output, limit: ran.append(command[2]) or "fine")
    monkeypatch.setattr(bench, "PARTS", {"tests": 120, "step": 90, "twins": 51, "profile": 50, "losses": 30})
    monkeypatch.setattr(sys, "argv", ["bench_gpu", "all", "--out", str(tmp_path), "--limit", "100"])
    assert bench.main() == 0
    assert ran == ["step", "profile", "losses"]
    assert capsys.readouterr().out.splitlines()[-1] \
        == "not run, for they might not end within 100 s: --parts tests twins"


def test_a_command_of_ten_minutes_holds_the_first_parts_of_all(tool):
    bench = tool("bench_gpu")
    parts = list(bench.PARTS)
    assert bench.LIMIT <= 600 - 4 * bench.GRACE and parts.index("memcheck") < parts.index("racecheck")
    assert sum(bench.PARTS[name] + bench.GRACE for name in parts[:2]) <= bench.LIMIT
    assert all(limit + bench.GRACE <= bench.LIMIT for limit in bench.PARTS.values())


def test_races_are_looked_for_in_every_twin_that_has_shared_memory(cupy, tool, monkeypatch):
    """And not in all, for under compute-sanitizer tests take many times as long."""
    words, without, original = tool("bench_gpu").OF_SHARED, [], launch.launch
    for label in WITH_TWIN:
        shared: list[int] = []
        monkeypatch.setattr(launch, "launch", lambda *arguments, shared_=shared, **options: (
            shared_.append(options.get("shared", 0)), original(*arguments, **options)))
        case     = case_in(label, "float32", Sizes(), 0)
        y, saved = case.forward(*placed(case.inputs))
        case.backward(y, saved)
        chosen = any(word in label for word in words)
        assert chosen or not any(shared), label
        without += [] if chosen else [label]
    assert {"swiglu", "rotary", "residual"} < set(without)


@pytest.mark.parametrize("ends", ["with `all`", "by itself", "when it takes too long"])
def test_nothing_that_a_part_has_started_outlives_it(tmp_path, ends):
    """A part's child, deaf to SIGTERM, has a pipe open, whose end the test sees when nobody has any more."""
    pipe, may_end, script = tmp_path / "pipe", tmp_path / "may end", tmp_path / "parts.py"
    os.mkfifo(pipe)
    child = f"""if True:
        import os, signal, time
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        os.write(os.open({str(pipe)!r}, os.O_WRONLY), b"here")
        time.sleep(60)"""
    script.write_text(f"""if True:
        import os, subprocess, sys, time
        subprocess.Popen([sys.executable, "-c", {child!r}])
        while not os.path.exists({str(may_end)!r}): time.sleep(0.01)
        time.sleep({0 if ends == "by itself" else 60})""")
    bench = f"""if True:
        import pathlib, sys
        sys.path.insert(0, {str(TOOLS)!r})
        import bench_gpu
        bench_gpu.HERE, bench_gpu.GRACE = pathlib.Path({str(script)!r}), 0.5
        bench_gpu.PARTS["tests"] = {1 if ends == "when it takes too long" else 50}
        sys.argv = ["bench_gpu", "all", "--out", {str(tmp_path / "out")!r}, "--parts", "tests"]
        sys.exit(bench_gpu.main())"""
    with subprocess.Popen([sys.executable, "-c", bench]) as process, pipe.open("rb", buffering=0) as read:
        assert read.read(4) == b"here"
        may_end.touch()
        if ends == "with `all`":
            process.send_signal(signal.SIGTERM)
        assert select.select([read], [], [], 20)[0] and read.read() == b"", "the child goes on"
        assert process.wait(20) == {"with `all`": 130, "by itself": 0, "when it takes too long": 1}[ends]
