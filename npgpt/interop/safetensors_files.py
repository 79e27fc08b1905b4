"""safetensors files: 8 bytes of length, a header in JSON, the tensors one after the other.

    {"wte.weight": {"dtype": "F32", "shape": [65, 8], "data_offsets": [0, 2080]}, …}

Nothing that a header claims is believed: every byte of the data must belong to one tensor, whose shape and
type give just that many. That is checked before a tensor is looked at, and costs no more than reading the
header. Tensors are views into the mapped file; bfloat16, which NumPy does not know, is the upper half of a
float32 and is shown as uint16. What may be large is split into several files, with an index:

    {"weight_map": {"wte.weight": "model-00001-of-00002.safetensors", …}}
"""

import json
import math
import mmap
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from npgpt.errors import shown
from npgpt.interop.untrusted import MAX_JSON, member, parse_json, read_json, refused
from npgpt.tensor.device import to_numpy

MODEL, INDEX = "model.safetensors", "model.safetensors.index.json"
MAX_DIMENSIONS = 8
FLOATS = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}          # → as NumPy has it
SIZES  = {"BOOL": 1, "U8": 1, "I8": 1, "F8_E5M2": 1, "F8_E4M3": 1, "F8_E8M0": 1, "U16": 2, "I16": 2, "F16": 2,
          "BF16": 2, "U32": 4, "I32": 4, "F32": 4, "U64": 8, "I64": 8, "F64": 8, "C64": 8}
NAMES  = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16"}


class Tensor:
    """One tensor of a mapped file. dtype: as the file has it, "F32"."""

    def __init__(self, path: Path, name: str, dtype: str, shape: tuple[int, ...], data: mmap.mmap,
                 start: int):
        self.path, self.name, self.dtype, self.shape = path, name, dtype, shape
        self._data, self._start = data, start

    @property
    def bits(self) -> np.ndarray:
        """A view into the file; of bfloat16 as uint16. Raises CheckpointError if it holds no floats."""
        if self.dtype not in FLOATS:
            raise refused(self.path, f"{shown(self.name)} has type {self.dtype}, and a parameter is one of "
                                     f"{', '.join(FLOATS)}")
        if not math.prod(self.shape):
            return np.empty(self.shape, FLOATS[self.dtype])
        self._data.madvise(mmap.MADV_DONTNEED)      # what was read before stays in the system's cache
        return np.frombuffer(self._data, FLOATS[self.dtype], math.prod(self.shape),
                             self._start).reshape(self.shape)

    def values(self) -> np.ndarray:
        """The numbers: a view into the file, of bfloat16 a float32 copy."""
        return widen_bfloat16(self.bits) if self.dtype == "BF16" else self.bits


def open_folder(folder: Path) -> dict[str, Tensor]:
    """All tensors of model.safetensors, or of the files that model.safetensors.index.json names.

    Raises CheckpointError naming the file, and the tensor where it is one's fault.
    """
    index = folder / INDEX
    if (folder / MODEL).exists() or not index.exists():
        return open_file(member(folder, MODEL))
    places = read_json(member(folder, INDEX)).get("weight_map")
    if not isinstance(places, dict) or not places or not all(isinstance(f, str) for f in places.values()):
        raise refused(index, "its weight_map does not give the file of each tensor")
    files   = {file: open_file(member(folder, file, index)) for file in sorted(set(places.values()))}
    tensors = {}
    for name, file in places.items():
        if name not in files[file]:
            raise refused(index, f"{shown(name)} is said to be in {file}, but is not")
        tensors[name] = files[file][name]
    for file, held in files.items():
        for name in held:
            if places.get(name) != file:
                raise refused(index, f"{shown(name)} is in {file}, which the index does not say")
    return tensors


def open_file(path: Path) -> dict[str, Tensor]:
    """The tensors of one file by name, in their order there, after checking all of the header."""
    try:
        with path.open("rb") as file:
            size   = os.fstat(file.fileno()).st_size
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > size - 8:
                raise refused(path, f"its header is said to have {length:,} bytes, and the file has {size:,}")
            if length > MAX_JSON:
                raise refused(path, f"its header of {length:,} bytes is longer than the {MAX_JSON:,} that "
                                    "npgpt reads")
            header = parse_json(path, file.read(length), "its header")
            data   = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise refused(path, error.strerror or str(error)) from error
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
        raise refused(path, "its __metadata__ is not an object of texts")
    found = [(*_checked(path, name, entry), name) for name, entry in header.items()]
    end = 0
    for start, stop, _, _, name in sorted(found):
        if start != end:
            what = "overlaps the tensor before it" if start < end else "comes after a hole"
            raise refused(path, f"{shown(name)} {what}: it starts at byte {start:,} of the data, where "
                                f"{end:,} is due")
        end = stop
    if end != size - 8 - length:
        raise refused(path, f"its tensors end at byte {end:,} of the data, which has {size - 8 - length:,}")
    return {name: Tensor(path, name, dtype, shape, data, 8 + length + start)
            for start, _, dtype, shape, name in found}


def _checked(path: Path, name: str, entry: Any) -> tuple[int, int, str, tuple[int, ...]]:
    """start, stop, dtype and shape from a tensor's entry in the header."""
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise refused(path, f"{shown(name)} is not described by dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in SIZES:
        raise refused(path, f"{shown(name)} has the unknown type {shown(dtype)}")
    if not _are_counts(shape) or len(shape) > MAX_DIMENSIONS:
        raise refused(path, f"{shown(name)} has no shape of at most {MAX_DIMENSIONS} whole numbers: "
                            f"{shown(shape)}")
    if not _are_counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise refused(path, f"{shown(name)} has data_offsets that are no start and end: {shown(offsets)}")
    start, stop = offsets
    if math.prod(shape) * SIZES[dtype] != stop - start:
        raise refused(path, f"{shown(name)} of shape {shown(shape)} and type {dtype} cannot have "
                            f"{stop - start:,} bytes")
    return start, stop, dtype, tuple(shape)


def _are_counts(numbers: Any) -> bool:
    return isinstance(numbers, list) and all(type(n) is int and 0 <= n < 2**63 for n in numbers)


def safetensors_pieces(arrays: Mapping[str, Any], dtype: str | None = None,
                       metadata: Mapping[str, str] | None = None) -> Iterator[bytes | memoryview]:
    """The bytes of a safetensors file, the arrays one after the other, of whatever device.

    dtype: what floats are stored as, by default as they are: float64, float32, float16 or bfloat16, rounded
    to the nearest, and to even halfway between two. Raises ValueError for what the file cannot hold.

    Written here because safetensors' own writer copies all tensors (before 0.8) and stores a transposed or
    otherwise strided array wrongly without a word (from 0.8 on). Only an array that is strided or of another
    type is copied here, one at a time.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name, array in arrays.items():
        stored = stored_type(name, array.dtype, dtype)
        header[name] = {"dtype": stored, "shape": array.shape,
                        "data_offsets": (end, end := end + array.size * SIZES[stored])}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # so that the data is aligned
    yield len(text).to_bytes(8, "little") + text
    for name, array in arrays.items():
        array = _converted(name, to_numpy(array), header[name]["dtype"])
        yield np.asarray(array, array.dtype.newbyteorder("<"), order="C").reshape(-1).data


def stored_type(name: str, kind: np.dtype, dtype: str | None) -> str:
    """The file's word for how an array is stored."""
    if kind.name == "bfloat16":
        return NAMES[dtype or "bfloat16"]
    letter = {"f": "F", "i": "I", "u": "U"}.get(kind.kind)
    if not letter or kind.itemsize > 8:
        raise ValueError(f"{name} has type {kind}, and a checkpoint holds floats and integers")
    return NAMES[dtype] if dtype and letter == "F" else f"{letter}{8 * kind.itemsize}"


def _converted(name: str, array: np.ndarray, stored: str) -> np.ndarray:
    if stored == "BF16":
        narrow = narrow_bfloat16(array)
        beyond = (narrow & 0x7FFF == 0x7F80) & np.isfinite(array)
    elif stored in FLOATS and array.dtype.newbyteorder("<") != FLOATS[stored]:
        with np.errstate(over="ignore"):
            narrow = array.astype(FLOATS[stored])
        beyond = np.isinf(narrow) & np.isfinite(array)
    else:
        return array
    if beyond.any():
        raise ValueError(f"{name} holds {array[beyond].flat[0]:g}, which is beyond what {stored} holds")
    return narrow


def widen_bfloat16(bits: np.ndarray) -> np.ndarray:
    """uint16, the upper halves of float32 numbers → those numbers, exactly"""
    wide = bits.astype("<u4")
    wide <<= 16
    return wide.view("<f4")


def narrow_bfloat16(values: np.ndarray) -> np.ndarray:
    """Floats → uint16 bits, through float32: to the nearest, halfway to even.

    Adding half of the last kept place, less one where that place is even, carries into it just where the
    number is to be rounded up. A NaN could be carried into a number, and is cut instead.
    """
    with np.errstate(over="ignore"):
        wide = np.array(values, "<f4", order="C", ndmin=1)
    bits   = wide.view("<u4")
    narrow = ((bits + (0x7FFF + (bits >> 16 & 1))) >> 16).astype("<u2")
    nan    = np.isnan(wide)
    narrow[nan] = (bits[nan] >> 16) | 0x40
    return narrow.reshape(np.shape(values))
