"""Command lines that are not understood: what is said, and what was meant."""

import importlib

import pytest
from commands import said_by

from npgpt.cli.arguments import ELSEWHERE, _names


@pytest.mark.parametrize("arguments, meant", [
    ("train --max_iter 3",            "did you mean --max-iters?"),
    ("train --lr=1e-3",               "did you mean --learning-rate?"),
    ("train --output_dir x",          "did you mean --out-dir?"),
    ("train --num_train_epochs 3",    "--max-iters? An epoch is tokens / (block_size · batch_size"),
    ("train --max_steps 3",           "did you mean --max-iters? (npgpt"),
    ("finetune a --num_train_epochs 3", "did you mean --epochs?"),
    ("sample a --max_length 3",       "did you mean --max-new-tokens?"),
    ("sample a --start The",          "did you mean --prompt?"),
    ("sample a --start FILE:p.txt",   "did you mean --prompt-file=p.txt?"),
    ("sample a --start=FILE:p.txt",   "did you mean --prompt-file=p.txt?"),
    ("sample a --stop e",             "did you mean --stop-strings?"),
    ("train max_iters=5",             "did you mean --max-iters=5?"),
    ("train --init_from=gpt2",        "learns by npgpt finetune"),
    ("train --eval_only=True",        "npgpt evaluate RUN measures"),
    ("train --no-qkv-bias",           "; write --qkv-bias=False"),
    ("train --no-dropout",            "did you mean --dropout? (npgpt"),
    ("train --resume",                "--resume needs the folder of a run"),
    ("finetune --resume",             "--resume needs the folder of a fine-tuning"),
    ("train --bias=False",            "--bias takes no value: write --bias or --no-bias"),
    ("train --no-bias true",          "--bias takes no value: write --bias or --no-bias"),
    ("train --tf32 1 --max-iters 3",  "--tf32 takes no value"),
    ("train --no_tie_word_embeddings=1", "--tie-word-embeddings takes no value"),
    ("train --dropout",               "--dropout needs a value"),
    ("sample a --prompt -x",          "written --prompt=-…"),
    ("sample --seed 3",               "npgpt: RUN_OR_MODEL is missing: the folder of a run"),
    ("inspect a",                     "npgpt: --text STR is missing: what the model reads"),
    ("inspect a",                     "; --out PATH is missing: the file to write"),
])
def test_what_was_meant_is_named(arguments, meant, capsys):
    assert meant in said_by(capsys, 2, *arguments.split())


@pytest.mark.parametrize("arguments", [
    "train --wandb_log", "train --compile=False", "train config.py", "train x=3"])
def test_nothing_is_guessed_where_nothing_is_near(arguments, capsys):
    said = said_by(capsys, 2, *arguments.split())
    assert f"Unrecognized options: {arguments.split()[1]} (npgpt train --help lists the options)" in said


def test_names_of_other_programs_lead_to_options_that_there_are():
    commands = [importlib.import_module(f"npgpt.cli.{name}")
                for name in ("train", "finetune", "sample", "evaluate", "inspect")]
    there = {name for command in commands for name, _ in _names(command.Options)}
    assert not set(" ".join(ELSEWHERE.values()).split()) - there
