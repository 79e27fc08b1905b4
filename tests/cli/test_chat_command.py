"""npgpt chat, with what is typed given line by line."""

import io

import pytest
import tiny

from npgpt.cli.main import main
from npgpt.generation.chat import Conversation

pytest.importorskip("jinja2")


@pytest.fixture(autouse=True)
def typed(tmp_path, monkeypatch, capsys):
    """A function that hands over lines, in a folder with a trained run."""
    monkeypatch.chdir(tmp_path)
    tiny.write_text(tmp_path, 9000)
    assert main(["train", "--data", "text.txt", *tiny.FLAGS, "--out-dir", "run", "--tokenizer", "bpe",
                 "--vocab-size", "270", "--block-size", "64"]) == 0
    capsys.readouterr()
    return lambda text: monkeypatch.setattr("sys.stdin", io.StringIO(text))


CHAT = ["chat", "run", "--max-new-tokens", "6", "--no-do-sample"]


def test_every_line_is_answered_until_the_end_and_the_same_again(typed, capsys):
    said = []
    for lines in ("to be\nor not\n", "to be\nor not\n/quit\nnever\n", "to be\n/reset\nto be\n\n"):
        typed(lines)
        assert main(CHAT) == 0
        said.append(capsys.readouterr().out.splitlines())
    assert said[0] == said[1] and len(said[0]) >= 2
    half = len(said[2]) // 2
    assert said[2][:half] == said[2][half:]                       # after /reset it has forgotten all


def test_an_interrupt_stops_the_answer_and_not_the_program(typed, capsys, monkeypatch):
    closed = []
    def answer(self, text):
        try:
            yield f"{text}: one"
            if text == "first":
                raise KeyboardInterrupt
            yield " two"
        finally:
            closed.append(text)
    monkeypatch.setattr(Conversation, "answer", answer)
    typed("first\nsecond\n")
    assert main(CHAT) == 0
    assert capsys.readouterr().out == "first: one …\nsecond: one two\n" and closed == ["first", "second"]


def test_what_cannot_be_said_is_one_line_and_the_conversation_goes_on(typed, capsys):
    typed("<|endoftext|>\nto be\n")
    assert main(CHAT) == 0
    out, err = capsys.readouterr()
    assert "endoftext" in err and err.count("\n") == 1 and out.strip()


@pytest.mark.parametrize(("arguments", "words"), [
    (["chat", "nowhere"], "nowhere"), (["chat", "run", "--top-p", "2"], "top_p must be"),
    (["chat", "run", "--max-new-tokens", "0"], "max_new_tokens must be at least 1")])
def test_bad_input_is_refused_in_one_line(typed, capsys, arguments, words):
    typed("to be\n")
    assert main(arguments) == 1
    err = capsys.readouterr().err
    assert words in err and err.count("\n") == 1


def test_without_jinja_one_sentence_tells_how_to_get_it(typed, capsys, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "jinja2", None)
    typed("to be\n")
    assert main(CHAT) == 1
    assert "npgpt[chat]" in capsys.readouterr().err
