"""npgpt sample: its settings, a prompt that stands in a file, and what is no model to sample from."""

import io
import shutil
import sys
from pathlib import Path

import pytest
import tiny
from commands import refused

from npgpt.cli.main import main
from npgpt.layers import Block
from npgpt.training.loading import load_model


@pytest.fixture
def text(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tiny.write_text(tmp_path)


@pytest.fixture
def run(text, capsys):
    assert main(["train", "--data", "text.txt", *tiny.FLAGS, "--tokenizer", "bpe", "--vocab-size", "260",
                 "--out-dir", "run"]) == 0
    capsys.readouterr()


def sampled(capsys, *arguments):
    assert main(["sample", "run", "--max-new-tokens", "5", *arguments]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("data, prompt", [
    (b"to be\\n \n", "to be\\n "), (b"to be\n\n", "to be\n"), (b"to be\r\n", "to be"),
    (b"\nto\tbe", "\nto\tbe"), ("\ufeffä".encode(), "ä")],
    ids=["as it is", "one newline", "Windows", "no newline", "byte order mark"])
def test_a_prompt_from_a_file_is_taken_as_it_is_but_for_one_newline_at_its_end(run, capsys, monkeypatch,
                                                                               data, prompt):
    Path("prompt.txt").write_bytes(data)
    said = sampled(capsys, "--prompt-file", "prompt.txt")
    assert said.startswith(prompt)
    if "\\" not in prompt:
        assert said == sampled(capsys, "--prompt", prompt)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    assert said == sampled(capsys, "--prompt-file", "-")


def test_a_prompt_that_cannot_be_read_or_is_given_twice(run, capsys, monkeypatch):
    Path("latin").write_bytes("ab é".encode("latin-1"))
    refused(capsys, 1, "latin is not UTF-8 at byte 3", "sample", "run", "--prompt-file", "latin")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xff")))
    refused(capsys, 1, "standard input is not UTF-8 at byte 0", "sample", "run", "--prompt-file", "-")
    refused(capsys, 1, "No such file or directory: absent", "sample", "run", "--prompt-file", "absent")
    refused(capsys, 1, "Is a directory: run", "sample", "run", "--prompt-file", "run")
    refused(capsys, 2, "given twice: by --prompt and by --prompt-file",
            "sample", "run", "--prompt", "to", "--prompt-file", "text.txt")


def test_a_checkpoint_s_own_folder_names_its_run_and_its_step(run, capsys, monkeypatch):
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


def test_it_reads_each_position_once_and_every_text_with_a_cache_of_its_own(text, monkeypatch):
    assert main(["train", "--data", "text.txt", *tiny.FLAGS, "--out-dir", "run", "--n-layer", "1"]) == 0
    read, forward = [], Block.forward
    monkeypatch.setattr(Block, "forward", lambda self, x, *inputs, **options:
                        read.append(x.shape[1]) or forward(self, x, *inputs, **options))
    assert main(["sample", "run", "--prompt", "to be", "--max-new-tokens", "4", "--num-samples", "2"]) == 0
    assert read == 2 * [5, 1, 1, 1]


def test_it_takes_all_settings_of_generation(text, capsys):
    """What is written is what the model generates with the settings that the flags name."""
    assert main(["train", "--data", "text.txt", *tiny.FLAGS, "--out-dir", "run"]) == 0
    model, tokenizer, *_ = load_model(Path("run"), "best", "cpu", print)
    letter, word = (tokenizer.encode_ordinary(text) for text in ("e", "e\n"))
    capsys.readouterr()
    plain  = {"do_sample": True, "temperature": 0.8, "top_k": 50, "max_new_tokens": 30}
    beams  = {"do_sample": False, "num_beams": 3, "max_new_tokens": 30}
    texts = []
    for flags, settings in (
            ("", {}), ("--no-use-cache", {}),
            ("--min-p 0.5", {"min_p": 0.5}), ("--top-p 0.2", {"top_p": 0.2}),
            ("--repetition-penalty 5", {"repetition_penalty": 5.0}),
            ("--no-repeat-ngram-size 2", {"no_repeat_ngram_size": 2}),
            ("--bad-words e e\\n", {"bad_words_ids": [letter, word]}),
            ("--stop-strings \\n", {"stop_strings": ["\n"], "tokenizer": tokenizer}),
            ("--num-beams 3", {"num_beams": 3}), ("--no-do-sample --num-beams 3", beams),
            ("--no-do-sample --num-beams 3 --early-stopping never --length-penalty -9 --stop-strings o",
             beams | {"early_stopping": "never", "length_penalty": -9.0, "stop_strings": "o",
                      "tokenizer": tokenizer, "pad_token_id": 0}),
            ("--no-do-sample --no-repeat-ngram-size 3", {"do_sample": False, "no_repeat_ngram_size": 3})):
        assert main(["sample", "run", "--prompt", "to be", "--max-new-tokens", "30", *flags.split()]) == 0
        texts.append(capsys.readouterr().out)
        ids = tokenizer.encode_ordinary("to be")
        assert texts[-1] == tokenizer.decode(model.generate([ids], **plain | settings)[0]) + "\n", flags
    ends = ["--eos-token-id", str(letter[0])]
    assert main(["sample", "run", "--prompt", "to be", "--max-new-tokens", "30", *ends]) == 0
    assert capsys.readouterr().out == texts[0][:texts[0].index("e", 5)] + "\n"        # the end is not shown
    assert texts[0] == texts[1] and len(set(texts)) >= 9 and len(texts[7]) < 36 and len(texts[10]) < 36

    several = ["sample", "run", "--prompt", "to be", "--no-do-sample", "--num-beams", "3", "--num-samples"]
    assert main([*several, "3"]) == 0
    best = model.generate([ids], num_beams=3, num_return_sequences=3, max_new_tokens=200)
    assert capsys.readouterr().out == "\n---\n".join(map(tokenizer.decode, best.tolist())) + "\n"
    refused(capsys, 1, "num_samples must be at most num_beams = 3 without sampling, not 4", *several, "4")
    refused(capsys, 1, "min_new_tokens = 300 asks for 300", "sample", "run", "--min-new-tokens", "300")
    refused(capsys, 1, "repetition_penalty must be above 0", "sample", "run", "--repetition-penalty", "0")
    refused(capsys, 2, "early-stopping|early_stopping", "sample", "run", "--early-stopping", "perhaps")
    assert "to be" not in capsys.readouterr().out


def test_bad_input_is_one_sentence(text, capsys):
    refused(capsys, 1, "absent is no folder here", "sample", "absent")
    refused(capsys, 2, "RUN|run", "sample")
    assert main(["train", "--data", "text.txt", *tiny.FLAGS, "--out-dir", "run"]) == 0
    refused(capsys, 1, "no checkpoint '7'", "sample", "run", "--checkpoint", "7")
    refused(capsys, 1, "temperature must be above 0", "sample", "run", "--temperature", "0")
    refused(capsys, 1, "top_p must be above 0", "sample", "run", "--top-p", "1.5")
    refused(capsys, 1, "max_new_tokens must be at least 0", "sample", "run", "--max-new-tokens", "-1")
    refused(capsys, 1, "U\\+00A7|§", "sample", "run", "--prompt", "§")
