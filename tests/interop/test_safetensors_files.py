"""safetensors files: read as they are, refused when anything is not as the header says."""

import json
import os
import re

import model_folders
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from model_folders import refused, safetensors, write_index, write_shards, write_tensors
from safetensors.numpy import load_file, save_file

from npgpt.interop.safetensors_files import (
    SIZES,
    narrow_bfloat16,
    open_file,
    open_folder,
    safetensors_pieces,
    widen_bfloat16,
)
from npgpt.interop.untrusted import MAX_JSON


@pytest.fixture
def path(tmp_path):
    return tmp_path / "x.safetensors"


def test_what_the_package_writes_is_read_as_views(path):
    base = np.random.default_rng(0).normal(size=(3, 5, 2))
    arrays = {"a": base, "b": base.astype("f4"), "ü": base.astype("f2"), "0-d": np.array(2.5, "f4"),
              "empty": np.zeros((0, 7)), "odd": np.ones(3, "f2"), "after": base.astype("f8")}
    save_file(arrays, path, {"format": "np"})
    tensors = open_file(path)
    assert tensors.keys() == arrays.keys()
    for name, array in arrays.items():
        values = tensors[name].values()
        np.testing.assert_array_equal(values, array)
        assert values.dtype == array.dtype and values.shape == array.shape
        assert not values.size or not (values.flags.owndata or values.flags.writeable)
    save_file({"i": np.arange(3), "u": np.arange(3, dtype="u1"), "t": np.ones(2, bool)}, path)
    for name, word in {"i": "I64", "u": "U8", "t": "BOOL"}.items():
        refused(lambda name=name: open_file(path)[name].values(), path, repr(name), f"type {word}")


def test_a_view_outlives_what_is_read_after_it(path):
    arrays = {name: np.full((700, 100), value, "f4") for value, name in enumerate("abc")}
    write_tensors(path, arrays)
    tensors = open_file(path)
    views = {name: tensors[name].values() for name in arrays}
    for name, array in arrays.items():
        np.testing.assert_array_equal(views[name], array)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_what_is_written_is_what_pytorch_rounds_to(dtype, path):
    torch = pytest.importorskip("torch")
    from safetensors.torch import load_file as load_torch

    random = np.random.default_rng(1)
    values = random.normal(size=4000).astype("f4") * np.float32(10) ** random.integers(-9, 4, 4000)
    bits = np.arange(0x3F80, 0x4080, dtype="u4") << 16                      # and what is halfway between two
    halves = np.concatenate([bits, bits + 0x8000, bits + 0x8001]).view("f4")
    special = np.array([0, -0.0, np.inf, -np.inf, np.nan, 1e-40, -1e-45, 65504, 2.0**-24, 1.5 * 2.0**-25],
                       "f4")
    strided = values[:3996].reshape(6, 666).T
    for array in (values, halves, special, strided, values[:, None][::2].astype("f8")):
        pieces = safetensors_pieces({"x": array, "n": np.arange(3)}, dtype, {"format": "pt"})
        path.write_bytes(b"".join(pieces))
        theirs = load_torch(path)
        expected = torch.tensor(array.copy()).to(getattr(torch, dtype))
        assert theirs["x"].dtype == expected.dtype and theirs["n"].dtype == torch.int64
        assert torch.equal(theirs["x"].isnan(), expected.isnan())
        assert torch.equal(*(x.nan_to_num(7).view(torch.uint8) for x in (theirs["x"], expected)))
        ours = open_file(path)["x"].values()
        np.testing.assert_array_equal(ours.astype("f8"), expected.to(torch.float64).numpy())
        assert "__metadata__" in path.read_bytes()[8:80].decode()


def test_bfloat16_is_the_upper_half_and_rounds_to_the_nearest_even():
    bits = np.arange(2**16, dtype="u2")
    wide = widen_bfloat16(bits)
    assert wide.dtype == np.float32 and (wide[0x3F80], wide[0xC000], wide[0x7F80]) == (1, -2, np.inf)
    finite = ~np.isnan(wide)
    np.testing.assert_array_equal(narrow_bfloat16(wide)[finite], bits[finite])
    assert np.isnan(widen_bfloat16(narrow_bfloat16(wide[~finite]))).all()
    for pattern, expected in ((0x3F808000, 0x3F80), (0x3F818000, 0x3F82), (0x3F808001, 0x3F81),
                              (0x3F80FFFF, 0x3F81), (0x7FFFFFFF, 0x7FFF), (0xFFFFFFFF, 0xFFFF)):
        value = np.array([pattern], "u4").view("f4")
        assert narrow_bfloat16(value)[0] == expected, hex(pattern)
    assert narrow_bfloat16(np.float32(1.5)).shape == ()


@pytest.mark.parametrize("dtype, value", [("float16", 65520), ("bfloat16", 3.4e38), ("float32", 1e39)])
def test_what_would_become_infinite_is_not_written(dtype, value):
    with pytest.raises(ValueError, match="w holds .* beyond"):
        list(safetensors_pieces({"v": np.ones(2), "w": np.array([1.0, value, np.inf])}, dtype))


def test_arrays_that_are_strided_are_written_right(path):
    base = np.random.default_rng(0).normal(size=(4, 6))
    arrays = {"t": base.T, "s": base[:, 1:4], "r": base[::-1], "big": base.astype(">f4"), "c": base[:, 1],
              "every other": base[0, ::2], "back": base[0, ::-1], "unsigned": np.arange(3, dtype="u2")}
    path.write_bytes(b"".join(safetensors_pieces(arrays)))
    for name, array in load_file(path).items():
        np.testing.assert_array_equal(array, arrays[name])
    with pytest.raises(ValueError, match="c has type complex"):
        list(safetensors_pieces({"c": np.ones(2, complex)}))


def test_arrays_of_bfloat16_stay_so_unless_another_type_is_asked_for(path):
    pytest.importorskip("ml_dtypes")
    array = np.array([1.0, -2.5, 3e38]).astype("bfloat16")
    for dtype, word in ((None, "BF16"), ("float32", "F32")):
        path.write_bytes(b"".join(safetensors_pieces({"w": array}, dtype)))
        tensor = open_file(path)["w"]
        assert tensor.dtype == word
        np.testing.assert_array_equal(tensor.values(), array.astype("f4"))


@pytest.mark.parametrize("length", range(1, 9))
def test_the_data_begins_where_numbers_of_8_bytes_may_lie(length):
    header = next(iter(safetensors_pieces({"n" * length: np.ones(2)})))
    assert len(header) % 8 == 0 and int.from_bytes(header[:8], "little") == len(header) - 8


def test_the_types_are_those_of_the_format_and_have_as_many_bytes_as_their_names_say():
    assert SIZES.keys() == {"BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0", "U16", "I16", "F16", "BF16",
                            "U32", "I32", "F32", "U64", "I64", "F64", "C64"}
    named = {name: int(re.search("[0-9]+", name)[0]) // 8 for name in SIZES if name != "BOOL"}
    assert named | {"BOOL": 1} == SIZES


# Headers that lie

def one(dtype="F32", shape=(2, 3), offsets=(0, 24), **more):
    return {"w": {"dtype": dtype, "shape": shape, "data_offsets": offsets, **more}}


def two(first, second, end=16):
    return safetensors({"a": {"dtype": "F32", "shape": [2], "data_offsets": first},
                        "b": {"dtype": "F32", "shape": [2], "data_offsets": second}}, bytes(end))


DATA = bytes(24)
HEADERS = {
    "empty file": (b"", "0"),
    "7 bytes": (b"1234567", "7"),
    "length beyond the file": (safetensors(one(), DATA, 10_000), "10,000 bytes, and the file has"),
    "length one too long": (safetensors(b"{}", b"", 3), "3 bytes"),
    "length absurd": (safetensors(one(), DATA, 2**64 - 1), "18,446,744,073,709,551,615 bytes"),
    "length of 2^63": (safetensors(one(), DATA, 2**63), "bytes"),
    "header longer than is read": (safetensors(b"{" + b" " * MAX_JSON + b"}"), "longer than the 1,048,576"),
    "length too short": (safetensors(one(), DATA, 20), "not valid JSON"),
    "length 0": (safetensors(b"", DATA, 0), "not valid JSON"),
    "not JSON": (safetensors(b"{'w': 1}"), "not valid JSON"),
    "JSON and more": (safetensors(b"{} {}"), "not valid JSON"),
    "a list": (safetensors([]), "not a JSON object"),
    "null": (safetensors(b"null"), "not a JSON object"),
    "not UTF-8": (safetensors(b'{"\xff": 1}'), "not UTF-8 at byte 2"),
    "UTF-16": (safetensors('{"w": 1}'.encode("utf-16")), "not UTF-8"),
    "a name twice": (safetensors(b'{"w": ' + b"1, " .join([b'1, "w": 2}'])), "entry 'w' comes twice"),
    "a key twice": (safetensors(b'{"w": {"dtype": "F32", "dtype": "F64"}}'), "entry 'dtype' comes twice"),
    "brackets without end": (safetensors(b"[" * 1_000_000), "not valid JSON"),
    "objects without end": (safetensors(b'{"a":' * 200_000), "not valid JSON"),
    "a number of a million digits": (safetensors(b'{"a":' + b"9" * 1_000_000 + b"}"), "not valid JSON"),
    "300,000 objects": (safetensors(b'{"a":[' + b"{}," * 300_000 + b"1]}"), "'a' is not described"),
    "90,000 names": (safetensors(b"{" + b",".join(b'"%x":0' % n for n in range(90_000)) + b"}"),
                     "not described"),
    "a name of a million letters": (safetensors(b'{"' + b"n" * 1_000_000 + b'": 1}'), "…"),
    "metadata is a list": (safetensors({"__metadata__": []}), "__metadata__"),
    "metadata holds a number": (safetensors({"__metadata__": {"a": 1}}), "__metadata__"),
    "a tensor is a list": (safetensors({"w": []}), "'w' is not described"),
    "no dtype": (safetensors({"w": {"shape": [], "data_offsets": [0, 4]}}, DATA), "'w' is not described"),
    "one entry more": (safetensors(one(stride=[1]), DATA), "'w' is not described"),
    "unknown dtype": (safetensors(one("F31"), DATA), "'w' has the unknown type 'F31'"),
    "dtype is a number": (safetensors(one(32), DATA), "'w' has the unknown type 32"),
    "dtype is a list": (safetensors(one(["F32"]), DATA), "'w' has the unknown type"),
    "shape is a number": (safetensors(one(shape=6), DATA), "'w' has no shape"),
    "shape of fractions": (safetensors(one(shape=[2.0, 3]), DATA), "'w' has no shape"),
    "shape of truths": (safetensors(one(shape=[True, 6]), DATA), "'w' has no shape"),
    "negative shape": (safetensors(one(shape=[-2, -3]), DATA), "'w' has no shape"),
    "shape nested": (safetensors(one(shape=[[2, 3]]), DATA), "'w' has no shape"),
    "shape nested deep": (safetensors(b'{"w":{"dtype":"F32","data_offsets":[0,24],"shape":' + b"[" * 900
                                      + b"]" * 900 + b"}}", DATA), "'w' has no shape"),
    "shape of too many": (safetensors(one(shape=[1] * 65 + [6]), DATA), "'w' has no shape of at most 8"),
    "shape of 2^64": (safetensors(one(shape=[2**64, 0]), DATA), "'w' has no shape"),
    "shape whose product wraps": (safetensors(one(shape=[2**62, 2, 2, 2], offsets=[0, 0])),
                                  "cannot have 0 bytes"),
    "shape huge": (safetensors(one(shape=[2**62, 2**62]), DATA), "cannot have 24 bytes"),
    "shape too small": (safetensors(one(shape=[2, 2]), DATA), "'w' of shape [2, 2] and type F32 cannot have"),
    "dtype too wide": (safetensors(one("F64"), DATA), "cannot have 24 bytes"),
    "offsets swapped": (safetensors(one(offsets=[24, 0]), DATA), "no start and end"),
    "offsets negative": (safetensors(one(offsets=[-24, 0]), DATA), "no start and end"),
    "offsets of three": (safetensors(one(offsets=[0, 12, 24]), DATA), "no start and end"),
    "offsets are text": (safetensors(one(offsets="01"), DATA), "no start and end"),
    "offsets of 2^64": (safetensors(one(offsets=[2**64, 2**64 + 24]), DATA), "no start and end"),
    "data ends early": (safetensors(one(), DATA[:-1]), "end at byte 24 of the data, which has 23"),
    "data goes on": (safetensors(one(), DATA + b"\0"), "end at byte 24 of the data, which has 25"),
    "no tensors, but data": (safetensors({}, DATA), "end at byte 0 of the data, which has 24"),
    "starts later": (safetensors(one(offsets=[8, 32]), bytes(32)), "'w' comes after a hole"),
    "a hole": (two([0, 8], [12, 20], 20), "'b' comes after a hole: it starts at byte 12 of the data, where"),
    "overlap": (two([0, 8], [4, 12], 12), "'b' overlaps the tensor before it"),
    "the same place": (two([0, 8], [0, 8], 8), "'b' overlaps"),
    "one inside the data twice, one never": (two([8, 16], [8, 16]), "hole"),
    "beyond the file": (two([0, 8], [8, 16], 8), "end at byte 16 of the data, which has 8"),
    "exabytes": (safetensors(one("U8", [2**60], [0, 2**60])), "end at byte 1,152,921,504,606,846,976"),
}


@pytest.mark.parametrize("name", HEADERS)
def test_headers_that_lie_are_refused(name, path):
    content, words = HEADERS[name]
    path.write_bytes(content)
    assert refused(lambda: open_file(path), words).startswith(f"{path} cannot be used: ")


def test_the_longest_header_that_is_read(path):
    path.write_bytes(safetensors(b"{" + b" " * (MAX_JSON - 2) + b"}"))
    assert open_file(path) == {}


def test_the_order_in_the_header_does_not_matter(path):
    path.write_bytes(two([8, 16], [0, 8]))
    assert open_file(path)["b"].values().shape == (2,)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_damaged_file_is_refused_or_read_as_it_says(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "damaged.safetensors"
    write_tensors(path, {"a": np.ones((2, 3), "f4"), "b": np.ones(4, "f2")})
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[:data.draw(st.integers(len(content) - 5, len(content)))])
    try:
        tensors = open_file(path)
    except model_folders.CheckpointError as error:
        assert str(path) in str(error) and "\n" not in str(error)
    else:
        assert sum(np.prod(tensor.shape) for tensor in tensors.values()) <= 32


def test_what_is_no_file_is_refused(tmp_path):
    refused(lambda: open_file(tmp_path / "absent"), "absent", "No such file")
    refused(lambda: open_file(tmp_path), "directory")
    refused(lambda: open_folder(tmp_path), f"{tmp_path} is no complete model: there is no file model.safe")
    (tmp_path / "pytorch_model.bin").touch()
    refused(lambda: open_folder(tmp_path), "of PyTorch's pickles npgpt reads none")
    os.mkfifo(tmp_path / "model.safetensors")
    refused(lambda: open_folder(tmp_path), "no file model.safetensors")


# Several files

ARRAYS = {name: np.full((2, 3), value, "f4") for value, name in enumerate(["a", "b", "c", "d"])}
FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


def test_tensors_are_found_in_several_files(tmp_path):
    write_shards(tmp_path, ARRAYS)
    tensors = open_folder(tmp_path)
    assert list(tensors) == list(ARRAYS) and {t.path.name for t in tensors.values()} == {FIRST, SECOND}
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(tensors[name].values(), array)


@pytest.mark.parametrize("file", ["../outside.safetensors", "/etc/passwd", "..", ".", "", "sub/x.safetensors",
                                  "..\\outside.safetensors", "sub/../x.safetensors", "x\0.safetensors",
                                  "./" + FIRST, "C:\\x.safetensors"])
def test_an_index_that_names_a_path_is_refused(file, tmp_path):
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    index = write_shards(folder, ARRAYS)
    for place in ("../outside", "sub/x", "x"):              # that it would be there helps nothing
        write_tensors(folder / f"{place}.safetensors", ARRAYS)
    index["weight_map"]["b"] = file
    write_index(folder, index)
    refused(lambda: open_folder(folder), "index.json", repr(file), "not inside the folder")


def test_links_may_not_leave_the_folder(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    write_shards(folder, ARRAYS)
    (folder / SECOND).rename(tmp_path / "outside")
    (folder / SECOND).symlink_to(tmp_path / "outside")
    refused(lambda: open_folder(folder), SECOND, "leads out of its folder")
    (folder / SECOND).unlink()
    (folder / SECOND).symlink_to("../outside")
    refused(lambda: open_folder(folder), SECOND, "leads out of its folder")
    (folder / SECOND).unlink()
    (folder / SECOND).symlink_to(SECOND)
    refused(lambda: open_folder(folder), SECOND)
    (folder / SECOND).unlink()
    (tmp_path / "outside").rename(folder / "inside")
    (folder / SECOND).symlink_to("inside")
    assert open_folder(folder).keys() == ARRAYS.keys()
    (tmp_path / "link").symlink_to(folder)                  # the whole folder may be linked
    assert open_folder(tmp_path / "link").keys() == ARRAYS.keys()
    write_tensors(tmp_path / "all", ARRAYS)
    (folder / "model.safetensors").symlink_to("../all")
    refused(lambda: open_folder(folder), "model.safetensors", "leads out of its folder")


def test_an_index_and_files_that_disagree_are_refused(tmp_path):
    index = write_shards(tmp_path, ARRAYS)
    places = index["weight_map"]

    def with_places(**changes):
        return {"weight_map": {k: v for k, v in (places | changes).items() if v is not ...}}

    for wrong, *words in [
        (with_places(e=FIRST), f"'e' is said to be in {FIRST}, but is not"),
        (with_places(b=FIRST), f"'b' is said to be in {FIRST}, but is not"),
        (with_places(b=...), f"'b' is in {SECOND}, which the index does not say"),
        (with_places(b="absent.safetensors"), "absent.safetensors"),
        (with_places(b="model.safetensors.index.json"), "index.json"),
        (with_places(b=1), "weight_map"), ({}, "weight_map"), ({"weight_map": []}, "weight_map"),
        ({"weight_map": {}}, "weight_map"), ([], "not a JSON object"),
    ]:
        write_index(tmp_path, wrong)
        refused(lambda: open_folder(tmp_path), *words)
    text = json.dumps(index).replace('"b":', '"a":')
    (tmp_path / "model.safetensors.index.json").write_text(text)
    refused(lambda: open_folder(tmp_path), "'a' comes twice")
    (tmp_path / "model.safetensors.index.json").write_bytes(b"[" * (MAX_JSON + 1))
    refused(lambda: open_folder(tmp_path), "longer than the 1,048,576")
    write_index(tmp_path, index)
    write_tensors(tmp_path / FIRST, {name: ARRAYS[name] for name in "abc"})
    refused(lambda: open_folder(tmp_path), f"'b' is in {FIRST}, which the index does not say")


def test_hugging_faces_own_cache_is_read(tmp_path):
    """snapshots/HASH/NAME → ../../blobs/SUM, in the folder of the same model and no other."""
    folder, blobs = tmp_path / "models--a--b" / "snapshots" / "0123abc", tmp_path / "models--a--b" / "blobs"
    folder.mkdir(parents=True)
    blobs.mkdir()
    write_shards(folder, ARRAYS)
    for number, path in enumerate(sorted(folder.iterdir())):
        path.rename(blobs / str(number))
        path.symlink_to(f"../../blobs/{number}")
    assert open_folder(folder).keys() == ARRAYS.keys()
    moved = folder.parent.rename(tmp_path / "models--a--b" / "models") / folder.name     # no cache's folder
    refused(lambda: open_folder(moved), "leads out of its folder")
    moved.parent.rename(folder.parent)
    (folder / FIRST).unlink()
    other = tmp_path / "models--other" / "blobs"
    other.mkdir(parents=True)
    write_tensors(other / "0", ARRAYS)
    (folder / FIRST).symlink_to("../../../models--other/blobs/0")
    refused(lambda: open_folder(folder), FIRST, "leads out of its folder")
