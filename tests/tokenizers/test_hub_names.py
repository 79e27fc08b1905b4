"""Tokenizers by their names on Hugging Face's hub, wherever one is asked for. Nothing is fetched here: in the
place of its client stands a folder that lies as one in its cache.
"""

import json
import sys
from fnmatch import fnmatch
from pathlib import Path

import commands
import fake_hub
import preparing
import pytest
import tiny

import npgpt
from npgpt.cli.main import main
from npgpt.data.prepared import open_prepared
from npgpt.errors import TokenizerError
from npgpt.interop import huggingface
from npgpt.training.runs import open_run

READ = {"tokenizer.json", "tokenizer_config.json", "added_tokens.json", "vocab.json", "merges.txt"}


@pytest.fixture
def theirs():
    return npgpt.BPETokenizer([(n, 255) for n in range(9)], ("<|endoftext|>",))


@pytest.fixture
def hub(tmp_path, monkeypatch, theirs):
    """What was asked of it: (name, patterns)."""
    folder = tmp_path / "cache" / "models--gpt2" / "snapshots" / "0f"
    theirs.save(folder)
    (folder / "tokenizer_config.json").write_text('{"model_max_length": 1024}')     # as Hugging Face's says
    (folder / "model.safetensors").write_text("fetched by someone else")
    return fake_hub.stand_in(monkeypatch, tmp_path, folder)


def refused(name, *parts):
    with pytest.raises(TokenizerError) as error:
        npgpt.load_tokenizer(name)
    assert all(part in str(error.value) for part in parts) and "\n" not in str(error.value), error.value


def test_a_name_is_fetched_without_weights(hub, theirs, monkeypatch):
    assert npgpt.load_tokenizer("gpt2").merges == theirs.merges
    assert npgpt.load_tokenizer("a/b.c-d_e").merges == theirs.merges
    assert [name for name, _ in hub] == ["gpt2", "a/b.c-d_e"]
    all_files = {*READ, *huggingface.FETCHED, "model-00001-of-00002.safetensors", "pytorch_model.bin"}
    assert {file for file in all_files for pattern in hub[0][1] if fnmatch(file, pattern)} == READ
    refused("absent", "absent is no folder here, and a tokenizer of that name cannot be fetched from Hugging "
                      "Face's hub: 404 Client Error.")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    refused("gpt2", "gpt2 is no folder here, and fetching a tokenizer of that name from Hugging Face's hub "
                    "takes huggingface_hub: pip install 'npgpt[hub]'")


def test_a_folder_a_file_and_what_is_meant_as_a_path_are_not_looked_for_there(hub, theirs):
    mine = npgpt.BPETokenizer([(7, 8)])
    mine.save("gpt2")
    mine.save("a/b")
    Path("gpt2/tokenizer.json").rename("roberta")
    Path("gpt2/tokenizer_config.json").unlink()
    refused("roberta", "roberta does not say how to split text")             # as a .tiktoken file by its name
    assert npgpt.load_tokenizer("gpt2").merges == mine.merges                # by vocab.json and merges.txt
    assert npgpt.load_tokenizer("a/b").merges == mine.merges
    for path in ("a/c", "./x", "../x", "x/", "/a/b", "x/y/z", "x y", "tokenizer.json", "mine.tiktoken",
                 "vocab.bpe", Path("x"), Path("x/y")):
        refused(path, "is missing")
    assert hub == []


def test_the_command_tokenizer_takes_names(hub, theirs, capsys):
    Path("text").write_text("to be")
    assert main(["tokenizer", "encode", "gpt2", "text"]) == 0
    ids = capsys.readouterr().out
    assert ids.split() == [str(id) for id in theirs.encode("to be")]
    Path("ids").write_text(ids)
    assert main(["tokenizer", "decode", "gpt2", "ids"]) == 0
    assert capsys.readouterr().out == "to be"
    assert main(["tokenizer", "show", "gpt2", "to be"]) == 0
    assert "5 tokens" in capsys.readouterr().out
    assert [name for name, _ in hub] == ["gpt2"] * 3
    commands.refused(capsys, 1, "absent is no folder.*404", "tokenizer", "show", "absent", "to be")
    commands.refused(capsys, 1, "x.*is missing", "tokenizer", "show", "./x", "to be")
    assert len(hub) == 4


def test_a_preparation_keeps_the_name_and_the_sum_of_what_was_fetched_once(hub, theirs, capsys, tmp_path):
    preparing.write_corpus(Path("texts"))
    command = ["prepare", "texts", "--out-dir", "out", "--tokenizer", "gpt2", "--workers", "1"]
    assert main(command) == 0
    assert [name for name, _ in hub] == ["gpt2"]                # a second time it may be another's
    assert npgpt.load_tokenizer(open_prepared(Path("out")).tokenizer).merges == theirs.merges
    manifest = json.loads(Path("out/manifest.json").read_text())
    assert manifest["options"]["tokenizer"] == "gpt2" and str(tmp_path) not in json.dumps(manifest)

    folder = tmp_path / "cache" / "models--gpt2" / "snapshots" / "0f"
    (folder / "model.safetensors").write_text("and other weights, which change no token")
    assert main(command) == 0
    capsys.readouterr()
    npgpt.BPETokenizer([(7, 8)], ("<|endoftext|>",)).save(folder)
    commands.refused(capsys, 1, "out holds another preparation: its tokenizer is", *command)
    commands.refused(capsys, 1, "tokenizer is neither bpe nor character, and absent is no folder.*404",
                     *command[:3], "new", "--tokenizer", "absent")
    commands.refused(capsys, 1, "tokenizer is neither bpe nor character, and .*x/y/z.*is missing",
                     *command[:3], "new", "--tokenizer", "x/y/z")
    assert not Path("new").exists()


def test_a_run_keeps_the_name_and_its_own_tokenizer(hub, theirs, capsys):
    tiny.write_text(Path.cwd())
    command = ["train", "--data", "text.txt", *tiny.FLAGS, "--max-iters", "2", "--tokenizer"]
    assert main([*command, "gpt2", "--out-dir", "run"]) == 0
    assert open_run(Path("run")).config.tokenizer == "gpt2"
    assert open_run(Path("run")).tokenizer.merges == theirs.merges
    assert main(["train", "--resume", "run", "--max-iters", "3"]) == 0
    assert [name for name, _ in hub] == ["gpt2"]
    capsys.readouterr()
    commands.refused(capsys, 1, "tokenizer is neither bpe nor character, and absent is no folder.*404",
                     *command, "absent", "--out-dir", "new")
    assert not Path("new").exists()
