"""Tokens that stand for a text of their own and are no special ones, as <think> and <tool_call> of Qwen3."""

import json
import random
import re

import pytest

from npgpt.data.examples import encode_records
from npgpt.data.records import Dialogue
from npgpt.errors import TokenizerError
from npgpt.generation.chat import Conversation
from npgpt.tokenizers import BPETokenizer, load_tokenizer

SPECIAL, ADDED = {"<s>": 300, "</s>": 301}, {"<think>": 302, "</think>": 305, "  ": 303}
THINK, UNTHINK, SPACES = 302, 305, 303


def tokenizer(**settings):
    return BPETokenizer([(220, 83)], SPECIAL, added_tokens=ADDED, **settings)


def ordinary(text):
    return BPETokenizer([(220, 83)], ()).encode(text)


def test_they_are_found_in_every_text():
    ours, expected = tokenizer(), [*ordinary("a"), THINK, *ordinary(" to"), SPACES, *ordinary("b")]
    text = "a<think> to  b"
    assert ours.encode(text) == ours.encode_ordinary(text) == ours.encode_bytes(text.encode()) == expected
    assert ours.encode(text, disallowed_special=()) == ours.encode(text, allowed_special="all") == expected
    assert ours.decode(expected) == text and ours.token_bytes(THINK) == b"<think>" and THINK in ours
    assert ours.vocab_size == 306


def test_special_tokens_beside_them_stay_what_they_are():
    ours = tokenizer()
    assert ours.encode("<s><think>", allowed_special="all") == [300, THINK]
    assert ours.encode_ordinary("<s><think>") == [*ordinary("<s>"), THINK]
    with pytest.raises(TokenizerError, match="special token '<s>' at position 7"):
        ours.encode("<think><s>")


def test_a_message_may_have_them_and_a_conversation_learns_them():
    pytest.importorskip("jinja2")
    ours = tokenizer()
    Conversation(None, ours, 64, max_new_tokens=8)._prompt([{"role": "user", "content": "<think>"}])
    talk = Dialogue(({"role": "user", "content": "<think>"}, {"role": "assistant", "content": "</think>a"}))
    examples, left_out = encode_records([talk], ours, 64, [301], lambda messages, speaks: "".join(
        message["content"] for message in messages))
    assert not left_out and examples.tokens.tolist() == [THINK, UNTHINK, *ordinary("a")]


def test_they_are_saved_as_they_are(tmp_path):
    ours = tokenizer(prefix_token="<think>", normalizer="NFC")
    ours.save(tmp_path)
    entries = {entry["content"]: entry
               for entry in json.loads((tmp_path / "tokenizer.json").read_bytes())["added_tokens"]}
    assert {name: entry["special"] for name, entry in entries.items()} == {
        "<s>": True, "</s>": True, "<think>": False, "</think>": False, "  ": False}
    assert all(entries[name]["id"] == id for name, id in (SPECIAL | ADDED).items())
    for path in (tmp_path, tmp_path / "tokenizer.json"):
        read = load_tokenizer(path)
        assert (read.special_tokens, read.added_tokens, read.prefix) == (SPECIAL, ADDED, (THINK,))
    BPETokenizer(()).save(tmp_path / "before")
    config = tmp_path / "before" / "tokenizer_config.json"
    entries = json.loads(config.read_bytes())
    del entries["added_tokens"]
    config.write_text(json.dumps(entries))
    assert load_tokenizer(tmp_path / "before").added_tokens == {}


@pytest.mark.parametrize("added, reason", [
    ({"<s>": 310}, "'<s>' is both a special and an added one"), ({"<x>": 301}, "'<x>' has the id 301"),
    ({"": 310}, "'' is not a non-empty piece"), ({"a": 310}, "'a' is also how vocab.json writes")])
def test_those_that_do_not_fit_are_refused(added, reason):
    with pytest.raises(TokenizerError, match=reason):
        BPETokenizer((), SPECIAL, added_tokens=added)


def test_the_ids_are_hugging_faces(tmp_path):
    pytest.importorskip("tokenizers.models")                # this folder is called "tokenizers" too
    import tokenizers
    tokenizer().save(tmp_path)
    saved  = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    theirs = json.loads((tmp_path / "tokenizer.json").read_bytes())
    theirs["added_tokens"][2]["normalized"] = True                     # of a text that nothing normalises
    (tmp_path / "theirs.json").write_text(json.dumps(theirs))
    theirs, draw = tokenizers.Tokenizer.from_file(str(tmp_path / "theirs.json")), random.Random(0)
    for ours in (load_tokenizer(tmp_path), load_tokenizer(tmp_path / "theirs.json")):
        for _ in range(300):
            text = "".join(draw.choices([*SPECIAL, *ADDED, "<", "think>", " ", " to", "\n", "e"], k=9))
            for special, ids in ((False, ours.encode(text, "all")), (True, ours.encode_ordinary(text))):
                theirs.encode_special_tokens = saved.encode_special_tokens = special
                assert ids == theirs.encode(text).ids == saved.encode(text).ids, text


@pytest.mark.parametrize("token", ["</think>", "</s>"])                  # the second is special
@pytest.mark.parametrize("flag, normalizer, refused", [
    ("lstrip", None, True), ("rstrip", None, True), ("single_word", None, True), ("normalized", "NFC", True),
    ("normalized", None, False)])
def test_one_that_is_found_otherwise_than_as_it_is_written_is_refused(flag, normalizer, refused, token,
                                                                      tmp_path):
    tokenizer(normalizer=normalizer).save(tmp_path)
    data = json.loads((tmp_path / "tokenizer.json").read_bytes())
    next(one for one in data["added_tokens"] if one["content"] == token)[flag] = True
    refused = refused and (token in ADDED or flag != "normalized")
    (tmp_path / "theirs.json").write_text(json.dumps(data))
    if refused:
        with pytest.raises(TokenizerError, match=f"its added token '{re.escape(token)}' asks for {flag},"):
            load_tokenizer(tmp_path / "theirs.json")
    else:
        assert load_tokenizer(tmp_path / "theirs.json").added_tokens == ADDED
