"""npgpt sample: a prompt that stands in a file, and what is no model to sample from."""

import io
import shutil
import sys
from pathlib import Path

import pytest
import tiny
from commands import refused

from npgpt.cli.main import main


@pytest.fixture
def folder(tmp_path, monkeypatch, capsys):
    """With a run in it."""
    monkeypatch.chdir(tmp_path)
    tiny.write_text(tmp_path)
    assert main(["train", "--data", "text.txt", *tiny.FLAGS, "--tokenizer", "bpe", "--vocab-size", "260",
                 "--out-dir", "run"]) == 0
    capsys.readouterr()
    return tmp_path


def sampled(capsys, *arguments):
    assert main(["sample", "run", "--max-new-tokens", "5", *arguments]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("data, prompt", [
    (b"to be\\n \n", "to be\\n "), (b"to be\n\n", "to be\n"), (b"to be\r\n", "to be"),
    (b"\nto\tbe", "\nto\tbe"), ("\ufeffä".encode(), "ä")],
    ids=["as it is", "one newline", "Windows", "no newline", "byte order mark"])
def test_a_prompt_from_a_file_is_taken_as_it_is_but_for_one_newline_at_its_end(folder, capsys, monkeypatch,
                                                                               data, prompt):
    Path("prompt.txt").write_bytes(data)
    said = sampled(capsys, "--prompt-file", "prompt.txt")
    assert said.startswith(prompt)
    if "\\" not in prompt:
        assert said == sampled(capsys, "--prompt", prompt)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    assert said == sampled(capsys, "--prompt-file", "-")


def test_a_prompt_that_cannot_be_read_or_is_given_twice(folder, capsys, monkeypatch):
    Path("latin").write_bytes("ab é".encode("latin-1"))
    refused(capsys, 1, "latin is not UTF-8 at byte 3", "sample", "run", "--prompt-file", "latin")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xff")))
    refused(capsys, 1, "standard input is not UTF-8 at byte 0", "sample", "run", "--prompt-file", "-")
    refused(capsys, 1, "No such file or directory: absent", "sample", "run", "--prompt-file", "absent")
    refused(capsys, 1, "Is a directory: run", "sample", "run", "--prompt-file", "run")
    refused(capsys, 2, "given twice: by --prompt and by --prompt-file",
            "sample", "run", "--prompt", "to", "--prompt-file", "text.txt")


def test_a_checkpoint_s_own_folder_names_its_run_and_its_step(folder, capsys, monkeypatch):
    own = "run/checkpoints/step-000010"
    for command in (["sample"], ["chat"], ["evaluate"], ["evaluate", "--data", "text.txt"],
                    ["inspect", "--text", "to", "--out", "page.html"], ["export", "--out-dir", "out"],
                    ["finetune", "--data", "text.txt"]):
        refused(capsys, 1, f"{own} is a checkpoint: use run --checkpoint 10", *command, own)
    for command in (["train", "--resume"], ["verify"], ["export", "--adapter", "--out-dir", "out"]):
        refused(capsys, 1, f"{own} is not a run's folder: it is a checkpoint of run", *command, own)
    refused(capsys, 1, f"{own} is a checkpoint, and has no curves: use run$", "plot", own, "--out", "a.svg")
    shutil.copytree(own, "run/mine")
    refused(capsys, 1, "run/mine is not a run's folder: it is a checkpoint away from its run", "sample",
            "run/mine")
    monkeypatch.chdir(own)
    refused(capsys, 1, r"npgpt: \. is a checkpoint: use \.\./\.\. --checkpoint 10", "sample", ".")
