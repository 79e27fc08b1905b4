"""What a language model is measured on: the token ids of documents, of texts or of token shards.

A document's ids are those of its text and nothing else: in shards, where the end-of-text token follows each,
or another stands before each, the ids are cut apart there and that token is left out. So a text gives the
same numbers as a file and as a prepared folder. Shards of a tokenizer without such a token are one document.
"""

import hashlib
from collections.abc import Collection, Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np

from npgpt.data.corpora import BUILT_IN, iterate_documents
from npgpt.data.prepared import is_prepared, open_prepared, read_manifest
from npgpt.errors import DataError
from npgpt.files import file_sha256
from npgpt.tokenizers import load_tokenizer
from npgpt.tokenizers.checks import checked_text
from npgpt.tokenizers.files import Tokenizer


class Documents(NamedTuple):
    """tokens: the ids of each document, (n,).  sha256: of the file, or of the hashes of several in order.
    kind: "text", "prepared" or "run"."""

    tokens: list[np.ndarray]
    sha256: str
    kind: str


def read_texts(texts: Iterable[str], tokenizer: Tokenizer, limit: int | None = None) -> Documents:
    """The documents that texts are; once there are `limit` tokens, no further one is encoded. The hash is of
    all the texts, as UTF-8. Raises TokenizerError."""
    tokens: list[np.ndarray] = []
    hashes, count = [], 0
    for text in map(checked_text, texts):
        hashes.append(hashlib.sha256(text.encode()).digest())
        if limit is None or count < limit:                  # the first of a document may not be scored
            tokens.append(np.array(tokenizer.encode_ordinary(text), np.int64))
            count += max(0, len(tokens[-1]) - 1)
    return Documents(tokens, _joined(hashes), "text")


def read_prepared(folder: Path, tokenizer: Tokenizer) -> Documents:
    """The validation documents of a folder that npgpt prepare made. Raises DataError if it has none, or if
    their ids stand for other bytes than the tokenizer's."""
    prepared = open_prepared(folder)
    files    = [folder / entry["name"] for entry in read_manifest(folder)["val"]["shards"]]
    if not sum(map(len, prepared.val)):
        raise DataError(f"{folder} has no validation tokens: prepare it with a val_fraction above 0")
    stream, own = np.concatenate(prepared.val), load_tokenizer(prepared.tokenizer)
    if own.special_tokens != tokenizer.special_tokens or own.vocab_size != tokenizer.vocab_size or any(
            own.token_bytes(id) != tokenizer.token_bytes(id) for id in np.unique(stream).tolist()):
        raise DataError(f"{folder} was prepared with another tokenizer than the model's: prepare it with the "
                        "model's, or evaluate on the text itself")
    return Documents(split(stream, _separators(tokenizer)), _hash(files), "prepared")


def read_stream(file: Path, stream: np.ndarray, tokenizer: Tokenizer, ends: Sequence[int]) -> Documents:
    """The documents in the ids of a run's own validation file.  ends: more ids that end one."""
    return Documents(split(stream, {*_separators(tokenizer), *ends}), _hash([file]), "run")


def read(source: str, tokenizer: Tokenizer, limit: int | None = None) -> Documents:
    """The documents of a prepared folder, a text file, a folder of texts or a built-in corpus. Raises
    DataError."""
    if source and source not in BUILT_IN and is_prepared(Path(source)):
        return read_prepared(Path(source), tokenizer)
    return read_texts(iterate_documents(source), tokenizer, limit)


def split(stream: np.ndarray, separators: Collection[int]) -> list[np.ndarray]:
    """The stretches between these ids, without them and without empty ones: views."""
    edges = [-1, *np.flatnonzero(np.isin(stream, [*separators])).tolist(), len(stream)]
    return [stream[left + 1:right] for left, right in pairwise(edges) if right > left + 1]


def _separators(tokenizer: Tokenizer) -> set[int]:
    return {id for id in (*tokenizer.prefix, tokenizer.eos_token_id) if id is not None}


def limited(documents: Iterable[np.ndarray], limit: int | None, first_is_scored: bool) -> list[np.ndarray]:
    """As many documents as have `limit` scored tokens, the last cut there; those with none are left out."""
    kept, unscored = [], 0 if first_is_scored else 1
    for tokens in documents:
        if limit is not None:
            tokens = tokens[:limit + unscored]
            limit -= max(0, len(tokens) - unscored)
        if len(tokens) > unscored:
            kept.append(tokens)
    return kept


def byte_lengths(documents: Sequence[np.ndarray], tokenizer: Tokenizer) -> np.ndarray:
    """id → how many bytes of a text it stands for, 0 for a special token; of the ids in the documents."""
    size = 1 + max((int(tokens.max()) for tokens in documents if len(tokens)), default=-1)
    used = np.zeros(size, bool)
    for tokens in documents:
        used[tokens] = True
    lengths, special = np.zeros(size, np.int64), set(tokenizer.special_tokens.values())
    for id in np.flatnonzero(used).tolist():
        lengths[id] = 0 if id in special else len(tokenizer.token_bytes(id))
    return lengths


def _hash(files: Iterable[Path]) -> str:
    return _joined([bytes.fromhex(file_sha256(path)) for path in files])


def _joined(hashes: Sequence[bytes]) -> str:
    """One hash itself, or the hash of several."""
    return hashes[0].hex() if len(hashes) == 1 else hashlib.sha256(b"".join(hashes)).hexdigest()
