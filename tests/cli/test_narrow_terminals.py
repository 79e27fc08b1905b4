"""Nothing is cut off where there is little room: tables fold, and bars leave their room to the numbers."""

import io
import re

import pytest
from rich.console import Console

from npgpt.cli.main import main
from npgpt.cli.progress import progress_bar
from npgpt.cli.tasks.report import numbers_table


def test_names_of_ops_are_whole_in_eighty_columns(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["gradcheck", "linear_cross"]) == 0
    assert capsys.readouterr().out.count("linear_cross_entropy") == 2


@pytest.mark.parametrize("command", ["gradcheck linear_cross", "prepare text.txt --out-dir prepared"])
def test_tables_lose_nothing_in_forty_columns(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "40")
    (tmp_path / "text.txt").write_text("to be or not to be " * 100, encoding="utf-8")
    assert main(command.split()) == 0
    said = capsys.readouterr().out
    assert "…" not in said and "─" in said and len(said.split("─\n")[0].splitlines()[-1]) <= 40
    if "prepare" in command:                                             # a sentence is not cut into lines
        assert "too few documents to hold whole ones back: the end of each is for validation\n" in said


def test_measures_lose_nothing_in_forty_columns():
    console = Console(file=io.StringIO(), width=40)
    units, numbers, intervals = {"perplexity": "nats"}, {"perplexity": 81.3011}, {"perplexity": (79.0, 84.0)}
    console.print(numbers_table(units, numbers, intervals))
    said = console.file.getvalue()
    assert "81.3011" in said and "79.0000" in said and "…" not in said


@pytest.mark.parametrize("width, bar", [(40, False), (80, True)])
def test_a_bar_leaves_its_room_to_the_numbers(width, bar, monkeypatch, capfd):
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("FORCE_COLOR", "1")
    with progress_bar("tokens scored") as show:
        show(8000, 8541)
    said = capfd.readouterr().err
    assert "8000/8541" in said and ("━" in said or "-----" in said) is bar


def test_the_bars_of_a_preparation_fit_forty_columns_and_come_to_their_end(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("FORCE_COLOR", "1")
    (tmp_path / "text.txt").write_text("to be or not to be " * 100, encoding="utf-8")
    assert main(["prepare", "text.txt", "--out-dir", "prepared"]) == 0
    bars = [line.rstrip() for line in re.split(r"\x1b\[2K|\n", capfd.readouterr().out) if " % " in line]
    bars = [re.sub(r"\x1b\[[0-9;?]*\w|\r", "", line) for line in bars]
    assert "val shards   100 %" in bars[-1] and "…" not in "".join(bars) and max(map(len, bars)) <= 40
    assert all("100 %" in bar and ("MB/s" in bar) is ("merges" not in bar) for bar in bars[-5:])
