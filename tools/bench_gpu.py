"""What only an NVIDIA GPU can show of npgpt, part by part or in one go; and what can be counted without one:

    python tools/bench_gpu.py all --out FOLDER --data tinyshakespeare.txt
    python tools/bench_gpu.py step                  # GPT-2 124M in bfloat16 beside PyTorch's
    python tools/bench_gpu.py twins layernorm adamw
    python tools/bench_gpu.py count step

Formula and twin, npgpt and PyTorch take turns; numbers are medians. `PART --help` tells of a part's options.
Needs CuPy; step needs PyTorch too, tests pytest and hypothesis, memcheck, racecheck and synccheck these and
compute-sanitizer, count nothing but npgpt, and host CuPy over a pretended GPU.
"""

import argparse
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from npgpt.errors import NpgptError

HERE  = Path(__file__).resolve()
DTYPE = "bfloat16"
PARTS = {                                   # of `all`, those first that tell most: seconds at most
    "tests": 240, "step": 240, "twins": 120, "profile": 60, "memcheck": 180, "losses": 180, "racecheck": 180,
    "shakespeare": 300, "synccheck": 120}
OF_A_TYPE = ("step", "profile", "twins", "shakespeare")
LIMIT     = 560                             # seconds for all: a GPU is often lent for ten minutes
GRACE     = 10                              # seconds to say what one that takes too long has found until then
TWINS     = "gives_what_its_formula_gives"  # tests of every twin; and which are of shared memory
OF_SHARED = ("attention", "norm", "cross_entropy", "embedding", "linear")


def main() -> int:
    options = parse()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return options.run(options)
    except (NpgptError, OSError) as error:
        print(f"bench_gpu: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parts  = parser.add_subparsers(metavar="PART", required=True)

    def part(run: Callable[[argparse.Namespace], int]) -> argparse.ArgumentParser:
        name, text = run.__name__.removeprefix("run_"), str(run.__doc__)
        added = parts.add_parser(name, help=text.split(":")[0].rstrip("."), description=text)
        added.set_defaults(run=run)
        return added

    def dtype(added: argparse.ArgumentParser, *more: str, default: str = DTYPE) -> None:
        added.add_argument("--dtype", choices=("float32", *more, "bfloat16", "float16"), default=default,
                           help=f"({default})")

    def model(added: argparse.ArgumentParser) -> None:
        dtype(added, "tf32")
        added.add_argument("--shape", choices=("gpt2", "char", "tiny"), default="gpt2",
                           help="GPT-2 124M at 16 × 1024 tokens (gpt2), shakespeare-char, or nearly nothing")
        added.add_argument("--dropout", type=float, default=0.0, help="(0)")

    def names(added: argparse.ArgumentParser, other: str = "") -> None:
        added.add_argument("names", nargs="*", metavar="OP", help=f"part of a name{other} (all)")

    everything = part(run_all)
    everything.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="made if need be")
    everything.add_argument("--data", help="the text for shakespeare, which is left out without")
    dtype(everything)
    everything.add_argument("--parts", nargs="+", choices=tuple(PARTS), default=tuple(PARTS),
                            help="only these, in this order")
    everything.add_argument("--limit", type=float, default=LIMIT, metavar="SECONDS",
                            help=f"for all of them ({LIMIT})")
    part(run_tests)
    step = part(run_step)
    model(step)
    step.add_argument("--rounds", type=int, default=5, help="turns of each competitor (5)")
    profile = part(run_profile)
    model(profile)
    twins = part(run_twins)
    names(twins)
    dtype(twins)
    twins.add_argument("--batch", type=int, default=16, help="sequences of 1024 tokens (16)")
    host = part(run_host)
    model(host)
    part(run_losses)
    shakespeare = part(run_shakespeare)
    shakespeare.add_argument("--data", required=True, help="tinyshakespeare, a text file")
    dtype(shakespeare)
    part(run_memcheck)
    part(run_racecheck)
    part(run_synccheck)
    count = part(run_count)
    names(count, ", or step, a whole one")
    dtype(count, default="float32")
    compete = part(run_compete)
    compete.add_argument("competitor")
    compete.add_argument("--device", default="cuda")
    model(compete)
    return parser.parse_args()


def run_all(options: argparse.Namespace) -> int:
    """Every part below but count, one after another: the output of each goes to FOLDER/<part>.txt as it
    comes; one that fails or takes too long does not keep the next from running, and the status is 1 then.
    A part begins only if all the time that it may take is left of --limit; the others are named in the end.
    """
    options.out.mkdir(parents=True, exist_ok=True)
    until, failed, left_out = time.monotonic() + options.limit, False, []
    for name in options.parts:
        if name == "shakespeare" and not options.data:
            print("shakespeare: left out, for there is no --data", flush=True)
            continue
        if time.monotonic() + PARTS[name] + GRACE > until:
            left_out.append(name)
            continue
        command = [sys.executable, str(HERE), name]
        command += ["--data", options.data] if name == "shakespeare" else []
        command += ["--dtype", options.dtype] if name in OF_A_TYPE else []
        begun, file = time.perf_counter(), options.out / f"{name}.txt"
        ended   = ending_of(command, file, PARTS[name])
        failed |= ended != "fine"
        print(f"{name}: {ended}, {time.perf_counter() - begun:.0f} s, {file}", flush=True)
    if left_out:
        print(f"not run, for they might not end within {options.limit:g} s: --parts {' '.join(left_out)}")
    return int(failed)


def ending_of(command: list[str], output: Path, limit: float) -> str:
    """Runs it, for so many seconds at most, and says how it ended. What it has started ends with it: that is
    one group of processes, and of this one's session, so that who ends the session ends them, too.
    """
    with output.open("w", encoding="utf-8") as file, \
            subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, process_group=0,
                             env=os.environ | {"PYTHONUNBUFFERED": "1"}) as process:
        try:
            return "fine" if process.wait(limit) == 0 else f"failed ({process.returncode})"
        except subprocess.TimeoutExpired:
            return "took too long"
        finally:                                            # also where this process is told to end
            try:
                os.killpg(process.pid, signal.SIGTERM)
                process.wait(GRACE)
            except (ProcessLookupError, subprocess.TimeoutExpired):
                pass
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)


def run_tests(options: argparse.Namespace) -> int:
    """pytest -m gpu and npgpt gradcheck: every twin gives what its formula gives, and the gradients of every
    op and layer are right in float64.
    """
    gradcheck = subprocess.run([sys.executable, "-m", "npgpt", "gradcheck", "--device", "cuda"])
    return int(any([pytest([]), gradcheck.returncode]))


def run_step(options: argparse.Namespace) -> int:
    """A training step beside PyTorch's, eager and compiled: tokens/s, the share that the step reaches of a
    large product's speed, and memory held.
    """
    from gpu_step import compare
    compare(options.shape, options.dtype, options.dropout, options.rounds)
    return 0


def run_profile(options: argparse.Namespace) -> int:
    """Where a step's time goes on the GPU, op by op"""
    from gpu_step import profile
    profile(options.shape, options.dtype, options.dropout)
    return 0


def run_twins(options: argparse.Namespace) -> int:
    """Each twin beside its formula: time, bandwidth, and its share of a copy's in the same run. The bytes are
    the floor: each array crosses the memory bus once, twice if it is changed in place. (Of an embedding the
    whole table is counted, and only the rows used are touched.)
    """
    from gpu_twins import time_twins
    time_twins(options.names, options.dtype, options.batch)
    return 0


def run_host(options: argparse.Namespace) -> int:
    """How long a step keeps the host: run by tools/pretended_gpu, whose GPU takes no time. What is over the
    GPU's own time for the step slows training down.
    """
    from gpu_step import host
    host(options.shape, options.dtype, options.dropout)
    return 0


def run_losses(options: argparse.Namespace) -> int:
    """200 steps of the preset quick beside the CPU's, in every type: the status is 1 if those in float32 are
    not near.
    """
    from gpu_training import losses
    return 0 if losses() else 1


def run_shakespeare(options: argparse.Namespace) -> int:
    """The preset shakespeare-char, 5,000 steps: its best validation loss and how long it took; the status is
    1 if it is above nanoGPT's.
    """
    from gpu_training import shakespeare
    return 0 if shakespeare(options.data, options.dtype) else 1


def run_memcheck(options: argparse.Namespace) -> int:
    """compute-sanitizer over the tests of the twins: reads and writes beyond arrays"""
    return sanitize("memcheck", TWINS)


def run_racecheck(options: argparse.Namespace) -> int:
    """compute-sanitizer over the tests of the twins that have shared memory: races there"""
    return sanitize("racecheck", f"{TWINS} and ({' or '.join(OF_SHARED)}) or several_tiles")


def run_synccheck(options: argparse.Namespace) -> int:
    """compute-sanitizer over the same tests: barriers that not all threads reach"""
    return sanitize("synccheck", f"{TWINS} and ({' or '.join(OF_SHARED)}) or several_tiles")


def run_count(options: argparse.Namespace) -> int:
    """Launches and bytes of formula and twin on 1,024 tokens, or of a step: needs no GPU, for the tests'
    stand-in for CuPy counts.
    """
    from gpu_twins import count_step, count_twins
    if options.names == ["step"]:
        count_step(options.dtype)
    else:
        count_twins(options.names, options.dtype)
    return 0


def run_compete(options: argparse.Namespace) -> int:
    """One of those that take turns in step, which runs it"""
    from gpu_step import compete
    compete(options.competitor, options.shape, options.dtype, options.dropout, options.device)
    return 0


def sanitize(tool: str, tests: str) -> int:
    if not shutil.which("compute-sanitizer"):
        print("compute-sanitizer is not on the PATH: it comes with the CUDA toolkit")
        return 1
    return pytest(["tests/kernels", "-k", tests],
                  "compute-sanitizer", "--tool", tool, "--error-exitcode", "9")


def pytest(more: list[str], *under: str) -> int:
    command = [*under, sys.executable, "-m", "pytest", "-q", "--maxfail", "20", "-m", "gpu", *more]
    return subprocess.run(command, cwd=HERE.parents[1]).returncode


if __name__ == "__main__":
    sys.exit(main())
