"""Byte-level BPE as its definition reads, with nothing remembered from one step to the next. Slow."""

from collections import Counter
from itertools import pairwise

import regex

# GPT-2's order of the bytes: those that are visible characters of Latin-1 come before all the others.
BYTES = sorted(range(256), key=lambda b: (not (0x21 <= b <= 0x7E or (b >= 0xA1 and b != 0xAD)), b))
GPT2 = regex.compile(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")


def to_ids(data):
    return [BYTES.index(byte) for byte in data]


def replace(ids, pair, new):
    """Every occurrence of the pair, from left to right."""
    out = []
    while ids:
        if tuple(ids[:2]) == pair:
            out, ids = [*out, new], ids[2:]
        else:
            out, ids = [*out, ids[0]], ids[1:]
    return out


def train(texts, number):
    pieces = [to_ids(piece.encode()) for text in texts for piece in GPT2.findall(text)]
    merges = []
    while len(merges) < number:
        counts = Counter(pair for piece in pieces for pair in pairwise(piece))
        if not counts:
            break
        pair = min(counts, key=lambda pair: (-counts[pair], pair))
        pieces = [replace(piece, pair, 256 + len(merges)) for piece in pieces]
        merges.append(pair)
    return merges


def encode(text, merges):
    ids = []
    for piece in GPT2.findall(text):
        piece_ids = to_ids(piece.encode())
        for new, pair in enumerate(merges, start=256):
            piece_ids = replace(piece_ids, pair, new)
        ids += piece_ids
    return ids
