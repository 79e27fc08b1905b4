"""What a run says while it goes on, on terminals of any width."""

import io
import re

import pytest
from rich.console import Console

from npgpt.training.monitor import Monitor

RECORD = {"step": 40000, "train_loss": 4.446, "learning_rate": 3e-4, "grad_norm": 0.55,
          "tokens_per_second": 12345, "seconds": 1.0}


def said_by(tmp_path, told, **settings):
    """What a monitor of 80,000 updates prints that is `told` something."""
    said = io.StringIO()
    console = Console(file=said, color_system=None, soft_wrap=True, **settings)
    with Monitor(tmp_path, 80000, console) as monitor:
        told(monitor)
    return said.getvalue()


def live_line(said):
    """As it was shown last."""
    parts = re.split(r"[\r\n]|\x1b\[[0-9;?]*[A-Za-z]", said.rstrip())
    return [part for part in parts if "/80000 " in part and " loss " in part][-1]


@pytest.mark.parametrize("width, shown", [
    (40, "40000/80000 loss 4.446 left"), (50, "40000/80000 loss 4.446 val 4.503 left"),
    (80, "40000/80000 loss 4.446 val 4.503 12,345 tok/s lr 3.0e-04 |g| 0.55 left"),
    (100, f"40000/80000 {'━' * 10}{' ' * 10} loss 4.446 val 4.503 12,345 tok/s lr 3.0e-04 |g| 0.55 left")])
def test_the_live_line_is_shown_whole_where_the_terminal_is_narrow(tmp_path, width, shown):
    def told(monitor):
        monitor.advance(40000)
        monitor.log(RECORD)
        monitor.evaluation({"step": 40000, "val_loss": 4.503}, best=False)

    line = live_line(said_by(tmp_path, told, width=width, force_terminal=True))
    assert shown in line and "…" not in line and len(line.rstrip()) <= width


def test_the_live_line_begins_where_a_run_goes_on(tmp_path):
    said = said_by(tmp_path, lambda monitor: monitor.rewind(40000, True), width=80, force_terminal=True)
    assert "40000/80000" in live_line(said)


@pytest.mark.parametrize("step, seconds, left", [
    (20000, 100.0, "00:05:00"), (40000, 86399.0, "23:59:59"), (40000, 86400.0, "1.0 days"),
    (20000, 86400.0, "3.0 days"), (80000, 7.0, "00:00:00")])
def test_elsewhere_a_line_says_how_long_it_takes_from_here(tmp_path, step, seconds, left):
    said = said_by(tmp_path, lambda monitor: monitor.log(RECORD | {"step": step, "seconds": seconds}))
    assert said == (f"step {step:>6}/80000  loss 4.4460  lr 3.00e-04  |g| 0.55  12,345 tokens/s  "
                    f"left {left}\n")


@pytest.mark.parametrize(("best", "end"), [(True, "  best so far\n"), (False, "\n")])
def test_an_evaluation_says_whether_it_is_the_best(tmp_path, best, end):
    said = said_by(tmp_path, lambda monitor: monitor.evaluation({"step": 40000, "val_loss": 4.503}, best))
    assert said == f"step  40000/80000  validation loss 4.5030{end}"


def test_a_warning_is_told_as_it_is(tmp_path):
    assert said_by(tmp_path, lambda monitor: monitor.warn("no [red] run")) == "warning: no [red] run\n"


def test_a_sample_has_a_margin_and_steers_no_terminal(tmp_path):
    said = said_by(tmp_path, lambda monitor: monitor.sample("to\nbe\x1b[2J", " [or]\nnot\x1b[2J"))
    assert "\x1b" not in said
    assert re.fullmatch(r"    \| to\n    \| be.\[2J \[or\]\n    \| not.\[2J\n", said)
