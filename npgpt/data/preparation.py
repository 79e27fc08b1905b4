"""From text files to token shards, in steps that each leave files behind: `npgpt prepare`.

    1. read       the parts of the sources on all cores: documents, mended, without those that break a rule
    2. decide     what becomes of each document: a duplicate, for training, for validation
    3. tokenizer  trained on the training documents, or loaded
    4. encode     their texts on all cores, with the end of text after each document
    5. write      their ids one after the other as shards of one length
    6. manifest.json, which says that all is there; then the folder `unfinished` of steps 1 to 4 goes

Every file is a function of the plan (options and sources) alone, appears whole or not at all, and is not made
again where it is there. So a preparation may be killed anywhere and run again, with any number of workers:
it goes on, and ends in the same bytes. Of the whole corpus nothing is held in memory but some 300 bytes a
document, and what training a tokenizer needs.

A document's side is drawn by a hash of its text and the seed, so it does not depend on the other documents.
If that leaves a side without any, each document is cut instead: its last `val_fraction` is for validation.
"""

import contextlib
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from npgpt.data.deduplication import near_duplicates
from npgpt.data.parts import (
    CUT,
    EXACT_DUPLICATE,
    NEAR_DUPLICATE,
    TRAIN,
    VAL,
    EncodeTask,
    Part,
    Signatures,
    encode,
    encode_tasks,
    read_part,
    shard_tasks,
    write_one_shard,
)
from npgpt.data.plans import PrepareConfig, make_plan, open_work, tokenizer_hash
from npgpt.data.prepared import KIND
from npgpt.data.reading import READING_RULES, cut_into_parts, find_files
from npgpt.data.shards import check_format, id_type
from npgpt.errors import DataError
from npgpt.files import atomic_write
from npgpt.tokenizers import BPETokenizer, CharacterTokenizer, load_tokenizer
from npgpt.tokenizers.files import Tokenizer, load_setting
from npgpt.workers import each

NOTES = ("byte_order_mark", "crlf", "cut", "invalid_utf8_replaced", "repaired", "newlines_changed",
         "normalized")
"""What is counted without being a reason to leave a document out."""

Progress = Callable[[str, int, int], None]


def prepare(paths: Sequence[Path], out_dir: Path, config: PrepareConfig, workers: int,
            progress: Progress = lambda step, done, total: None) -> dict[str, Any]:
    """Prepares the folder, or goes on with it, or finds it done; returns its manifest.

    progress(step, done, total) is told of bytes, but in the step "merges" of merges. Raises ConfigError,
    DataError, TokenizerError.
    """
    files = find_files(paths, out_dir)
    given = _given_tokenizer(config)
    plan  = make_plan(paths, files, config, given)
    with open_work(out_dir, plan) as work:
        manifest = work.manifest
        if manifest is None:
            parts = [Part(work.folder, number, segments, config)
                     for number, segments in enumerate(cut_into_parts(files))]
            results = _run_steps(parts, out_dir, config, given, workers, progress)
            manifest = {"kind": KIND} | {name: plan[name] for name in plan if name != "modified"} | results
            with atomic_write(out_dir / "manifest.json", "w") as file:
                file.write(json.dumps(manifest, indent=1, ensure_ascii=False) + "\n")
        shutil.rmtree(work.folder, ignore_errors=True)
        return manifest


def _given_tokenizer(config: PrepareConfig) -> Path | None:
    """Where the tokenizer is that is not made here, found once: a name may stand for another on another day.
    What does not fit is said before the work.
    """
    if config.tokenizer in ("bpe", "character"):
        return None
    given, tokenizer = load_setting(config.tokenizer)
    check_format(config.format, tokenizer.vocab_size)
    return given


def _run_steps(parts: list[Part], out_dir: Path, config: PrepareConfig, given: Path | None, workers: int,
               progress: Progress) -> dict[str, Any]:
    """Steps 1 to 5; returns what the manifest says of the results."""
    _on_all_cores("reading", read_part, parts, workers, progress, sum(part.source_bytes() for part in parts))
    counts = Counter[str]()
    for part in parts:
        counts.update(json.loads(part.file("counts").read_text(encoding="utf-8")))

    parts = _decide(parts, config)
    rules = _rules(parts, config, counts)
    if not any(part.lengths("train").any() for part in parts):
        why = ", ".join(f"{row['rule']} left out {gone:,}" for row in rules
                        if (gone := row["documents_in"] - row["documents_out"]))
        raise DataError(f"no document is left to train on; {why or 'there is none in the files'}")

    folder = out_dir / "tokenizer"
    tokenizer = _tokenizer_in(folder, parts, config, given, workers, progress)
    version = tokenizer_hash(folder)
    tasks = [task for part in parts for task in encode_tasks(part, folder, version)]
    _on_all_cores("encoding", encode, tasks, workers, progress, sum(task.size for task in tasks))

    return {
        "rules": rules,
        "notes": {name: counts[name] for name in NOTES if counts[name]},
        "split": "each document cut" if any((part.fates == CUT).any() for part in parts) else "by document",
        "tokenizer": {"kind": type(tokenizer).__name__, "vocab_size": tokenizer.vocab_size,
                      "end_of_text": tokenizer.eos_token_id, "sha256": version},
        **{side: _write_side(side, parts, tasks, out_dir, tokenizer.vocab_size, config, workers, progress)
           for side in ("train", "val")},
    }


def _on_all_cores(step: str, function: Callable[[Any], int], tasks: Sequence[Any], workers: int,
                  progress: Progress, total: int) -> None:
    """Runs the tasks, each of which returns the bytes that it has dealt with."""
    done = 0
    progress(step, done, total)
    with contextlib.closing(each(function, tasks, workers)) as sizes:
        for size in sizes:
            done += size
            progress(step, done, total)


def _decide(parts: Sequence[Part], config: PrepareConfig) -> list[Part]:
    """The parts with the fates of their documents."""
    file = parts[0].folder / "fates.npy"
    if not file.exists():
        records = np.concatenate([np.array(part.records()) for part in parts])
        fates = np.full(len(records), TRAIN, np.uint8)
        fates[records["draw"] < np.uint64(config.val_fraction * 2**64)] = VAL
        if config.near_duplicates is not None:
            near = near_duplicates(Signatures(parts), config.near_duplicates)
            fates[near] = NEAR_DUPLICATE
        if config.exact_duplicates:
            again = np.ones(len(records), bool)
            again[np.unique(records["digest"], return_index=True)[1]] = False    # the first of each
            fates[again] = EXACT_DUPLICATE
        if config.val_fraction > 0 and not ((fates == TRAIN).any() and (fates == VAL).any()):
            fates[(fates == TRAIN) | (fates == VAL)] = CUT
        with atomic_write(file) as written:
            np.save(written, fates)
    shares = np.split(np.load(file), np.cumsum([len(part.records()) for part in parts])[:-1])
    return [part._replace(fates=own) for part, own in zip(parts, shares, strict=True)]


def _tokenizer_in(folder: Path, parts: Sequence[Part], config: PrepareConfig, given: Path | None,
                  workers: int, progress: Progress) -> Tokenizer:
    """The tokenizer in the folder, made if it is not there."""
    if not folder.exists():
        tokenizer: Tokenizer
        if given:
            tokenizer = load_tokenizer(given)
        elif config.tokenizer == "character":
            tokenizer = CharacterTokenizer.train(
                text for part in parts for sides in part.documents() for text in sides)
        else:
            tokenizer = BPETokenizer.train(_sample(parts, config.tokenizer_characters), config.vocab_size,
                                           progress=lambda done, wanted: progress("merges", done, wanted),
                                           workers=workers)
            progress("merges", 1, 1)              # where the text had fewer than were wanted, too
        aside = parts[0].folder / "tokenizer"
        shutil.rmtree(aside, ignore_errors=True)  # of a process that was killed
        tokenizer.save(aside)
        aside.rename(folder)
    return load_tokenizer(folder)


def _sample(parts: Sequence[Part], characters: int) -> Iterator[str]:
    """The training texts; if they have more characters, some of them, spread evenly."""
    share = min(1.0, characters / sum(int(part.lengths("train").sum()) for part in parts))
    seen = 0
    for part in parts:
        for text, _ in part.documents():
            seen += bool(text)
            if text and int(seen * share) > int((seen - 1) * share):
                yield text


def _write_side(side: str, parts: Sequence[Part], encoded: Sequence[EncodeTask], out_dir: Path,
                vocab_size: int, config: PrepareConfig, workers: int, progress: Progress) -> dict[str, Any]:
    """Writes the shards of one side, "train" or "val"; returns what the manifest says of it."""
    itemsize = id_type(vocab_size).itemsize
    files = [(task.file(side), task.file(side).stat().st_size // itemsize) for task in encoded]
    total = sum(count for _, count in files)
    tasks = shard_tasks(out_dir, side, files, config.shard_tokens, vocab_size, config.format)
    entries: list[dict[str, Any]] = []
    done = 0
    if total:
        progress(f"{side} shards", 0, itemsize * total)        # when they begin
    with contextlib.closing(each(write_one_shard, tasks, workers)) as written:
        for entry in written:
            entries.append(entry)
            done += entry["tokens"]
            progress(f"{side} shards", itemsize * done, itemsize * total)
    lengths = [part.lengths(side) for part in parts]
    return {"documents": sum(int(np.count_nonzero(own)) for own in lengths),
            "characters": sum(int(own.sum()) for own in lengths), "tokens": total,
            "shards": sorted(entries, key=lambda entry: entry["name"])}


def _rules(parts: Sequence[Part], config: PrepareConfig, counts: Counter[str]) -> list[dict[str, Any]]:
    """For every rule that is on, in order: the documents that came to it and that it let pass."""
    removed = {rule: (counts[rule], counts[f"{rule} characters"])
               for rule in [*READING_RULES, *config.cleaner().rules()]}
    documents = sum(count for count, _ in removed.values()) + sum(len(part.records()) for part in parts)
    for rule, fate, on in (("exact_duplicate", EXACT_DUPLICATE, config.exact_duplicates),
                           ("near_duplicate", NEAR_DUPLICATE, config.near_duplicates is not None)):
        if on:
            gone = [part.records()["characters"][part.fates == fate] for part in parts]
            removed[rule] = (sum(map(len, gone)), sum(int(own.sum()) for own in gone))
    rows = []
    for rule, (count, characters) in removed.items():
        rows.append({"rule": rule, "documents_in": documents, "documents_out": documents - count,
                     "characters_removed": characters})
        documents -= count
    return rows
