"""Of which ops the tools that time them speak."""

import subprocess
import sys
from pathlib import Path

TOOLS = Path(__file__).parents[1] / "tools"


def bench_ops(*names):
    return subprocess.run([sys.executable, "bench_ops.py", *names], cwd=TOOLS, capture_output=True, text=True,
                          check=False)


def test_those_named_are_timed_and_what_names_none_is_refused():
    result = bench_ops("gelu", "rmsnorm_f")
    assert result.returncode == 0
    rows = [line.split()[0] for line in result.stdout.splitlines() if "_" in line]
    assert len(rows) == 3 and all("gelu" in row or "rmsnorm_f" in row for row in rows)
    result = bench_ops("gelu", "gellu")
    assert result.returncode == 2 and not result.stdout
    assert result.stderr.startswith("no op is called 'gellu'; they are called ") and rows[0] in result.stderr
