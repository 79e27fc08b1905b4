"""What is found, and what becomes of awkward bytes: the promises of the module's docstring."""

import codecs
import gzip
import io
import json
import os
import tracemalloc
from collections import Counter

import pytest

from npgpt.data import packed, reading
from npgpt.data.reading import Segment, cut_into_parts, find_files, read_segment
from npgpt.errors import DataError

try:
    compress = packed._zstandard().compress
except DataError:
    compress = None


def read(path, counts=None, field="text"):
    """The texts of a file, whatever the parts it is cut into."""
    counts = Counter() if counts is None else counts
    return [piece.text for part in cut_into_parts([path]) for segment in part
            for piece in read_segment(segment, field, counts)]


def lines(*records):
    return "".join(record if isinstance(record, str) else json.dumps(record) + "\n"
                   for record in records).encode()


def test_folders_in_sorted_order_without_the_hidden_and_the_written(tmp_path):
    for name in ("b.txt", "a/z.md", "a/deep/x.JSONL", "a.txt.gz", "c.ndjson.zst", "C.MD.GZ", "note",
                 "image.png", "data.gz", ".hidden.txt", ".git/x.txt", "out/train.txt", "a/out/kept.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_text("x")
    (tmp_path / "a/loop").symlink_to(tmp_path)
    (tmp_path / "z.txt").symlink_to("b.txt")                            # the same file, and read once
    found = find_files([tmp_path], tmp_path / "out")
    assert [str(path.relative_to(tmp_path)) for path in found] == [
        "C.MD.GZ", "a/deep/x.JSONL", "a/out/kept.txt", "a/z.md", "a.txt.gz", "b.txt", "c.ndjson.zst"]
    by_name = find_files([tmp_path / "note", tmp_path / "b.txt", tmp_path, tmp_path / "a/../note"],
                         tmp_path / "out")
    assert [path.name for path in by_name][:3] == ["note", "b.txt", "C.MD.GZ"] and len(by_name) == 8


def test_paths_that_are_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for path, says in ((tmp_path / "absent", "no file or folder"), (tmp_path / "empty", "holds no text"),
                       (tmp_path / "pipe", "no regular file"), (tmp_path, "is the folder to write to")):
        with pytest.raises(DataError, match=says):
            find_files([path], tmp_path)


@pytest.mark.parametrize(("content", "texts", "counted"), [
    (b"", [""], {}),
    (b"a\0b", ["a\0b"], {}),
    (2 * codecs.BOM_UTF8 + b"a", ["\ufeffa"], {"byte_order_mark": 1}),
    (b"a\r\nb\rc\n", ["a\r\nb\rc\n"], {}),
    (b"ab\xffc\xe4", ["ab\udcffc\udce4"], {}),
    ("aä€😀".encode()[:-1], ["aä€\udcf0\udc9f\udc98"], {}),
    ("aé".encode("utf-16"), ["\udcff\udcfea\0\udce9\0"], {}),
])
def test_awkward_bytes_of_a_text(tmp_path, monkeypatch, content, texts, counted):
    for chunk in (1, 2, 3, 1 << 20):                                    # read in one go, or inside characters
        monkeypatch.setattr(reading, "_CHUNK", chunk)
        (tmp_path / "a.txt").write_bytes(content)
        counts = Counter()
        assert read(tmp_path / "a.txt", counts) == texts and +counts == counted


@pytest.mark.parametrize("chunk", [1, 3, 1000])
@pytest.mark.parametrize("length", [0, 1, 9, 10, 11, 20, 35])
def test_a_long_document_is_cut_at_characters_and_loses_none(tmp_path, monkeypatch, chunk, length):
    monkeypatch.setattr(reading, "_CHUNK", chunk)
    monkeypatch.setattr(reading, "MAX_CHARACTERS", 10)
    text = "aé€😀\r\n" * 6
    text = text[:length]
    (tmp_path / "a.md").write_bytes(text.encode())
    (tmp_path / "a.jsonl").write_bytes(lines({"text": text}, {"text": "next"}))
    for name, after in (("a.md", []), ("a.jsonl", ["next"])):
        counts = Counter()
        pieces = [piece for part in cut_into_parts([tmp_path / name]) for segment in part
                  for piece in read_segment(segment, "text", counts)]
        texts = [piece.text for piece in pieces][:len(pieces) - len(after)]
        assert "".join(texts) == text and len(texts) == max(1, -(-length // 10))
        assert all(len(part) == 10 for part in texts[:-1])
        assert [piece.first for piece in pieces] == [True] + [False] * (len(texts) - 1) + [True] * len(after)
        assert counts["cut"] == (length > 10)


def test_awkward_lines(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "MAX_LINE", 200)
    monkeypatch.setattr(reading, "_CHUNK", 7)
    counts = Counter()
    (tmp_path / "a.jsonl").write_bytes(
        codecs.BOM_UTF8
        + lines({"text": "first", "x": 1}, "\n", "  \r\n", '{"text": "crlf\\r\\n\\u0000"}\r\n',
                {"text": "x" * 300}, {"text": ""}, "{broken\n", "[" * 190 + "\n", "[1]\n", '"text"\n',
                {"text": 7}, {"other": "a"}, {"text": None}, '{"text": "\\ud83d"}\n')
        + b'{"text": "bad \xff"}\n' + b'{"text": "last"}')
    texts = read(tmp_path / "a.jsonl", counts)
    assert texts == ["first", "crlf\r\n\0", "", "\ud83d", "bad \udcff", "last"]
    assert counts == {"byte_order_mark": 1, "long_line": 1, "invalid_json": 2, "no_text": 5, "cut": 0}
    assert read(tmp_path / "a.jsonl", counts, field="other") == ["a"]
    (tmp_path / "b.jsonl").write_bytes(b'{"text": "' + b"x" * 400)          # a long line without an end
    counts.clear()
    assert read(tmp_path / "b.jsonl", counts) == [] and +counts == {"long_line": 1}


def test_a_line_that_just_fits_is_read_and_so_is_the_next(tmp_path, monkeypatch):
    (tmp_path / "a.jsonl").write_bytes(lines({"text": "fits"}, {"text": "next"}))
    monkeypatch.setattr(reading, "MAX_LINE", len(lines({"text": "fits"})))
    counts = Counter()
    assert read(tmp_path / "a.jsonl", counts) == ["fits", "next"] and not +counts


def test_a_byte_order_mark_is_dropped_at_the_files_start_alone(tmp_path, monkeypatch):
    marked = codecs.BOM_UTF8 + lines({"text": "a"})
    (tmp_path / "a.jsonl").write_bytes(2 * marked)
    for part in (len(marked), 1 << 22):                                     # the second begins a part, or not
        monkeypatch.setattr(reading, "_PART", part)
        counts = Counter()
        assert read(tmp_path / "a.jsonl", counts) == ["a"]
        assert +counts == {"byte_order_mark": 1, "invalid_json": 1}


def test_long_files_of_lines_are_cut_and_others_are_not(tmp_path, monkeypatch):
    """A compressed one can only be read from its beginning: cut, each part would give all of it."""
    texts = [str(n) for n in range(50)]
    for name, content in (("a.jsonl", lines(*({"text": text} for text in texts))), ("b.txt", b"x" * 700)):
        (tmp_path / name).write_bytes(content)
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress(content))
    monkeypatch.setattr(reading, "_PART", 100)
    found = {path.name: len(cut_into_parts([path])) for path in tmp_path.iterdir()}
    size  = (tmp_path / "a.jsonl").stat().st_size
    assert found == {"a.jsonl": -(-size // 100), "a.jsonl.gz": 1, "b.txt": 1, "b.txt.gz": 1}
    assert read(tmp_path / "a.jsonl.gz") == read(tmp_path / "a.jsonl") == texts


def test_a_line_nested_too_deep_is_not_json(tmp_path):
    (tmp_path / "a.jsonl").write_text("[" * 200_000 + "\n" + '{"text": "after"}\n')
    counts = Counter()
    assert read(tmp_path / "a.jsonl", counts) == ["after"] and +counts == {"invalid_json": 1}


@pytest.mark.parametrize("part", [1, 2, 7, 50, 64, 10**6])
def test_every_line_is_in_one_part_wherever_the_file_is_cut(tmp_path, monkeypatch, part):
    monkeypatch.setattr(reading, "_PART", part)
    monkeypatch.setattr(reading, "_CHUNK", 5)
    texts = ["é" * (n % 23) for n in range(40)]
    for ending in ("", "\n", "\n\n"):
        (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"text": t}) for t in texts) + ending)
        counts = Counter()
        assert read(tmp_path / "a.jsonl", counts) == texts and not +counts
    monkeypatch.setattr(reading, "MAX_LINE", 60)                            # long lines over several cuts
    read(tmp_path / "a.jsonl", counts)
    expected = sum(len(json.dumps({"text": t})) >= 60 for t in texts)
    assert counts["long_line"] == expected and sum(counts.values()) == expected > 10


def test_of_a_line_through_many_parts_each_reads_its_own_share(tmp_path, monkeypatch):
    class Counting(io.BytesIO):
        def readline(self, size=-1):
            line = super().readline(size)
            read.append(len(line))
            return line

    monkeypatch.setattr(reading, "MAX_LINE", 60)
    monkeypatch.setattr(reading, "_CHUNK", 10)
    content, counts, read = lines("x" * 5000 + "\n", {"text": "last"}), Counter(), []
    texts = [piece.text for start in range(0, len(content), 100)
             for piece in reading._lines(Counting(content), start, start + 100, "text", counts)]
    assert texts == ["last"] and +counts == {"long_line": 1}
    assert sum(read) < 1.5 * len(content)


def test_parts_hold_every_file_once_and_small_files_together(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "_PART", 100)
    files = []
    for n, size in enumerate((0, 40, 70, 10, 350, 30, 0)):
        files.append(tmp_path / f"{n}.txt")
        files[-1].write_text("x" * size)
    parts = cut_into_parts(files)
    assert [[int(segment.path[-5]) for segment in part] for part in parts] == [[0, 1, 2], [3, 4], [5, 6]]
    assert [segment for part in parts for segment in part] == [
        Segment(str(path), 0, path.stat().st_size) for path in files]


def test_compressed_files(tmp_path):
    text, records = "é\r\n" * 1000, lines({"text": "a"}, {"text": "b"})
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(text.encode()) + gzip.compress(b"more"))
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(records))
    assert read(tmp_path / "a.txt.gz") == [text + "more"] and read(tmp_path / "a.jsonl.gz") == ["a", "b"]
    whole = (tmp_path / "a.txt.gz").read_bytes()
    for damaged in (whole[:-3], whole[:20], b"no gzip", whole[:30] + b"\xff\xff" + whole[32:]):
        (tmp_path / "a.txt.gz").write_bytes(damaged)
        with pytest.raises(DataError, match=r"cannot read .*a.txt.gz: .*; mend the file or leave it out"):
            read(tmp_path / "a.txt.gz")


@pytest.mark.skipif(compress is None, reason="needs Zstandard")
def test_zstandard_files(tmp_path):
    text, records = "é\r\n" * 1000, lines({"text": "a"}, {"text": "b"})
    (tmp_path / "a.txt.zst").write_bytes(compress(text.encode()) + compress(b"more"))
    (tmp_path / "a.jsonl.zst").write_bytes(compress(records))
    assert read(tmp_path / "a.txt.zst") == [text + "more"] and read(tmp_path / "a.jsonl.zst") == ["a", "b"]
    whole = (tmp_path / "a.txt.zst").read_bytes()
    for damaged in (whole[:-3], whole[:15], b"no zstd"):
        (tmp_path / "a.txt.zst").write_bytes(damaged)
        with pytest.raises(DataError, match=r"cannot read .*a.txt.zst: .*; mend the file or leave it out"):
            read(tmp_path / "a.txt.zst")


def test_what_goes_wrong_with_what_was_read_is_no_fault_of_the_file(tmp_path):
    (tmp_path / "a.txt").write_text("a")
    with pytest.raises(ValueError, match="^a fault$"), packed.opened(tmp_path / "a.txt"):
        raise ValueError("a fault")


def test_without_zstandard_is_one_sentence(tmp_path, monkeypatch):
    for name in ("compression", "backports"):
        monkeypatch.setitem(__import__("sys").modules, name, None)
    (tmp_path / "a.txt.zst").write_bytes(b"")
    with pytest.raises(DataError, match=r"not installed: pip install 'npgpt\[prepare\]', or unpack"):
        read(tmp_path / "a.txt.zst")


@pytest.mark.parametrize("name", ["long.txt", "long.jsonl"])
def test_a_line_of_50_megabytes_is_streamed(tmp_path, name):
    with (tmp_path / name).open("wb") as file:
        file.write(b'{"text": "')
        for _ in range(50):
            file.write(b"word " * 200_000)
        file.write(b'"}\n{"text": "after"}\n')
    counts = Counter()
    tracemalloc.start()
    characters = found = 0
    for part in cut_into_parts([tmp_path / name]):
        for segment in part:
            for piece in read_segment(segment, "text", counts):
                characters += len(piece.text)
                found += 1
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < (15e6 if name == "long.txt" else 2.2 * reading.MAX_LINE)
    if name == "long.txt":
        assert characters == (tmp_path / name).stat().st_size and found == 26 and counts["cut"] == 1
    else:
        assert characters == 5 and found == 1 and +counts == {"long_line": 1}
