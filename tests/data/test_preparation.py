"""The whole of it: where every document ends up, and that workers do not change a byte."""

import hashlib
import json
import os
import random
import resource
import shutil
from itertools import pairwise
from pathlib import Path

import numpy as np
import preparing
import pytest

from npgpt.data import parts, reading
from npgpt.data.plans import PrepareConfig
from npgpt.data.preparation import prepare
from npgpt.data.prepared import open_prepared
from npgpt.data.shards import open_shard
from npgpt.errors import DataError, TokenizerError
from npgpt.tokenizers import BPETokenizer, CharacterTokenizer, load_tokenizer


def documents(out_dir, side):
    """The texts in the shards of one side, decoded."""
    prepared = open_prepared(out_dir)
    tokenizer = load_tokenizer(out_dir / "tokenizer")
    shards = getattr(prepared, side)
    ids = np.concatenate(shards) if shards else np.empty(0, int)
    assert not len(ids) or ids[-1] == tokenizer.eos_token_id
    ends = np.flatnonzero(ids == tokenizer.eos_token_id)
    return [tokenizer.decode(part[:-1].tolist()) for part in np.split(ids, ends + 1)[:-1]]


def write_texts(folder, texts):
    folder.mkdir(parents=True, exist_ok=True)
    for n, text in enumerate(texts):
        (folder / f"{n:04}.txt").write_bytes(text.encode())


def different(count, words=30, seed=0):
    draw = random.Random(seed)
    return [" ".join("".join(draw.choices("abcdefgh", k=5)) for _ in range(words)) for _ in range(count)]


def test_every_document_is_on_one_side_or_counted(tmp_path, texts):
    stays, left_out = texts
    preparing.run(tmp_path / "texts", tmp_path / "out")
    train, val = (documents(tmp_path / "out", side) for side in ("train", "val"))
    assert sorted(train + val) == sorted(stays)
    assert train == [text for text in stays if text in set(train)]                  # in order
    assert val == [text for text in stays if text in set(val)] and 3 <= len(val) <= 20
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    counted = {row["rule"]: row["documents_in"] - row["documents_out"] for row in manifest["rules"]}
    assert {rule: count for rule, count in counted.items() if count} == left_out
    assert sorted(path.name for path in (tmp_path / "out").iterdir() if path.suffix != ".bin") == [
        "manifest.json", "tokenizer"]


def test_the_manifest_is_true(tmp_path, texts):
    stays, left_out = texts
    told: dict[str, list] = {}
    returned = preparing.run(tmp_path / "texts", tmp_path / "out",
                             progress=lambda step, *numbers: told.setdefault(step, []).append(numbers))
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert returned == manifest
    assert list(manifest) == ["kind", "options", "sources", "versions", "rules", "notes", "split",
                              "tokenizer", "train", "val"]              # and nothing of this machine or day
    rows = manifest["rules"]
    assert rows[0]["documents_in"] == len(stays) + sum(left_out.values())
    assert rows[-1]["documents_out"] == len(stays)
    assert all(a["documents_out"] == b["documents_in"] for a, b in pairwise(rows))
    removed = {row["rule"]: row["characters_removed"] for row in rows}
    assert removed["max_characters"] == 2500 and removed["invalid_utf8"] == 5 and removed["nul"] == 3
    assert removed["exact_duplicate"] == len(stays[4]) + len(stays[13])
    names = []
    for side in ("train", "val"):
        own, entry = documents(tmp_path / "out", side), manifest[side]
        assert entry["documents"] == len(own) and entry["characters"] == sum(map(len, own))
        for n, shard in enumerate(entry["shards"]):
            content = (tmp_path / "out" / shard["name"]).read_bytes()
            assert shard == {"name": f"{side}-{n:05}.bin", "bytes": len(content),
                             "tokens": (len(content) - 40) // 2,
                             "sha256": hashlib.sha256(content).hexdigest()}
            names.append(shard["name"])
        counts = [shard["tokens"] for shard in entry["shards"]]
        assert sum(counts) == entry["tokens"] and set(counts[:-1]) <= {4000} and 0 < counts[-1] <= 4000
    assert names == sorted(path.name for path in (tmp_path / "out").glob("*.bin")) and len(names) >= 4
    assert manifest["notes"] == {"byte_order_mark": 1, "crlf": 1} and manifest["split"] == "by document"
    files = [path for path in (tmp_path / "texts").rglob("*") if path.is_file()]
    assert manifest["sources"]["files"] == len(files)
    size = manifest["sources"]["bytes"]
    assert size == sum(path.stat().st_size for path in files)
    assert told["reading"][0] == (0, size) and told["reading"][-1] == (size, size)
    assert all(told[step][0][0] == 0 for step in told.keys() - {"merges"})    # from then on its speed counts
    assert list(told) == ["reading", "merges", "encoding", "train shards", "val shards"]
    assert all(done == total > 0 for done, total in (steps[-1] for steps in told.values()))
    assert manifest["options"]["shard_tokens"] == 4000 and manifest["versions"]["numpy"] == np.__version__
    assert list(manifest["versions"]) == ["npgpt", "python", "unicode", "numpy", "regex"]
    assert manifest["tokenizer"]["vocab_size"] == 280 and manifest["tokenizer"]["end_of_text"] == 279


def test_every_rule_that_is_on_has_its_line_in_the_manifest(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "MAX_LINE", 300)
    rows = [{"text": text} for text in [*different(12), "x" * 300]]
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts/a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    preparing.run(tmp_path / "texts", tmp_path / "out", tokenizer="character")
    rules = json.loads((tmp_path / "out/manifest.json").read_text())["rules"]
    assert [row["rule"] for row in rules] == [
        "long_line", "invalid_json", "no_text", "invalid_utf8", "nul", "min_characters", "max_characters",
        "exact_duplicate", "near_duplicate"]
    assert [row["documents_in"] - row["documents_out"] for row in rules] == [1] + [0] * 8


def test_workers_and_parts_do_not_change_a_byte(tmp_path, texts, monkeypatch):
    preparing.run(tmp_path / "texts", tmp_path / "one")
    preparing.run(tmp_path / "texts", tmp_path / "two", workers=2)
    monkeypatch.setattr(reading, "_PART", 10**6)
    monkeypatch.setattr(parts, "_CHUNK", 997)
    for run in (1, 700, 10**6):
        monkeypatch.setattr(parts, "_RUN", run)
        preparing.run(tmp_path / "texts", tmp_path / f"runs of {run}")
    one = preparing.contents(tmp_path / "one")
    assert all(preparing.contents(tmp_path / name) == one
               for name in ("two", "runs of 1", "runs of 700", "runs of 1000000"))


def test_the_order_in_which_workers_are_done_changes_nothing(tmp_path, texts, monkeypatch):
    preparing.run(tmp_path / "texts", tmp_path / "one")
    monkeypatch.setattr("npgpt.data.preparation.each", lambda function, tasks, workers:
                        (function(task) for task in reversed(list(tasks))))
    preparing.run(tmp_path / "texts", tmp_path / "other")
    assert preparing.contents(tmp_path / "other") == preparing.contents(tmp_path / "one")


def test_what_mends_texts_is_one_of_the_versions(tmp_path):
    ftfy = pytest.importorskip("ftfy")
    write_texts(tmp_path / "texts", different(12))
    manifest = preparing.run(tmp_path / "texts", tmp_path / "out", repair=True, tokenizer="character")
    assert manifest["versions"]["ftfy"] == ftfy.__version__


def test_what_is_prepared_where_nothing_is_asked_for_stays_what_it_was():
    config = PrepareConfig()
    assert (config.val_fraction, config.near_duplicates, config.vocab_size, config.tokenizer_characters,
            config.shard_tokens) == (0.1, 0.8, 8192, 50_000_000, 100_000_000)


def test_a_corpus_may_have_more_parts_than_a_process_may_open_files(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "_PART", 1)
    write_texts(tmp_path / "texts", different(160))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (100, hard))
    try:
        manifest = prepare([tmp_path / "texts"], tmp_path / "out", PrepareConfig(vocab_size=280), workers=1)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert manifest["train"]["documents"] + manifest["val"]["documents"] == 160


def test_a_shard_is_told_of_the_files_that_it_reads_alone():
    files = [(Path(str(n)), count) for n, count in enumerate([3, 0, 5, 2, 0, 4, 0])]
    ids   = [(path, place) for path, count in files for place in range(count)]
    for size in range(1, 20):
        tasks = list(parts.shard_tasks(Path("out"), "train", files, size, 300, "npgpt"))
        assert [task.path.name for task in tasks] == [f"train-{n:05}.bin" for n in range(-(-14 // size))]
        found = [[(path, place) for path, count in task.files for place in range(count)][task.start:task.stop]
                 for task in tasks]
        assert found == [ids[start:start + size] for start in range(0, 14, size)]
        assert all(task.start < task.files[0][1] and task.stop > sum(count for _, count in task.files[:-1])
                   for task in tasks)
    assert not list(parts.shard_tasks(Path("out"), "val", [], 5, 300, "npgpt"))
    assert not list(parts.shard_tasks(Path("out"), "val", files[1:2], 5, 300, "npgpt"))


def test_other_stop_words_are_another_preparation(tmp_path):
    write_texts(tmp_path / "texts", [f"the {text} and" for text in different(12)])
    words = tmp_path / "words"
    for content in ("the and", "the and"):
        words.write_text(content)
        preparing.run(tmp_path / "texts", tmp_path / "out", stop_words=words, tokenizer="character")
    words.write_text("the but")                                     # as long, and of no later date
    with pytest.raises(DataError, match="another preparation: its stop words is '[0-9a-f]{64}', not"):
        preparing.run(tmp_path / "texts", tmp_path / "out", stop_words=words, tokenizer="character")

def test_the_folder_may_lie_among_the_texts(tmp_path, texts):
    stays, _ = texts
    for _ in range(2):
        preparing.run(tmp_path / "texts", tmp_path / "texts/out")
    assert len(documents(tmp_path / "texts/out", "train")) < len(stays)
    (tmp_path / "texts/out/manifest.json").unlink()
    shutil.rmtree(tmp_path / "texts/out")
    assert preparing.run(tmp_path / "texts", tmp_path / "texts/out")["train"]["documents"] < len(stays)


def test_a_documents_side_depends_on_it_and_the_seed_alone(tmp_path):
    texts = different(300)
    write_texts(tmp_path / "all", texts)
    write_texts(tmp_path / "half", texts[::2][::-1])
    sides = {}
    for name, seed in (("all", 1), ("half", 1), ("all", 2)):
        out = tmp_path / f"{name}{seed}"
        preparing.run(tmp_path / name, out, seed=seed, vocab_size=257, val_fraction=0.3)
        sides[name, seed] = set(documents(out, "val"))
    assert sides["half", 1] == sides["all", 1] & set(texts[::2])
    assert 60 <= len(sides["all", 1]) <= 120 and len(sides["all", 1] ^ sides["all", 2]) > 60


def test_the_sides_stay_what_they_were(tmp_path):
    """What a later version prepares must not train on what an earlier one has held back."""
    write_texts(tmp_path / "texts", [letter * 9 for letter in "abcdefghijklmnopqrst"])
    preparing.run(tmp_path / "texts", tmp_path / "out", vocab_size=257, near_duplicates=None)
    assert "".join(text[0] for text in documents(tmp_path / "out", "val")) == "jmr"


def test_what_was_one_document_lies_on_one_side(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "MAX_CHARACTERS", 50)
    texts = different(60)
    write_texts(tmp_path / "texts", texts)
    manifest = preparing.run(tmp_path / "texts", tmp_path / "out", vocab_size=257, max_characters=None)
    assert manifest["notes"] == {"cut": 60}
    for side in ("train", "val"):
        pieces = documents(tmp_path / "out", side)
        assert "".join(pieces) == "".join(text for text in texts if text[:50] in set(pieces))
        assert pieces and max(map(len, pieces)) == 50
    assert sum(manifest[side]["characters"] for side in ("train", "val")) == sum(map(len, texts))
    with pytest.raises(DataError, match="left out 240"):  # what is cut is longer than the limit
        preparing.run(tmp_path / "texts", tmp_path / "short", max_characters=45)


@pytest.mark.parametrize(("count", "fraction"), [(1, 0.01), (3, 0.01), (3, 0.99)])
def test_too_few_documents_for_both_sides_are_cut(tmp_path, count, fraction):
    texts = different(count)
    write_texts(tmp_path / "texts", [*texts, texts[0]])
    manifest = preparing.run(tmp_path / "texts", tmp_path / "out", vocab_size=257, val_fraction=fraction)
    train, val = (documents(tmp_path / "out", side) for side in ("train", "val"))
    assert manifest["split"] == "each document cut" and len(train) == len(val) == count
    assert [a + b for a, b in zip(train, val, strict=True)] == texts
    assert all(len(b) == pytest.approx(fraction * len(a + b), abs=1) for a, b in zip(train, val, strict=True))
    assert manifest["val"]["characters"] == sum(map(len, val))
    told = []
    manifest = preparing.run(tmp_path / "texts", tmp_path / "none", vocab_size=257, val_fraction=0.0,
                             progress=lambda step, *numbers: told.append(step))
    assert "train shards" in told and "val shards" not in told  # a bar without an end
    assert documents(tmp_path / "none", "train") == texts and manifest["val"]["shards"] == []
    assert manifest["split"] == "by document"


def test_duplicates_stay_where_they_are_asked_to(tmp_path):
    texts = different(20)
    write_texts(tmp_path / "texts", texts + texts[:3] + [texts[4] + "!"])
    for options, kept, on in (({}, 20, {"exact_duplicate", "near_duplicate"}),
                              ({"near_duplicates": None}, 21, {"exact_duplicate"}),
                              ({"exact_duplicates": False}, 20, {"near_duplicate"}),
                              ({"exact_duplicates": False, "near_duplicates": None}, 24, set())):
        out = tmp_path / f"out{kept}{len(on)}{'near_duplicate' in on}"
        manifest = preparing.run(tmp_path / "texts", out, vocab_size=257, **options)
        assert manifest["train"]["documents"] + manifest["val"]["documents"] == kept
        assert {row["rule"] for row in manifest["rules"] if "duplicate" in row["rule"]} == on
        sides = [set(documents(out, side)) for side in ("train", "val")]
        assert not sides[0] & sides[1]                                              # copies share their side


def test_what_mending_makes_alike_lies_on_one_side(tmp_path):
    texts = different(20)
    write_texts(tmp_path / "texts", [text + end for text in texts for end in ("\n", "\r\n")])
    preparing.run(tmp_path / "texts", tmp_path / "out", vocab_size=257, newlines=True,
                  exact_duplicates=False, near_duplicates=None)
    train, val = (documents(tmp_path / "out", side) for side in ("train", "val"))
    assert len(train) + len(val) == 40 and train and val and not set(train) & set(val)


def test_lines_have_their_text_in_the_field_that_is_named(tmp_path):
    (tmp_path / "texts").mkdir()
    texts = different(20)
    (tmp_path / "texts/a.jsonl").write_text("".join(
        json.dumps({"text": "another", "body": text}) + "\n" for text in texts))
    preparing.run(tmp_path / "texts", tmp_path / "out", text_field="body", vocab_size=257)
    assert sorted(documents(tmp_path / "out", "train") + documents(tmp_path / "out", "val")) == sorted(texts)


def test_how_alike_documents_may_be_is_as_is_asked(tmp_path):
    texts = different(20)
    write_texts(tmp_path / "texts", [*texts, texts[0][:120]])                       # of 179 characters
    for least, kept in (0.5, 20), (0.8, 21):
        manifest = preparing.run(tmp_path / "texts", tmp_path / f"{least}", vocab_size=257,
                                 near_duplicates=least)
        assert manifest["train"]["documents"] + manifest["val"]["documents"] == kept


def test_bpe_learns_from_the_training_documents_alone_and_from_a_sample_of_many(tmp_path, texts):
    preparing.run(tmp_path / "texts", tmp_path / "out")
    train = documents(tmp_path / "out", "train")
    assert load_tokenizer(tmp_path / "out/tokenizer").merges == BPETokenizer.train(train, 280).merges
    preparing.run(tmp_path / "texts", tmp_path / "some", tokenizer_characters=sum(map(len, train)) // 2)
    assert load_tokenizer(tmp_path / "some/tokenizer").merges == BPETokenizer.train(train[1::2], 280).merges


def test_other_tokenizers(tmp_path, texts):
    stays, _ = texts
    preparing.run(tmp_path / "texts", tmp_path / "characters", tokenizer="character")
    tokenizer = load_tokenizer(tmp_path / "characters/tokenizer")
    assert isinstance(tokenizer, CharacterTokenizer) and tokenizer.vocab_size == len(set("".join(stays)))
    ids = np.concatenate(open_prepared(tmp_path / "characters").train)              # has no end of text
    decoded = tokenizer.decode(ids.tolist())
    assert decoded and "".join(text for text in stays if text in decoded) == decoded

    large = BPETokenizer([(n, 255) for n in range(256)], ("<|endoftext|>",))
    large.save(tmp_path / "saved")
    manifest = preparing.run(tmp_path / "texts", tmp_path / "own", tokenizer=str(tmp_path / "saved"))
    assert load_tokenizer(tmp_path / "own/tokenizer").merges == large.merges
    assert manifest["tokenizer"]["vocab_size"] == 513 and sorted(
        documents(tmp_path / "own", "train") + documents(tmp_path / "own", "val")) == sorted(stays)
    file = tmp_path / "saved" / "tokenizer.json"
    one  = preparing.run(tmp_path / "texts", tmp_path / "of a file", tokenizer=str(file))
    assert one["train"] == manifest["train"] and one["sources"]["tokenizer"] == hashlib.sha256(
        f"tokenizer.json\t{hashlib.sha256(file.read_bytes()).hexdigest()}\n".encode()).hexdigest()
    with pytest.raises((DataError, TokenizerError), match="absent"):
        preparing.run(tmp_path / "texts", tmp_path / "x", tokenizer=str(tmp_path / "absent"))
    BPETokenizer([(n, 254) for n in range(256)], ("<|endoftext|>",)).save(tmp_path / "saved")
    with pytest.raises(DataError, match="another preparation: its tokenizer is"):
        preparing.run(tmp_path / "texts", tmp_path / "own", tokenizer=str(tmp_path / "saved"))


def test_of_gpt2s_two_files_either_makes_another_tokenizer(tmp_path, texts):
    BPETokenizer([(n, 255) for n in range(9)], ("<|endoftext|>",)).save(tmp_path)
    merges, ids = tmp_path / "vocab.bpe", tmp_path / "encoder.json"
    (tmp_path / "merges.txt").rename(merges)
    (tmp_path / "vocab.json").rename(ids)

    def run():
        return preparing.run(tmp_path / "texts", tmp_path / "out", tokenizer=str(merges))

    made = run()
    (tmp_path / "tokenizer.json").write_text("is read where the folder is named")
    assert run() == made
    for file, change in ((ids, lambda data: data + b"\n"),
                         (merges, lambda data: data.rsplit(b"\n", 2)[0] + b"\n")):
        before = file.read_bytes()
        file.write_bytes(change(before))
        with pytest.raises(DataError, match="another preparation: its tokenizer is"):
            run()
        file.write_bytes(before)


def test_ids_of_a_large_vocabulary_have_four_bytes_from_the_text_to_the_shard(tmp_path, texts):
    stays, _ = texts
    BPETokenizer((), {"<|endoftext|>": 70_000}).save(tmp_path / "large")
    with pytest.raises(DataError, match="two bytes an id"):                            # before any work
        preparing.run(tmp_path / "texts", tmp_path / "out", tokenizer=str(tmp_path / "large"), format="llm.c")
    assert not (tmp_path / "out").exists()
    manifest = preparing.run(tmp_path / "texts", tmp_path / "out", tokenizer=str(tmp_path / "large"))
    assert len(manifest["train"]["shards"]) > 1
    assert all(shard["bytes"] == 40 + 4 * shard["tokens"] for shard in manifest["train"]["shards"])
    assert sorted(documents(tmp_path / "out", "train") + documents(tmp_path / "out", "val")) == sorted(stays)


def test_a_folder_removed_and_prepared_anew_has_nothing_of_the_tokenizer_before(tmp_path):
    write_texts(tmp_path / "texts", different(20))
    for tokenizer in ("character", "bpe"):
        preparing.run(tmp_path / "texts", tmp_path / "out", tokenizer=tokenizer, vocab_size=257)
        ids = np.concatenate(open_prepared(tmp_path / "out").train)
        assert set(load_tokenizer(tmp_path / "out/tokenizer").decode(ids.tolist())) >= set("abcdefgh ")
        shutil.rmtree(tmp_path / "out")


@pytest.mark.parametrize("format", ["llm.c", "nanogpt"])
def test_shards_of_other_programs(tmp_path, texts, format):
    preparing.run(tmp_path / "texts", tmp_path / "npgpt")
    preparing.run(tmp_path / "texts", tmp_path / "other", format=format, shard_tokens=3000)
    for side in ("train", "val"):
        own, others = (np.concatenate(getattr(open_prepared(tmp_path / name), side))
                       for name in ("npgpt", "other"))
        assert np.array_equal(own, others)
    raw = (tmp_path / "other/train-00000.bin").read_bytes()
    assert len(raw) == 6000 + 1024 * (format == "llm.c")
    assert open_shard(tmp_path / "other/train-00000.bin", format).tokens.tolist() == np.frombuffer(
        raw[-6000:], "<u2").tolist()


def test_a_shard_that_was_cut_changed_or_exchanged_is_refused_by_its_name(tmp_path, texts):
    for format in ("npgpt", "llm.c", "nanogpt"):
        out = tmp_path / format
        manifest = preparing.run(tmp_path / "texts", out, format=format)
        path = out / "train-00000.bin"
        whole = path.read_bytes()
        beyond = manifest["tokenizer"]["vocab_size"].to_bytes(2, "little")
        for damaged in (whole[:-1], whole[:-2], whole[:5], b"", whole + b"\0\0", whole[:-2] + beyond):
            path.write_bytes(damaged)
            with pytest.raises(DataError, match=f"{path} "):
                open_prepared(out)
        path.unlink()
        with pytest.raises(DataError, match=f"{path}.*No such file"):
            open_prepared(out)
    for kind, said in (("npgpt prepare 1", "incomplete"), ("another", "not one of 'npgpt prepare 1'")):
        (out / "manifest.json").write_text(json.dumps({"kind": kind}))
        with pytest.raises(DataError, match=f"manifest.json is {said}: prepare the folder anew"):
            open_prepared(out)


def test_nothing_left_is_one_sentence_that_says_why(tmp_path):
    write_texts(tmp_path / "texts", ["", "ab\0", "abc", "abc"])
    with pytest.raises(DataError, match="no document is left.*; nul left out 1, min_characters left out 3"):
        preparing.run(tmp_path / "texts", tmp_path / "out", min_characters=5)
    assert not list((tmp_path / "out").glob("*.bin"))
    write_texts(tmp_path / "letter", ["a"])                          # of which a half is nothing
    with pytest.raises(DataError, match="no document is left to train on"):
        preparing.run(tmp_path / "letter", tmp_path / "none", val_fraction=0.5)


def test_what_was_mended_is_noted(tmp_path):
    write_texts(tmp_path / "texts", [*different(12), "a line\r\nand one more", "e\u0301 is two characters"])
    (tmp_path / "texts/latin.txt").write_bytes("schön".encode("latin-1"))
    manifest = preparing.run(tmp_path / "texts", tmp_path / "out", vocab_size=257, invalid_utf8="replace",
                             newlines=True, normalize="NFC")
    assert manifest["notes"] == {"crlf": 1, "invalid_utf8_replaced": 1, "newlines_changed": 1,
                                 "normalized": 1}


@pytest.mark.parametrize("content", ["", "\n \n"])
def test_lines_without_any_document_are_one_sentence(tmp_path, content):
    (texts := tmp_path / "texts").mkdir()
    (texts / "a.jsonl").write_text(content)
    with pytest.raises(DataError, match="no document is left to train on; there is none in the files"):
        preparing.run(texts, tmp_path / "out")
    (texts / "b.jsonl").write_text('{"text": "to be or not to be"}\n')
    preparing.run(texts, tmp_path / "both", vocab_size=257)
    assert [documents(tmp_path / "both", side) for side in ("train", "val")] == [["to be or not "], ["to be"]]


def test_paths_are_read_in_the_order_given(tmp_path):
    texts = different(3)
    write_texts(tmp_path, texts)
    paths = [tmp_path / f"{n:04}.txt" for n in (2, 0, 1)]
    prepare(paths, tmp_path / "out", PrepareConfig(vocab_size=257, val_fraction=0.0), 1)
    assert documents(tmp_path / "out", "train") == [texts[2], texts[0], texts[1]]


def test_a_file_whose_name_is_no_utf_8_is_read_like_any_other(tmp_path):
    preparing.write_corpus(tmp_path / "texts")
    (tmp_path / "texts" / os.fsdecode(b"\xe9t\xe9.txt")).write_text("was it in summer or in winter\n" * 9)
    preparing.run(tmp_path / "texts", tmp_path / "out")
    assert sum(map(len, open_prepared(tmp_path / "out").train))
    tokenizer = tmp_path / "out" / "tokenizer"
    (tokenizer / os.fsdecode(b"\xe9")).touch()
    preparing.run(tmp_path / "texts", tmp_path / "again", tokenizer=str(tokenizer))
