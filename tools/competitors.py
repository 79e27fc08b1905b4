"""Competitors take turns: each is a process of its own that stays, and all but the one whose turn it is are
stopped, so that a drift of the machine meets all alike and nobody disturbs another.

A competitor's program writes a line of numbers for every line that it reads: those of one turn.
"""

import signal
import statistics
import subprocess


def take_turns(commands: dict[str, list[str]], rounds: int) -> dict[str, list[list[float]]]:
    """name → the numbers of each of its turns."""
    processes: dict[str, subprocess.Popen] = {}
    turns: dict[str, list[list[float]]] = {name: [] for name in commands}
    try:
        for name, command in commands.items():
            processes[name] = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                               text=True)
            _ask(processes[name])                          # once unmeasured
            processes[name].send_signal(signal.SIGSTOP)
        for _ in range(rounds):
            for name, process in processes.items():
                process.send_signal(signal.SIGCONT)
                turns[name].append([float(number) for number in _ask(process).split()])
                process.send_signal(signal.SIGSTOP)
    finally:
        for process in processes.values():
            process.kill()
    return turns


def paired(ours: list[float], theirs: list[float]) -> float:
    """Theirs over ours, the median of the ratios within each round."""
    return statistics.median(b / a for a, b in zip(ours, theirs, strict=True))


def _ask(process: subprocess.Popen) -> str:
    assert process.stdin and process.stdout
    process.stdin.write("\n")
    process.stdin.flush()
    answer = process.stdout.readline()
    if not answer:
        raise SystemExit(f"a competitor ended early: {process.args}")
    return answer
