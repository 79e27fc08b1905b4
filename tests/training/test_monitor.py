"""What a run says while it goes on, on terminals of any width."""

import io
import re

import pytest
from rich.console import Console

from npgpt.training.monitor import Monitor


@pytest.mark.parametrize("width, shown", [
    (40, "40000/80000 loss 4.446 left"), (60, "40000/80000 loss 4.446 val 4.503 left"),
    (80, "40000/80000 loss 4.446 val 4.503 12,345 tok/s lr 3.0e-04 |g| 0.55 left")])
def test_the_live_line_is_shown_whole_where_the_terminal_is_narrow(tmp_path, width, shown):
    said = io.StringIO()
    console = Console(file=said, width=width, force_terminal=True, color_system=None, soft_wrap=True)
    with Monitor(tmp_path, 80000, console) as monitor:
        monitor.advance(40000)
        monitor.log({"step": 40000, "train_loss": 4.446, "learning_rate": 3e-4, "grad_norm": 0.55,
                     "tokens_per_second": 12345, "seconds": 1.0})
        monitor.evaluation({"step": 40000, "val_loss": 4.503}, best=False)
    last = re.split(r"[\r\n]|\x1b\[[0-9;?]*[A-Za-z]", said.getvalue().rstrip())
    line = [part for part in last if "/80000 loss" in part][-1]
    assert shown in line and "…" not in line and len(line.rstrip()) <= width
