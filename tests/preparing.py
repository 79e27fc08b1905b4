"""A small corpus with everything planted in it, and comparing prepared folders; for the tests of preparing
and the processes that they kill."""

import gzip
import json
import random
from pathlib import Path

from npgpt.data import parts, reading
from npgpt.data.plans import PrepareConfig
from npgpt.data.preparation import prepare

PART, RUN = 5000, 3500
OPTIONS = {"vocab_size": 280, "val_fraction": 0.25, "shard_tokens": 4000, "max_characters": 2000}


def small_parts():
    """The corpus below in a few parts, some of two runs."""
    reading._PART, parts._RUN = PART, RUN


def write_corpus(folder: Path) -> tuple[list[str], dict[str, int]]:
    """Writes the files; returns the documents that should stay, in order, and how many each rule leaves
    out."""
    draw = random.Random(7)
    words = ["".join(draw.choices("abcdefghijklmnopqrsé", k=draw.randint(2, 8))) for _ in range(400)]
    texts = [" ".join(draw.choices(words, k=draw.randint(30, 120))) + "\n" for _ in range(40)]
    texts[3] += "<|endoftext|> is ordinary text here\r\n"
    for name in ("a/deep", "b"):
        (folder / name).mkdir(parents=True)
    for n, text in enumerate(texts[:10]):
        (folder / f"a/{n:02}.txt").write_bytes(text.encode())
    (folder / "a/10.txt").write_bytes(texts[4].encode())                           # exact
    (folder / "a/11.txt").write_bytes(texts[5].replace(" ", "  ").upper().encode())  # near
    (folder / "a/12.md").write_bytes(b"\xef\xbb\xbf" + texts[10].encode())
    (folder / "a/deep/latin.txt").write_bytes("schön".encode("latin-1"))           # invalid_utf8
    (folder / "a/deep/nul.txt").write_bytes(b"a\0b")                               # nul
    (folder / "a/deep/empty.txt").touch()                                          # min_characters
    (folder / "a/deep/long.txt").write_text("long " * 500)                         # max_characters
    lines = [json.dumps({"text": text}) for text in texts[11:30]]
    lines[5:5] = ["{broken", '{"title": "no text"}', lines[2]]  # invalid_json, no_text, exact
    (folder / "b/one.jsonl").write_text("\n".join(lines) + "\n")
    with gzip.GzipFile(folder / "b/two.jsonl.gz", "wb", mtime=0) as file:
        file.writelines(json.dumps({"text": text}).encode() + b"\n" for text in texts[30:])
    # In the order of paths: a/00.txt … a/11.txt, a/12.md, a/deep/…, b/one.jsonl, b/two.jsonl.gz
    return texts, {"invalid_json": 1, "no_text": 1, "invalid_utf8": 1, "nul": 1, "min_characters": 1,
                   "max_characters": 1, "exact_duplicate": 2, "near_duplicate": 1}


def run(folder: Path, out_dir: Path, workers: int = 1, progress=lambda *_: None, **options):
    return prepare([folder], out_dir, PrepareConfig(**OPTIONS | options), workers, progress)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes()
            for path in sorted(folder.rglob("*")) if path.is_file()}
