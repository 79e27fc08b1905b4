"""What a tokenizer remembers: the same few pieces come again and again in every text."""

from collections.abc import Callable, Sequence


class PieceCache(dict[str, Sequence[int]]):
    """piece → ids, computed when first asked for.

    Bounded: long pieces, which seldom come again, are not kept, and when it is full it starts anew, and for
    as long again takes from what it was whatever is asked for.
    """

    LARGEST = 1 << 17           # entries; about 30 MB, and the old ones as much
    LONGEST = 64                # characters

    def __init__(self, encode_piece: Callable[[str], list[int]]):
        super().__init__()
        self._encode_piece = encode_piece
        self._old: dict[str, Sequence[int]] = {}

    def __missing__(self, piece: str) -> Sequence[int]:
        if len(piece) > self.LONGEST:
            return self._encode_piece(piece)
        if len(self) >= self.LARGEST:
            self._old = dict(self)
            self.clear()
        ids = self[piece] = self._old.get(piece) or tuple(self._encode_piece(piece))
        return ids
