"""npgpt tokenizer: what a user sees of training, encoding, decoding and showing."""

import io
import re
import sys
from types import SimpleNamespace

import commands
import pytest
import tiny

from npgpt.cli.main import main
from npgpt.tokenizers import BPETokenizer, CharacterTokenizer, load_tokenizer


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny.write_text(tmp_path, 4000)
    return tmp_path


def said(capsys, *arguments):
    capsys.readouterr()
    assert main(["tokenizer", *map(str, arguments)]) == 0
    return capsys.readouterr().out


def refused(capsys, status, sentence, *arguments):
    commands.refused(capsys, status, sentence, "tokenizer", *arguments)


def type_in(monkeypatch, data):
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(data)))


def test_train_encode_decode(folder, capsys, monkeypatch):
    (folder / "more").mkdir()
    (folder / "more" / "b.md").write_text("that is the question, naïve one\n" * 50, "utf-8")
    out = said(capsys, "train", "text.txt", "more", "--vocab-size", 285, "--pattern", "cl100k",
               "--special-tokens", "<|endoftext|>", "<s>", "--out-dir", "tok")
    assert "tok: 285 tokens from 5,600 characters" in out
    tokenizer = load_tokenizer("tok")
    texts = [(folder / name).read_text("utf-8") for name in ("text.txt", "more/b.md")]
    assert tokenizer.merges == BPETokenizer.train(texts, 285, "cl100k", ("<|endoftext|>", "<s>")).merges
    assert tokenizer.special_tokens == {"<|endoftext|>": 283, "<s>": 284} and tokenizer.pattern == "cl100k"

    before = {path.name: path.read_bytes() for path in (folder / "tok").iterdir()}
    refused(capsys, 1, "tok already holds a tokenizer", "train", "text.txt", "--out-dir", "tok")
    refused(capsys, 2, "no text is named", "train", "--out-dir", "other")
    assert {path.name: path.read_bytes() for path in (folder / "tok").iterdir()} == before

    (folder / "in.txt").write_bytes("to be<s> naïve\r\n".encode())
    ids = said(capsys, "encode", "tok", "in.txt")
    assert [int(id) for id in ids.split()] == tokenizer.encode_ordinary("to be<s> naïve\r\n")
    assert 284 in map(int, said(capsys, "encode", "tok", "in.txt", "--special").split())
    type_in(monkeypatch, b"to be")
    assert said(capsys, "encode", "tok") == " ".join(map(str, tokenizer.encode("to be"))) + "\n"
    type_in(monkeypatch, ids.encode())
    assert said(capsys, "decode", "tok") == "to be<s> naïve\r\n"


def test_the_bar_of_a_training_stands_on_standard_error(folder, capfd, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["tokenizer", "train", "text.txt", "--vocab-size", "260", "--out-dir", "tok"]) == 0
    said = capfd.readouterr()
    assert said.out.startswith("tok: 260 tokens from 4,000 characters in ") and said.out.count("\n") == 1
    assert "0.0 MB read, merges:" in said.err and "3/3" in said.err


def test_a_text_that_gives_out_is_told(folder, capsys):
    out = said(capsys, "train", "text.txt", "--out-dir", "tok")
    assert "every piece of the text has become one token: there is none left for 4,096" in out


def test_show_marks_the_tokens_their_ids_and_what_a_token_holds(folder, capsys):
    BPETokenizer([(83, 78)], special_tokens=["<s>"]).save("tok")              # t o
    out = said(capsys, "show", "tok", "to é\n<s>\x1b")
    assert out.splitlines()[:2] == ["to| |\\xc3|\\xa9|↵", "|<|s|>|·"]
    assert "256 220 127 102 198 27 82 29 215" in out and "9 tokens, 9 characters, 1.11 bytes a token" in out
    assert "|<s>|" in said(capsys, "show", "tok", "to <s> to", "--special")
    assert "1 token, 3 characters, 3.00 bytes a token" in said(capsys, "show", "tok", "<s>", "--special")
    assert "0 tokens, 0 characters, 0.00 bytes" in said(capsys, "show", "tok", "")
    CharacterTokenizer("ab\ufffd").save("characters")
    assert said(capsys, "show", "characters", "ab\ufffd").splitlines()[0] == "a|b|\ufffd"


def test_show_uses_colours_where_there_are_any(folder, capsys, monkeypatch):
    BPETokenizer(()).save("tok")
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    out = said(capsys, "show", "tok", "ab")
    assert "|" not in out and len(set(re.findall(r"\x1b\[(3[\d;]+)m", out))) == 2


def test_what_cannot_be(folder, capsys, monkeypatch):
    BPETokenizer(()).save("tok")
    refused(capsys, 2, "unknown action 'tran': npgpt tokenizer can train, encode, decode, show", "tran")
    refused(capsys, 1, "no file, folder or built-in corpus called 'absent'", "train", "absent",
            "--out-dir", "x")
    refused(capsys, 1, "vocab_size 5 is too small", "train", "text.txt", "--out-dir", "x", "--vocab-size", 5)
    refused(capsys, 1, "unknown split pattern 'gpt5'", "train", "text.txt", "--out-dir", "x",
            "--pattern", "gpt5")
    refused(capsys, 1, "workers must be at least 1", "train", "text.txt", "--out-dir", "x", "--workers", 0)
    refused(capsys, 2, "out-dir", "train", "text.txt")
    assert not (folder / "x").exists()
    refused(capsys, 1, "absent/tokenizer_config.json is missing", "encode", "./absent", "text.txt")
    refused(capsys, 1, "No such file or directory: absent", "encode", "tok", "absent")
    (folder / "ids").write_text("1 two 3")
    refused(capsys, 1, "'two' is no token id", "decode", "tok", "ids")
    (folder / "ids").write_text("1 300")
    refused(capsys, 1, "token id 300 at position 1 is not in the vocabulary", "decode", "tok", "ids")
    (folder / "latin").write_bytes(b"caf\xe9")
    refused(capsys, 1, "latin is not UTF-8 at byte 3", "encode", "tok", "latin")
    type_in(monkeypatch, b"\xff")
    refused(capsys, 1, "standard input is not UTF-8 at byte 0", "encode", "tok")


def test_the_actions_are_listed(capsys):
    assert main(["tokenizer"]) == 2 and main(["tokenizer", "--help"]) == 0
    assert capsys.readouterr().out.count("\n  train   Train a byte-level BPE tokenizer") == 2
