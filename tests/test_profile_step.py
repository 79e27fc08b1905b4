"""The profile of a step: no time is counted twice."""

import re
import subprocess
import sys
from pathlib import Path

TOOLS = Path(__file__).parents[1] / "tools"


def test_ops_and_what_is_between_them_are_the_step():
    result = subprocess.run([sys.executable, "profile_step.py", "A", "--steps", "3"], cwd=TOOLS,
                            capture_output=True, text=True, check=True)
    rows   = re.findall(r"^ +(\S[\w ]*?) {2,}(?:(\d+) +)?(-?[\d.]+) +-?[\d.]+%", result.stdout, re.MULTILINE)
    calls  = {name: number for name, number, _ in rows}
    assert calls["attention_forward"] == calls["attention_backward"] == "4"       # layers
    parts  = {name: float(ms) for name, _, ms in rows}
    whole  = parts.pop("the step")
    assert {"linear_backward", "weight_gradient", "attention_forward", "between ops"} <= set(parts)
    assert min(parts.values()) >= 0 and abs(sum(parts.values()) - whole) < 0.005 * (len(parts) + 1)
