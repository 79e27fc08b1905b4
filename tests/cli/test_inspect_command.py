"""`npgpt inspect` as a user types it: a run, a model's folder and a GGUF file, a page and a picture."""

import json
import os
import re
import sys
from pathlib import Path

import commands
import pytest
import tiny
from model_folders import random_model

from npgpt import BPETokenizer, GPTConfig
from npgpt.cli.main import main
from npgpt.inspection import report


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny.train_quietly(tiny.new_run(tmp_path))
    return tmp_path


def refused(capsys, status, sentence, *arguments):
    commands.refused(capsys, status, sentence, "inspect", *arguments)


def data_of(path):
    return json.loads(re.search(r'id="data">(.*?)</script>', Path(path).read_text(encoding="utf-8"), re.S)[1])


def test_a_run_is_looked_into(folder, capsys, monkeypatch):
    assert main(["inspect", "run", "--text", "to be\\n", "--out", "page.html"]) == 0
    assert capsys.readouterr().out.endswith("page: page.html\n")
    data = data_of("page.html")
    assert [token["name"] for token in data["tokens"]] == ["t", "o", "·", "b", "e", "↵"]
    assert data["model"] == "run" and data["target"] == 6 and data["notes"] == []
    assert data["attention"]["layers"] == [0, 1] and len(data["saliency"]["sensitivity_most"]) == 6
    assert main(["inspect", "run/", "--text", "to be", "--out", "PAGE.HTML", "--target", "2"]) == 0
    assert data_of("PAGE.HTML")["target"] == 2 and data_of("PAGE.HTML")["model"] == "run"
    monkeypatch.chdir("run")
    assert main(["inspect", ".", "--text", "to be", "--out", "page.html"]) == 0
    assert data_of("page.html")["model"] == "run"


def test_a_models_folder_is_looked_into_and_given_a_picture_of_one_target(folder, capsys, monkeypatch):
    pytest.importorskip("matplotlib")
    tokenizer = BPETokenizer.train(["to be or not to be"], vocab_size=260)
    random_model(GPTConfig(tokenizer.vocab_size, 32, 2, 2, 8)).save_pretrained("model")
    tokenizer.save("model")
    asked, saliency = [], report.saliency
    monkeypatch.setattr(report, "saliency", lambda model, tokens, targets, progress:
                        asked.append(targets) or saliency(model, tokens, targets, progress))
    assert main(["inspect", "model", "--text", "$to_be$ 😀 日", "--out", "picture.png", "--target", "3"]) == 0
    assert capsys.readouterr().out.endswith("picture: picture.png\n")
    assert Path("picture.png").read_bytes().startswith(b"\x89PNG")
    (target,), = asked
    assert target[0] == 3
    first = Path("picture.png").read_bytes()
    assert main(["inspect", "model", "--text", "$to_be$ 😀 日", "--out", "picture.png", "--target", "3"]) == 0
    assert Path("picture.png").read_bytes() == first
    assert main(["inspect", "model", "--text", "$to_be$ 😀 日", "--out", "picture.png", "--target", "4"]) == 0
    assert Path("picture.png").read_bytes() != first


def test_bad_input_is_one_sentence_and_leaves_the_file_as_it_was(folder, capsys, monkeypatch):
    Path("page.html").write_text("as it was")
    text = ["--text", "to be"]
    out  = ["--out", "page.html"]
    refused(capsys, 1, "absent is no folder here", "absent", *text, *out)
    refused(capsys, 1, "the text is empty: give by --text", "run", "--text", "", *out)
    refused(capsys, 1, "has 9 tokens, and the model reads at most 8", "run", "--text", "to be or ", *out)
    refused(capsys, 1, "must end with .html or .png", "run", *text, "--out", "page.pdf")
    refused(capsys, 1, "there is no folder absent", "run", *text, "--out", "absent/page.html")
    refused(capsys, 1, "§", "run", "--text", "§", *out)
    refused(capsys, 1, "target must be 1 to 5, for the text has 5 tokens, not 6", "run", *text, *out,
            "--target", "6")
    refused(capsys, 1, "target must be 1 to 5, .* not 0; the first, 0, follows nothing", "run", *text, *out,
            "--target", "0")
    refused(capsys, 1, "no checkpoint '7'", "run", *text, *out, "--checkpoint", "7")
    refused(capsys, 2, "text", "run", *out)
    refused(capsys, 2, "out", "run", *text)
    refused(capsys, 2, "target", "run", *text, *out, "--target", "last")
    monkeypatch.setattr(report, "MOST_TOKENS", 4)
    refused(capsys, 1, "has 5 tokens, and at most 4 can be shown", "run", *text, *out)
    assert Path("page.html").read_text() == "as it was"
    Path("folder.html").mkdir()
    refused(capsys, 1, "folder.html: it is no regular file", "run", *text, "--out", "folder.html")


def test_what_cannot_be_written_is_told(folder, capsys, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(os, "fsync", full)
    refused(capsys, 1, "cannot write page.html: No space left", "run", "--text", "to be", "--out",
            "page.html")
    assert not list(folder.glob("*.html")) and not list(folder.glob(".page*"))


def test_without_matplotlib_a_picture_is_refused_before_the_work(folder, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setattr("npgpt.cli.inspect.load_model", lambda *_: pytest.fail("the model was loaded"))
    refused(capsys, 1, r"need matplotlib: install it by .* 'npgpt\[plot\]'", "run", "--text", "to", "--out",
            "a.png")
