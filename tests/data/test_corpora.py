import codecs
import gzip
import os
import socket
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from npgpt.data import corpora
from npgpt.data.corpora import read_documents, split_documents
from npgpt.errors import ConfigError, DataError

# Reading

def test_the_built_in_corpus():
    documents = read_documents("python-docs")
    assert len(documents) >= 70 and 300_000 < sum(map(len, documents)) < 1_000_000
    assert any(text.startswith('The "assert" statement') for text in documents)
    assert documents == read_documents("python-docs")


def test_the_built_in_corpus_is_in_the_order_of_its_names(monkeypatch):
    import pydoc_data.topics

    monkeypatch.setattr(pydoc_data.topics, "topics", {"b": "2", "a": "1", "c": "3"})
    assert read_documents("python-docs") == ["1", "2", "3"]


def test_a_python_without_the_corpus(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pydoc_data.topics", None)
    with pytest.raises(DataError, match="without pydoc_data"):
        read_documents("python-docs")


@pytest.mark.parametrize("name", ["text.txt", "no_suffix", "odd.bin", ".hidden"])
def test_a_file_of_any_name_is_one_document_with_every_byte_kept(tmp_path, name):
    text = "\r\na\rb\n\n\x00\x0c\u2028ä\u4f60\U0001f642 \ufeff\n"
    (tmp_path / name).write_bytes(text.encode())
    assert read_documents(str(tmp_path / name)) == [text]


def test_packed_files_are_read_as_what_is_in_them(tmp_path):
    (tmp_path / "b.txt").write_text("2")
    for name, text in (("a.MD.gz", "\ufeff1\r\n"), ("c.txt.gz", "3"), ("data.gz", "4"), ("e.txt.gz", "")):
        (tmp_path / name).write_bytes(gzip.compress(text.encode()))
    assert read_documents(str(tmp_path)) == ["1\r\n", "2", "3"]
    assert read_documents(str(tmp_path / "data.gz")) == ["4"]
    (tmp_path / "c.txt.gz").write_bytes(gzip.compress(b"3" * 99)[:-9])
    (tmp_path / "f.tar.gz").write_bytes(gzip.compress(b"a.txt"))
    for name, says in (("", r"cannot read .*c.txt.gz: .*; mend the file or leave it out"),
                       ("e.txt.gz", "is empty"), ("f.tar.gz", "gz is an archive of several files: unpack")):
        with pytest.raises(DataError, match=says):
            read_documents(str(tmp_path / name))


def test_one_byte_order_mark_is_dropped(tmp_path):
    (tmp_path / "a.txt").write_bytes(2 * codecs.BOM_UTF8 + b"a")
    assert read_documents(str(tmp_path / "a.txt")) == ["\ufeffa"]


def test_a_folder_is_read_in_order_without_the_hidden_and_the_empty(tmp_path):
    for name in ("b.txt", "a/z.md", "a/y/deep.PY", "a.rst", "C.TXT", "note", "image.png", ".hidden.txt",
                 ".git/config.txt", "a/.cache/x.txt", "a/same.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "a/same2.txt").write_text("a/same.txt")  # the same text twice is read twice
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "mark.txt").write_bytes(codecs.BOM_UTF8)
    (tmp_path / "a/loop").symlink_to(tmp_path)
    (tmp_path / "link.txt").symlink_to(tmp_path / "note")
    assert read_documents(str(tmp_path)) == [
        "C.TXT", "a/same.txt", "a/same.txt", "a/y/deep.PY", "a/z.md", "a.rst", "b.txt", "note"]


def make(folder: Path, kind: str) -> str:
    """Something in the folder that cannot be read; its path."""
    path = folder / "data.txt"
    match kind:
        case "missing":
            pass
        case "empty" | "only a byte order mark":
            path.write_bytes(b"" if kind == "empty" else codecs.BOM_UTF8)
        case "latin-1":
            path.write_bytes("abc ä".encode("latin-1"))
        case "not UTF-8 after a mark":
            path.write_bytes(codecs.BOM_UTF8 + b"abc\xff")
        case "utf-16":
            path.write_text("abc", encoding="utf-16")
        case "cut inside a character":
            path.write_bytes("abcd€".encode()[:-1])
        case "empty folder":
            path.mkdir()
        case "folder without text":
            path.mkdir()
            (path / "image.png").write_bytes(b"\x89PNG")
            (path / "empty.txt").touch()
        case "folder with one bad file":
            path.mkdir()
            (path / "a.txt").write_text("good")
            (path / "b.txt").write_bytes(b"12\xff")
        case "folder with a pipe":
            path.mkdir()
            os.mkfifo(path / "b.txt")
        case "folder with a broken link":
            path.mkdir()
            (path / "b.txt").symlink_to("nowhere")
        case "pipe":
            os.mkfifo(path)
        case "socket":
            with socket.socket(socket.AF_UNIX) as server:
                server.bind(os.path.relpath(path))  # short: a socket's name has 108 bytes at most
        case "device":
            return "/dev/zero"
        case "file for a folder":
            path.write_text("a")
            return str(path / "b")
        case "link to itself":
            path.symlink_to(path)
        case "reading fails":
            return "/proc/self/mem"  # a regular file by its type, and not even root can read it
        case "too long":
            return "a" * 300
        case "zero byte":
            return "a\0b"
        case "no name":
            return ""
        case "almost built in":
            return "python_docs"
    return str(path)


@pytest.mark.parametrize(("kind", "says"), [
    ("missing", "there is no file, folder or built-in corpus called .*; built in: python-docs$"),
    ("empty", "is empty"),
    ("only a byte order mark", "is empty"),
    ("latin-1", "is not UTF-8 at byte 4;"),
    ("not UTF-8 after a mark", "is not UTF-8 at byte 6;"),
    ("utf-16", "is not UTF-8 at byte 0;"),
    ("cut inside a character", "is not UTF-8 at byte 4;"),
    ("empty folder", "holds no text"),
    ("folder without text", "holds no text"),
    ("folder with one bad file", "/b.txt is not UTF-8 at byte 2;"),
    ("folder with a pipe", "/b.txt is no regular file"),
    ("folder with a broken link", r"No such file .*/b.txt"),
    ("pipe", "is no regular file"),
    ("socket", "is no regular file"),
    ("device", "is no regular file"),
    ("file for a folder", "there is no file"),
    ("link to itself", "there is no file|cannot read"),
    ("reading fails", r"cannot read .*(Input/output error|Bad address)"),
    ("too long", r"there is no file|cannot read .*too long"),
    ("zero byte", "there is no file|cannot read"),
    ("no name", "there is no file"),
    ("almost built in", "called 'python_docs'; built in: python-docs$"),
])
def test_data_that_cannot_be_read(tmp_path, monkeypatch, kind, says):
    monkeypatch.chdir(tmp_path)
    source = make(tmp_path, kind)
    with pytest.raises(DataError, match=says) as error:
        read_documents(source)
    assert repr(source)[1:-1] in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(("name", "advice"), [
    ("a.PARQUET", r"in Python, pandas.read_parquet\('a.PARQUET'\).to_json\('a.jsonl', orient='records', lin"),
    ("b.arrow", r"in Python, datasets.Dataset.from_file\('b.arrow'\).to_json\('b.jsonl'\) makes records"),
    ("d.txt", r"convert it to UTF-8 \(iconv -t utf-8\) or leave it out$")])
def test_what_to_do_with_what_is_no_text_goes_by_its_name(tmp_path, monkeypatch, name, advice):
    monkeypatch.chdir(tmp_path)
    Path(name).write_bytes(b"PAR1\xff")
    with pytest.raises(DataError, match=rf"^{name} is not UTF-8 at byte 4; {advice}"):
        read_documents(name)


def test_a_folder_that_cannot_be_listed_is_no_empty_one(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    (tmp_path / "b.txt").write_text("b")

    def scandir(path, scandir=os.scandir):
        if Path(path).name == "a":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(DataError, match="cannot read the folder .*/a: Permission denied"):
        read_documents(str(tmp_path))


# Splitting

fractions = st.floats(0, 1, exclude_max=True)
texts = st.text("ab\r\n€", max_size=30)


@given(st.lists(texts, max_size=25), fractions, st.integers(0, 2**64 - 1))
@example(["a"] * 12, 0.1, 0)
@example(["a" * 1000, *"bcdefghijkl"], 0.1, 0)
@example(["a" * 1000, *[""] * 20], 0.9, 0)
def test_nothing_is_lost_and_nothing_is_in_both(documents, fraction, seed):
    train, val = split_documents(documents, fraction, seed)
    assert all(train) and all(val)
    whole = Counter(filter(None, documents))
    if Counter(train) + Counter(val) == whole and not set(train) & set(val):
        return  # whole documents
    shortest = min((len(text) * copies for text, copies in whole.items()), default=0)
    assert whole.total() < 10 or fraction > 0.5 or shortest >= 2 * fraction * sum(map(len, documents))
    heads, tails = iter(train), iter(val)
    for text in filter(None, documents):
        cut = int(len(text) * (1 - fraction))
        assert (next(heads) if cut else "") == text[:cut]
        assert (next(tails) if cut < len(text) else "") == text[cut:]
    assert next(heads, None) is None and next(tails, None) is None


@given(st.lists(st.integers(1, 100), min_size=10, max_size=60), st.floats(0.02, 0.5), st.integers(0, 99))
def test_the_fraction_is_met_as_nearly_as_whole_documents_allow(lengths, fraction, seed):
    documents = [f"{i:03}" + "x" * length for i, length in enumerate(lengths)]
    train, val = split_documents(documents, fraction, seed)
    total, held = sum(map(len, documents)), sum(map(len, val))
    assert train and val
    if set(val) <= set(documents):
        assert train == [text for text in documents if text not in val]  # in their order
        assert abs(held - fraction * total) <= max(map(len, documents)) / 2
    else:
        assert abs(held - fraction * total) <= len(documents)


def test_when_whole_documents_are_drawn_and_when_tails_are_cut():
    def kinds(documents, fraction):
        train, val = split_documents(documents, fraction, 0)
        return train and val and set(train) <= set(documents) and set(val) <= set(documents)

    same_length = [f"{i:02}345678" for i in range(60)]
    assert not kinds(same_length[:9], 0.2) and kinds(same_length[:10], 0.2)
    assert kinds(same_length[:10], 0.06)  # too long for the fraction, and nearer to it than nothing
    assert not kinds(same_length[:10], 0.04) and kinds(same_length[:60], 0.04)
    assert split_documents(["abcd"] * 12, 0.5, 0) == (["ab"] * 12, ["cd"] * 12)  # copies are not told apart
    assert split_documents(["abcd"] * 12, 0.75, 0) == (["a"] * 12, ["bcd"] * 12)


def test_python_docs_is_split_near_the_fraction_by_whole_documents():
    documents = read_documents("python-docs")
    for seed in range(20):
        train, val = split_documents(documents, 0.1, seed)
        assert set(val) < set(documents) and set(train) < set(documents)
        assert 0.099 < sum(map(len, val)) / sum(map(len, documents)) < 0.101


def test_one_document_is_cut_as_nanogpt_cuts_it():
    for length in (*range(2, 300), 1_115_394):  # the last: tinyshakespeare
        text = "".join(map(chr, range(300)))[:length].ljust(length, "x")
        train, val = split_documents([text], 0.1, 1337)
        assert "".join(train) == text[:int(length * 0.9)] and "".join(val) == text[int(length * 0.9):]


def test_the_split_is_keyed_by_the_seed_alone():
    documents = [f"document {i}" for i in range(40)]
    np.random.seed(1)
    first = split_documents(documents, 0.25, 7)
    np.random.seed(2)
    assert first == split_documents(tuple(documents), 0.25, 7)
    drawn = {tuple(split_documents(documents, 0.25, seed)[1]) for seed in range(20)}
    assert len(drawn) >= 19


def test_the_split_stays_what_it_was():
    """A run that is resumed under a later version must not train on what it was validated on."""
    documents = [chr(ord("a") + i) for i in range(20)]
    assert "".join(split_documents(documents, 0.25, 1337)[1]) == "adoqr"


def test_no_fraction_no_validation():
    for documents in (["abc"], list("abcdefghijklmnop")):
        assert split_documents(documents, 0, 1) == (documents, [])
    assert split_documents([], 0.1, 1) == ([], [])


@pytest.mark.parametrize("fraction", [-0.1, 1, 1.5, float("nan"), float("inf")])
def test_a_fraction_that_is_none(fraction):
    with pytest.raises(ConfigError, match="val_fraction is"):
        split_documents(["abc"], fraction, 1)


def test_the_documented_suffixes_are_lower_case():
    assert all(suffix.startswith(".") and suffix == suffix.lower() for suffix in corpora.TEXT_SUFFIXES)
    assert {".txt", ".md", ".rst", ".py"} <= set(corpora.TEXT_SUFFIXES)
