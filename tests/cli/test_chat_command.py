"""npgpt chat, with what is typed given line by line."""

import io
from pathlib import Path

import pytest
import tiny

from npgpt.cli.chat import HELP
from npgpt.cli.main import main
from npgpt.generation.chat import Conversation
from npgpt.training.loading import load_model

pytest.importorskip("jinja2")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """With a trained run."""
    path = tmp_path_factory.mktemp("chat")
    assert main(["train", "--data", str(tiny.write_text(path, 9000)), *tiny.FLAGS, "--tokenizer", "bpe",
                 "--vocab-size", "270", "--block-size", "64", "--out-dir", str(path / "run")]) == 0
    return path


@pytest.fixture(autouse=True)
def typed(folder, monkeypatch):
    """A function that hands over lines, in that folder."""
    monkeypatch.chdir(folder)
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


def test_an_answer_is_what_the_options_make_it(typed, capsys):
    model, tokenizer, ends, *_ = load_model(Path("run"), "10", "cpu", print)
    said = []
    for flags, settings in (
            ("", {}), ("--temperature 3", {"temperature": 3.0}), ("--top-k 9", {"top_k": 9}),
            ("--top-p 0.3", {"top_p": 0.3}), ("--repetition-penalty 9", {"repetition_penalty": 9.0}),
            ("--seed 5", {"seed": 5}), ("--system question", {"system": "question"})):
        typed("to be")
        assert main(["chat", "run", "--checkpoint", "10", "--max-new-tokens", "12", *flags.split()]) == 0
        said.append(capsys.readouterr().out)
        plain  = {"do_sample": True, "temperature": 0.7, "top_k": 50, "top_p": 0.9, "max_new_tokens": 12}
        answer = Conversation(model, tokenizer, 64, eos_token_id=ends, **plain | settings).answer("to be")
        assert said[-1] == "".join(answer).lstrip() + "\n", flags
    assert len(set(said)) == 7


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


@pytest.mark.parametrize(("terminal", "status", "out", "err"), [
    (True,  0,   "·[2Jto be\n", "{HELP}\n\n/quit or Ctrl-D ends\n"),
    (False, 130, "\x1b[2Jto be\n", "npgpt: interrupted\n")])
def test_a_terminal_has_help_and_prompts_and_is_not_steered(typed, capsys, monkeypatch, terminal, status, out,
                                                            err):
    """Ctrl-C where a message is awaited ends nothing there, and elsewhere all."""
    prompts, lines = [], iter([None, KeyboardInterrupt, EOFError])
    def read(prompt):
        prompts.append(prompt)
        if error := next(lines):
            raise error
        return "to be "
    monkeypatch.setattr(Conversation, "answer", lambda self, text: iter([f"\x1b[2J{text}"]))
    monkeypatch.setattr("builtins.input", read)
    typed("")
    for stream in "stdin", "stdout":
        monkeypatch.setattr(f"sys.{stream}.isatty", lambda: terminal)
    assert main(CHAT) == status
    assert capsys.readouterr() == (out, err.format(HELP=HELP))
    assert prompts == (3 * ["\n> "] if terminal else 2 * [""])


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
