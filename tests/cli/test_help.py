"""What --help shows: the commands; options in sections, what each may be and is by default, on screens of any
width."""

import ast
import importlib
import inspect
import re

import pytest
from commands import refused, said_by

from npgpt.cli.main import main
from npgpt.data.plans import PrepareConfig
from npgpt.training.config import TrainConfig
from npgpt.training.finetuning import FinetuneConfig

COMMANDS = ["train", "finetune", "sample", "chat", "evaluate", "export", "prepare", "verify", "plot",
            "inspect", "bench", "gradcheck", "tokenizer train", "tokenizer encode", "tokenizer decode",
            "tokenizer show"]


@pytest.fixture
def help_of(capfd, monkeypatch):
    """A function that gives what a command's --help prints, on a screen of so many columns."""
    def help_of(command, columns=80):
        monkeypatch.setenv("COLUMNS", str(columns))
        with pytest.raises(SystemExit) as leaving:
            main([*command.split(), "--help"])
        assert leaving.value.code == 0
        return capfd.readouterr().out

    return help_of


def test_the_commands_are_listed_and_wrong_ones_refused(capsys):
    assert main([]) == 2 and main(["--help"]) == 0
    said = capsys.readouterr().out
    assert all(f"\n  {command} " in said
               for command in ("train", "finetune", "sample", "evaluate", "prepare", "verify", "plot",
                               "inspect", "bench", "gradcheck"))
    assert main(["--version"]) == 0
    refused(capsys, 2, "unknown command 'tarin'; did you mean 'train'", "tarin")


@pytest.mark.parametrize("command", ["train", "finetune", "sample", "evaluate", "prepare", "verify", "plot",
                                     "inspect", "bench", "gradcheck"])
def test_every_option_is_listed_and_documented(command, help_of):
    def bare(text):
        return re.sub(r"[│\s]", "", text)                  # the end of the screen breaks lines anywhere

    said = bare(help_of(command, 120))                     # in one column
    options = importlib.import_module(f"npgpt.cli.{command}").Options
    assert bare(options.__doc__) in said
    settings = {"train": TrainConfig, "bench": TrainConfig, "prepare": PrepareConfig,
                "finetune": FinetuneConfig}
    texts: dict[str, str] = {}                             # of a field that a subclass changes, the last
    for kind in [*reversed(settings.get(command, object).__mro__[:-1]), options]:
        body = ast.parse(inspect.getsource(kind)).body[0].body
        for field, text in zip(body, [*body[1:], None], strict=True):
            if isinstance(field, ast.AnnAssign):
                texts[field.target.id] = text and isinstance(text, ast.Expr) and text.value.value
    for name in texts.keys() - {"settings", "model", "names", "paths", "runs", "run"}:
        assert texts[name], f"{name} has no text"
        assert f"--{name.replace('_', '-')}" in said
        assert bare(texts[name]) in said


def first_and_last(said):
    """Of each section, by its title."""
    sections = {}
    for box in said.split("╭─ ")[1:]:
        if options := re.findall(r"^│ --([\w-]+)", box, re.MULTILINE):
            sections[box.partition(" ─")[0]] = f"{options[0]} {options[-1]}"
    return sections


def test_options_stand_in_sections(help_of):
    steps = {"optimisation options": "batch-size l2", "evaluation options": "eval-interval sample-tokens",
             "run options": "seed out-dir"}
    assert first_and_last(help_of("train")) == {
        "options": "preset resume", "data options": "data vocab-size",
        "model options": "block-size gradient-checkpointing"} | steps
    assert first_and_last(help_of("finetune")) == {
        "options": "config resume", "data options": "checkpoint epochs",
        "model options": "trainable gradient-checkpointing"} | steps
    assert first_and_last(help_of("sample"))["beam-search options"] == "num-beams early-stopping"


def test_the_end_of_a_section_s_comment_stands_below_its_title(help_of):
    told = r"╭─ deduplication options ─+╮\n│ The first document stays. +│\n│ ─+ │\n│ --exact-duplicates"
    assert re.search(told, help_of("prepare"))


@pytest.mark.parametrize("command", COMMANDS)
def test_none_is_no_default_and_no_choice(command, help_of):
    said = help_of(command)
    assert not re.search(r"None[}|,]|[{|,]None|default:\s+(?:\W*None|''|)\)", said)


@pytest.mark.parametrize("command, told", [
    ("train", "--n-kv-head INT"), ("train", "--min-lr FLOAT"), ("train", "--out-dir STR"),
    ("train", "--config PATH"), ("train", "--qkv-bias {True,False}"), ("train", "--bias, --no-bias"),
    ("prepare", "--normalize {NFC,NFD,NFKC,NFKD}"), ("prepare", "MinHash. None keeps them. (default: 0.8)"),
    ("sample", "--bad-words [STR [STR ...]]"), ("tokenizer encode", "[FILE] "),
    ("train --preset gpt2-124m", "Blocks. (default: 12)"), ("train", "Blocks. (default: 4)")])
def test_what_an_option_may_be_and_is_by_default(command, told, help_of):
    assert told in re.sub(r"[│\s]+", " ", help_of(command))


@pytest.mark.parametrize("command", COMMANDS)
def test_a_wrong_option_leads_to_the_help_of_its_command(command, capsys):
    assert f"(npgpt {command} --help lists the options)" in said_by(capsys, 2, *command.split(), "--no-such")


@pytest.mark.parametrize("columns", [80, 100, 120])
@pytest.mark.parametrize("command", COMMANDS)
def test_help_keeps_to_the_screen(command, columns, help_of):
    assert max(map(len, help_of(command, columns).splitlines())) <= columns


def test_nothing_is_lost_in_forty_columns(help_of):
    said = help_of("train", 40)
    assert max(map(len, said.splitlines())) <= 40
    assert "shared by n_head / n_kv_head queries (grouped-query attention); by default n_head." \
        in " ".join(re.sub("[│╭╮╰╯─]", " ", said).split())
