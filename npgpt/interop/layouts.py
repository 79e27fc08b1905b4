"""How the tensors of a file make up npgpt's parameters, and the way back: one table for both directions.

A parameter is one tensor of the file or several side by side, each as it is or transposed:

    h.0.attn.c_attn.weight (C, (H+2G)·D)  =  [ q_proj.weightᵀ | k_proj.weightᵀ | v_proj.weightᵀ ]

By its shape alone a transposed square matrix cannot be told from one that is not: the table decides.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from npgpt.interop.safetensors_files import Tensor


class Piece(NamedTuple):
    """One tensor of the file.  shape: as the file has it.  rotary: the size of its heads that turn, or 0"""

    name: str
    shape: tuple[int, ...]
    transposed: bool = False
    rotary: int = 0

    @property
    def columns(self) -> int:
        return self.shape[0] if self.transposed else self.shape[-1]


class Place(NamedTuple):
    """A parameter, by npgpt's name, and what stands in it from left to right."""

    name: str
    pieces: tuple[Piece, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        first = self.pieces[0]
        return *first.shape[1:][:first.transposed], *first.shape[:-1][:not first.transposed], \
            sum(piece.columns for piece in self.pieces)


class Assembled:
    """A parameter made of the tensors of a file, read only when its numbers are asked for.

    tensors: by their names in the file, with `values()`.
    """

    def __init__(self, place: Place, tensors: Mapping[str, Any]):
        self.shape = place.shape
        self._parts = [(piece, tensors[piece.name]) for piece in place.pieces]

    @property
    def tensors(self) -> list[Tensor]:
        return [tensor for _, tensor in self._parts]

    def astype(self, dtype: Any, copy: bool = True) -> np.ndarray:
        """The numbers, as ndarray.astype has them; without `copy` a view into the file where it can be."""
        if len(self._parts) == 1:
            return _turned(*self._parts[0]).astype(dtype, copy=copy)
        whole, start = np.empty(self.shape, dtype), 0
        for piece, tensor in self._parts:
            whole[..., start:start + piece.columns] = _turned(piece, tensor)
            start += piece.columns
        return whole


def _turned(piece: Piece, tensor: Tensor) -> np.ndarray:
    return tensor.values().T if piece.transposed else tensor.values()


def taken_apart(place: Place, array: Any, interleaved: bool) -> dict[str, Any]:
    """name in the file → array, of a parameter; views, but where heads are turned.

    interleaved: the parameter turns the pairs (0, 1), (2, 3), … of a head. The file's readers turn (0, D/2),
    (1, D/2 + 1), …, so its columns change places: first the even ones, then the odd ones. Scores q·k do not
    depend on the order of the columns.
    """
    arrays, start = {}, 0
    for piece in place.pieces:
        part = array[..., start:start + piece.columns]
        if interleaved and piece.rotary:
            pairs = part.reshape(-1, piece.rotary // 2, 2)                    # of each row's every head
            part  = pairs.swapaxes(-1, -2).reshape(part.shape)
        arrays[piece.name] = part.T if piece.transposed else part
        start += piece.columns
    return arrays
