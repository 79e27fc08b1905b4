import os
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from npgpt.data.shards import LLM_C_HEADER, LONGEST, Shard, open_shard, write_shard
from npgpt.errors import DataError


@pytest.mark.parametrize("vocab_size", [1, 65, 256, 50257, 65535, 65536, 65537, 100_277, 2**31, 2**32])
@given(data=st.data())
def test_what_is_written_is_read(tmp_path_factory, vocab_size, data):
    path = tmp_path_factory.getbasetemp() / "shard"
    ids = st.integers(0, vocab_size - 1) | st.just(vocab_size - 1)
    types = [dtype for dtype in ("u1", "i2", "<u2", ">u2", "i4", "u4", "i8", "u8")
             if np.iinfo(dtype).max >= vocab_size - 1]
    chunks = [np.array(chunk, data.draw(st.sampled_from(types)))
              for chunk in data.draw(st.lists(st.lists(ids, max_size=20), max_size=5))]
    expected = [int(i) for chunk in chunks for i in chunk]
    assert write_shard(path, (chunk for chunk in chunks), vocab_size) == len(expected)
    shard = open_shard(path)
    assert shard.vocab_size == vocab_size and shard.tokens.tolist() == expected
    assert path.stat().st_size == 40 + len(expected) * (2 if vocab_size <= 65536 else 4)


def test_the_bytes_of_the_file(tmp_path):
    write_shard(tmp_path / "a", [np.array([1, 258]), np.array([]), np.array([3])[::-1]], 300)
    header = b"npgpttok" + struct.pack("<IIQQI", 1, 2, 300, 3, 0)
    assert (tmp_path / "a").read_bytes() == header + struct.pack("<I", zlib.crc32(header)) + b"\1\0\2\1\3\0"


def test_the_tokens_are_mapped_and_cannot_be_changed(tmp_path):
    write_shard(tmp_path / "a", [np.arange(1000)], 1000)
    shard = open_shard(str(tmp_path / "a"))
    assert isinstance(shard, Shard) and isinstance(shard.tokens, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        shard.tokens[0] = 1


def test_a_shard_is_replaced_only_by_a_whole_one(tmp_path):
    path = tmp_path / "a"
    write_shard(path, [np.arange(5)], 5)

    def chunks():
        yield np.arange(3)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_shard(path, chunks(), 5)
    assert open_shard(path).tokens.tolist() == [0, 1, 2, 3, 4] and list(tmp_path.iterdir()) == [path]
    mapped = open_shard(path).tokens
    write_shard(path, [np.arange(2)], 5)
    assert mapped.tolist() == [0, 1, 2, 3, 4]  # a new file: nobody's mapping changes under him


@pytest.mark.parametrize(("chunks", "says"), [
    ([[0, 1], [2, 65, 3]], "token id 65 at position 3 is outside the vocabulary of 65;"),
    ([[0, 1], [2, -1, 3]], "token id -1 at position 3 is outside"),
    ([np.array([2**64 - 1], np.uint64)], "token id 18446744073709551615 at position 0 "),
    ([[0], [[1], [2]]], r"the one at position 1 is int64 of shape \(2, 1\)"),
    ([[1.0]], "is float64 of shape"),
    ([[True]], "is bool of shape"),
    ([["a"]], "is <U1 of shape"),
    ([3], r"is int64 of shape \(\)"),
])
def test_ids_that_are_refused(tmp_path, chunks, says):
    (tmp_path / "a").write_text("old")
    with pytest.raises(DataError, match=says):
        write_shard(tmp_path / "a", map(np.array, chunks), 65)
    assert (tmp_path / "a").read_text() == "old" and list(tmp_path.iterdir()) == [tmp_path / "a"]


def test_vocabularies_that_are_refused(tmp_path):
    for vocab_size in (0, -1, 2**32 + 1):
        with pytest.raises(DataError, match="vocabulary size"):
            write_shard(tmp_path / "a", [], vocab_size)


def test_where_no_shard_can_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    os.mkfifo(tmp_path / "pipe")
    for path in (*(tmp_path / name for name in ("nowhere/a", "file/a", ".", "pipe")), "/proc/a", "/dev/full"):
        with pytest.raises(DataError, match=f"cannot write the token shard {path}: [A-Z]") as error:
            write_shard(path, [np.arange(5)], 5)
        assert "\n" not in str(error.value)


def test_every_truncation_flip_and_growth_of_a_shard_is_refused(tmp_path):
    path = tmp_path / "a"
    write_shard(path, [np.arange(10)], 10)
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(DataError, match=f"{path} (is cut short|is no token shard)") as error:
            open_shard(path)
        assert length < 8 or "is cut short" in str(error.value)
    for position in range(40):
        for mask in (1, 2, 4, 128, 255):
            flipped = bytearray(whole)
            flipped[position] ^= mask
            path.write_bytes(flipped)
            with pytest.raises(DataError) as error:
                open_shard(path)
            assert ("is no token shard" if position < 8 else "header of ") in str(error.value)
    for more in (b"\0", whole):
        path.write_bytes(whole + more)
        with pytest.raises(DataError, match=r"is too long: .* and its header promises 60"):
            open_shard(path)


def header(version=1, itemsize=2, vocab_size=10, count=1):
    start = struct.pack("<8sIIQQ4x", b"npgpttok", version, itemsize, vocab_size, count)
    return start + struct.pack("<I", zlib.crc32(start))


@pytest.mark.parametrize(("content", "says"), [
    (b"", "is no token shard of npgpt"),
    (b"\x93NUMPY" + bytes(100), "is no token shard of npgpt"),
    (header(version=2) + bytes(2), "is a token shard of version 2; this npgpt reads version 1"),
    (header(itemsize=4, vocab_size=70_000) + bytes(2), "is cut short: it has 42 bytes"),
    (header(count=2**63) + bytes(2), "is cut short"),
    (header(count=0) + bytes(2), "is too long"),
])
def test_files_that_are_no_shards(tmp_path, content, says):
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(DataError, match=f"{tmp_path / 'a'} {says}"):
        open_shard(tmp_path / "a")


def test_paths_that_are_no_files(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path, says in ((tmp_path / "nowhere", "No such file"), (tmp_path, "no regular file"), ("a\0", "null"),
                       (tmp_path / "pipe", "no regular file"), ("/dev/zero", "no regular file")):
        with pytest.raises(DataError, match=says):
            open_shard(path)


# The formats of other programs

@pytest.mark.parametrize("format", ["llm.c", "nanogpt"])
def test_the_formats_of_other_programs(tmp_path, format):
    ids, path = np.array([0, 1, 258, 65535]), tmp_path / "a"
    assert write_shard(path, [ids[:1], ids[1:]], 65536, format) == 4
    raw = b"\0\0\1\0\2\1\xff\xff"
    header = struct.pack("<256i", 20240520, 1, 4, *[0] * 253) if format == "llm.c" else b""
    assert path.read_bytes() == header + raw
    shard = open_shard(path, format)
    assert shard.tokens.tolist() == ids.tolist() and shard.tokens.dtype == np.dtype("<u2")
    assert shard.vocab_size == 65536 and isinstance(shard.tokens, np.memmap)
    if format == "llm.c":
        assert open_shard(path).tokens.tolist() == ids.tolist()             # told by its first bytes
    write_shard(path, [], 65536, format)
    assert open_shard(path, format).tokens.tolist() == []
    with pytest.raises(DataError, match=f"a shard of {format} has two bytes an id.*65537"):
        write_shard(path, [ids], 65537, format)
    with pytest.raises(DataError, match="token id 65 at position 1 is outside"):
        write_shard(path, [np.array([1, 65])], 65, format)
    with pytest.raises(DataError, match="unknown format of token shards 'llmc': use one of npgpt, llm.c"):
        write_shard(path, [ids], 65, "llmc")
    assert open_shard(path, format).tokens.tolist() == []


def test_every_truncation_and_growth_of_a_shard_of_llm_c_is_refused(tmp_path):
    path = tmp_path / "a"
    write_shard(path, [np.arange(10)], 10, "llm.c")
    whole = path.read_bytes()
    assert len(whole) == 1024 + 20
    for length in [*range(0, 1024, 31), *range(1020, len(whole))]:
        path.write_bytes(whole[:length])
        for format in (None, "llm.c"):
            with pytest.raises(DataError, match=f"{path} (is cut short|is no token shard)"):
                open_shard(path, format)
    for changed, says in ((whole + b"\0\0", "is too long: it has 1046 bytes, and its header promises 1044"),
                          (whole[:4] + b"\2" + whole[5:], "of version 2"),
                          (whole[:8] + struct.pack("<i", -1) + whole[12:], "with -1 tokens")):
        path.write_bytes(changed)
        with pytest.raises(DataError, match=f"{path} .*{says}"):
            open_shard(path)


def test_more_tokens_than_a_header_can_say_are_refused(tmp_path, monkeypatch):
    LLM_C_HEADER.pack(b"", 1, LONGEST["llm.c"])
    with pytest.raises(struct.error):
        LLM_C_HEADER.pack(b"", 1, LONGEST["llm.c"] + 1)
    monkeypatch.setitem(LONGEST, "llm.c", 5)
    assert write_shard(tmp_path / "a", [np.arange(5)], 5, "llm.c") == 5
    with pytest.raises(DataError, match="a would have 6 tokens, more than llm.c's header can say"):
        write_shard(tmp_path / "a", [np.arange(3), np.arange(3)], 5, "llm.c")
    assert open_shard(tmp_path / "a").tokens.tolist() == [0, 1, 2, 3, 4]


def test_a_shard_is_not_taken_for_one_of_another_format(tmp_path):
    for format in ("npgpt", "llm.c", "nanogpt"):
        write_shard(tmp_path / format, [np.arange(600)], 600, format)
    for name, format in (("npgpt", "llm.c"), ("llm.c", "npgpt"), ("npgpt", "nanogpt"), ("llm.c", "nanogpt"),
                         ("nanogpt", None), ("nanogpt", "npgpt"), ("nanogpt", "llm.c")):
        with pytest.raises(DataError, match=f"{tmp_path / name} "):
            open_shard(tmp_path / name, format)
    (tmp_path / "odd").write_bytes(bytes(7))
    with pytest.raises(DataError, match=r"odd is cut short: its 7 bytes are an odd number"):
        open_shard(tmp_path / "odd", "nanogpt")
