"""Records: every layout is read as what it is, and what is none is refused by its line."""

import gzip
import json

import pytest

from npgpt.data.records import FILES, Dialogue, Labelled, Pair, Text, read_records, texts_of
from npgpt.errors import DataError

USER, ANSWER = {"role": "user", "content": "a?"}, {"role": "assistant", "content": "b"}
SYSTEM = {"role": "system", "content": "c"}


def written(folder, *rows):
    path = folder / "data.jsonl"
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("row, record", [
    ({"text": "a\u2028b\x85"}, Text("a\u2028b\x85")),                         # which splitlines would cut
    ({"text": "a", "id": 3}, Text("a")),
    ({"prompt": "a", "completion": ""}, Pair("a", ("",))),
    ({"prompt": "a", "completions": ["b", "c"]}, Pair("a", ("b", "c"))),
    ({"messages": [USER, ANSWER]}, Dialogue((USER, ANSWER), given=0)),
    ({"messages": [USER | {"name": "x"}], "prompt": "a", "completion": "b"},
     Dialogue((USER | {"name": "x"},))),
    ({"messages": [USER | {"name": None}, ANSWER | {"tool_calls": [{"name": "f"}]}], "tools": "[]"},
     Dialogue((USER, ANSWER | {"tool_calls": [{"name": "f"}]}))),
    ({"messages": [USER, ANSWER | {"reasoning": "hm"}], "documents": [], "chat_template_kwargs": {}},
     Dialogue((USER, ANSWER | {"reasoning": "hm", "thinking": "hm", "reasoning_content": "hm"}))),
    ({"prompt": [USER], "completion": [ANSWER], "system": "c", "tools": None},
     Dialogue((SYSTEM, USER, ANSWER), given=2)),
    ({"prompt": [USER], "completion": [ANSWER]}, Dialogue((USER, ANSWER), given=1)),
    ({"prompt": [USER, ANSWER, USER], "completion": [ANSWER]}, Dialogue((USER, ANSWER) * 2, given=3)),
    ({"messages": [USER, ANSWER | {"weight": 1}]}, Dialogue((USER, ANSWER | {"weight": 1}))),
    ({"conversations": [{"from": "human", "value": "a?"}, {"from": "gpt", "value": "b"}], "id": "1"},
     Dialogue((USER, ANSWER))),
    ({"conversations": [{"from": "system", "value": "c"}, USER]}, Dialogue((SYSTEM, USER))),
    ({"conversations": [{"from": "human", "value": "a?"}], "system": "c"}, Dialogue((SYSTEM, USER))),
    ({"conversations": [{"from": "system", "value": "c"}, USER], "system": "d"}, Dialogue((SYSTEM, USER))),
    ({"messages": [USER, ANSWER], "system": "c"}, Dialogue((SYSTEM, USER, ANSWER))),
    ({"messages": [USER, ANSWER], "system": ""}, Dialogue((USER, ANSWER))),
    ({"instruction": "a?", "output": "b", "system": "c"}, Dialogue((SYSTEM, USER, ANSWER))),
    ({"instruction": "a?", "input": "", "output": "b", "history": []}, Dialogue((USER, ANSWER))),
    ({"instruction": "c", "output": "d", "history": [["a?", "b"], ["e", "f"]], "system": "c"},
     Dialogue((SYSTEM, USER, ANSWER, *({"role": role, "content": text} for role, text in (
         ("user", "e"), ("assistant", "f"), ("user", "c"), ("assistant", "d")))))),
    ({"instruction": "a?", "input": "c", "output": "b", "text": "no"},
     Dialogue(({"role": "user", "content": "a?\n\nc"}, ANSWER))),
    ({"text": "a", "label": "good"}, Labelled("a", "good")),
    ({"text": "a", "label": 0}, Labelled("a", "0"))])
def test_each_layout_is_read_as_what_it_is(tmp_path, row, record):
    assert read_records(written(tmp_path, json.dumps(row, ensure_ascii=False), "", "  ")) == [record]


def test_a_byte_order_mark_and_line_ends_of_windows_do_no_harm(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "a"}\r\n{"text": "b"}')
    assert read_records(path) == [Text("a"), Text("b")]


@pytest.mark.parametrize("row, words", [
    ("{", "line 2 is not JSON"),
    ("[" * 100_000, "line 2 is not JSON"),
    ("[1]", "line 2 is no JSON object"),
    ({"a": 1, "b": 2}, "line 2 has the fields a, b; a record is one of"),
    ({}, "line 2 has the fields none"),
    ({"text": 3}, "line 2: its text must be a text, not 3"),
    ({"prompt": "a", "completion": [ANSWER]}, "line 2: its completion must be a text"),
    ({"prompt": "a", "completions": []}, "line 2: its completions must be a list of texts"),
    ({"prompt": "a", "completions": ["a", 1]}, "line 2: its completions must be a list of texts"),
    ({"messages": []}, "line 2: its messages must be a list of at least one"),
    ({"messages": [{"role": "user"}]}, "line 2: a message must have a role and a content"),
    ({"messages": [{"role": "user", "content": [1] * 99}]}, r"line 2: a message must have .*…"),
    ({"messages": ["hello"]}, "line 2: a message must have a role and a content"),
    ({"messages": [USER, ANSWER | {"weight": 0}]}, "line 2: a message has the weight 0: what is not to be"),
    ({"messages": [USER, ANSWER], "tools": [{"name": "f"}]}, "line 2 has tools, which npgpt gives"),
    ({"prompt": [USER], "completion": [ANSWER], "tools": '[{"name": "f"}]'}, "line 2 has tools, which"),
    ({"messages": [USER, ANSWER], "documents": [{"text": "f"}]}, "line 2 has documents, which"),
    ({"messages": [USER], "chat_template_kwargs": {"enable_thinking": False}}, "line 2 has chat_template_kw"),
    ({"messages": [USER, ANSWER | {"content": None, "tool_calls": []}]}, "line 2: a message must have"),
    ({"conversations": "a"}, "line 2: its messages must be a list"),
    ({"messages": [USER], "system": ["c"]}, "line 2: its system must be a text, not ..c"),
    ({"conversations": ["a", {"from": ["human"], "value": "b"}]}, "line 2: a message must have a role"),
    ({"conversations": [{"from": "human", "text": "b"}]}, "line 2: a message must have a role and a content"),
    ({"instruction": "a", "output": None}, "line 2: its output must be a text"),
    ({"instruction": "a", "output": "b", "history": "ab"}, "history must be a list of .*, not 'ab'$"),
    ({"instruction": "a", "output": "b", "history": [["c"]]}, "its history must be a list"),
    ({"instruction": "a", "output": "b", "history": 3}, "history must be a list of .*, not 3$"),
    ({"instruction": "a", "output": "b", "history": [["c", 1]]}, "line 2: a message must have a role and a"),
    ({"text": "a", "label": 1.5}, "line 2: its label must be a text or a whole number"),
    ({"text": "a", "label": [1] * 99}, r"line 2: its label must be .*, not .{79}…$"),
    ({"text": "a", "label": True}, "line 2: its label must be a text or a whole number"),
    ({"text": "a", "label": ""}, "line 2: its label must be a text or a whole number"),
    ({"text": "a", "label": "x"}, "has 1 records with a label and 1 without")])
def test_what_is_no_record_is_refused_by_its_line(tmp_path, row, words):
    with pytest.raises(DataError, match=words):
        read_records(written(tmp_path, {"text": "fine"}, row))


def test_a_json_file_has_a_list_of_records_or_one_a_line(tmp_path):
    path = tmp_path / "alpaca.json"
    path.write_text(json.dumps([{"text": "a"}, {"text": "b"}], indent=1))
    assert read_records(path) == [Text("a"), Text("b")]
    path.write_text('{"text": "a"}\n{"text": "b"}')
    assert read_records(path) == [Text("a"), Text("b")]
    for text, words in [('[{"text": "a"}, 3]', "alpaca.json, record 2 is no JSON object"),
                        ("[", "alpaca.json is not JSON"), ("[]", "is empty"),
                        ('{\n"text": "a"}', "line 1 is not JSON")]:
        path.write_text(text)
        with pytest.raises(DataError, match=words):
            read_records(path)


def test_a_file_that_is_empty_missing_or_not_utf8_is_refused(tmp_path):
    with pytest.raises(DataError, match="is empty: give it a record a line"):
        read_records(written(tmp_path, "", " "))
    with pytest.raises(DataError, match="cannot read .*: No such file"):
        read_records(tmp_path / "none.jsonl")
    (tmp_path / "latin.jsonl").write_bytes(b'{"text": "\xe9"}')
    with pytest.raises(DataError, match="is not UTF-8 at byte 10"):
        read_records(tmp_path / "latin.jsonl")


def test_a_packed_file_is_read_as_what_is_in_it(tmp_path):
    path = tmp_path / "data.jsonl.gz"
    path.write_bytes(gzip.compress(b'\xef\xbb\xbf{"text": "a"}\n'))
    assert read_records(str(path)) == [Text("a")] and path.name.endswith(FILES)
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(DataError, match=r"cannot read .*data.jsonl.gz: .*; mend the file or leave it out"):
        read_records(path)


def test_a_tokenizer_is_given_all_text():
    records = [Text("a"), Pair("b", ("c", "d")), Dialogue((USER, ANSWER)), Labelled("e", "f")]
    assert list(texts_of(records)) == ["a", "bc", "a?", "b", "e"]
