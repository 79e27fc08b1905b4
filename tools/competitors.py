"""Competitors take turns: each is a process of its own that stays, and all but the one whose turn it is are
stopped, so that a drift of the machine meets all alike and nobody disturbs another.

A competitor's program writes a line of numbers for every line that it reads: those of one turn.
"""

import contextlib
import signal
import statistics
import subprocess
from collections.abc import Collection


def take_turns(commands: dict[str, list[str]], rounds: int,
               optional: Collection[str] = ()) -> dict[str, list[list[float]]]:
    """name → the numbers of each of its turns.  optional: those that are left out if they end at once, as
    where their library is missing.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)                 # told to end, it ends them too
    processes: dict[str, subprocess.Popen] = {}
    turns: dict[str, list[list[float]]] = {name: [] for name in commands}
    try:
        for name, command in commands.items():
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            processes[name] = process
            if _ask(process):                              # once unmeasured
                process.send_signal(signal.SIGSTOP)
                continue
            if name not in optional:
                raise SystemExit(f"{name} ended early")
            print(f"{name} ended and is left out")
            del turns[name]
        for _ in range(rounds):
            for name in turns:
                process = processes[name]
                process.send_signal(signal.SIGCONT)
                if not (answer := _ask(process)):
                    raise SystemExit(f"{name} ended early")
                turns[name].append([float(number) for number in answer.split()])
                process.send_signal(signal.SIGSTOP)
    finally:
        for process in processes.values():
            with process:
                process.kill()
    return turns


def paired(ours: list[float], theirs: list[float]) -> float:
    """Theirs over ours, the median of the ratios within each round."""
    return statistics.median(b / a for a, b in zip(ours, theirs, strict=True))


def _ask(process: subprocess.Popen) -> str:
    """Its line; nothing if it has ended."""
    assert process.stdin and process.stdout
    with contextlib.suppress(BrokenPipeError):
        process.stdin.write("\n")
        process.stdin.flush()
    return process.stdout.readline()
