"""The 256 bytes as GPT-2 numbers and writes them (Radford et al. 2019).

GPT-2 keeps its vocabulary in JSON and its merges in lines of two words, so every byte needs a visible
character of its own. The 188 bytes that Latin-1 shows as a visible character stand for themselves; the
other 68 (controls, space, 0x7F to 0xA0, the soft hyphen 0xAD) are written, in order, as U+0100, U+0101, …
So space is Ġ, newline Ċ. A byte's token id is its place when all are sorted by the character they are
written with: "!" is 0, space 220.
"""

_VISIBLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_HIDDEN = [byte for byte in range(256) if byte not in _VISIBLE]

BYTE_ORDER = bytes(_VISIBLE + _HIDDEN)                                  # token id → byte
BYTE_IDS = bytes(BYTE_ORDER.index(byte) for byte in range(256))         # byte → token id, for bytes.translate

_SYMBOL = {byte: chr(byte) for byte in _VISIBLE} | {byte: chr(0x100 + i) for i, byte in enumerate(_HIDDEN)}
_BYTE = {symbol: byte for byte, symbol in _SYMBOL.items()}


def to_symbols(data: bytes) -> str:
    """The bytes as GPT-2's files write them: b" the" → "Ġthe"."""
    return "".join([_SYMBOL[byte] for byte in data])


def from_symbols(symbols: str) -> bytes | None:
    """The bytes that GPT-2's files would write like this; None if a character in it stands for no byte."""
    return bytes(_BYTE[symbol] for symbol in symbols) if _BYTE.keys() >= set(symbols) else None
