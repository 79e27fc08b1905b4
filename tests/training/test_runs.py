"""What a new run is made of: which folder, whose text the tokenizer has seen, where one document ends."""

import gzip
import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import preparing
import pytest
import tiny

from npgpt import GPT
from npgpt.data.corpora import split_documents
from npgpt.data.examples import split_records
from npgpt.data.prepared import open_prepared
from npgpt.data.records import read_records, texts_of
from npgpt.data.shards import write_shard
from npgpt.errors import ConfigError, DataError, TrainingError
from npgpt.tokenizers import BPETokenizer, load_tokenizer
from npgpt.training import runs
from npgpt.training.checkpoint import lock_run
from npgpt.training.config import TrainConfig
from npgpt.training.loop import sample_text
from npgpt.training.runs import create_run, new_model, new_run_path, open_run


def folder_of_documents(tmp_path):
    """Twelve documents, each with a word of its own that comes often."""
    folder = tmp_path / "texts"
    folder.mkdir()
    documents = [f"{chr(97 + n) * 3} and the {chr(98 + n) * 4} " * 20 for n in range(12)]
    for n, text in enumerate(documents):
        (folder / f"{n:02}.txt").write_text(text)
    return folder, documents


def test_bpe_learns_from_the_training_part_alone_and_documents_end_with_the_end_of_text(tmp_path):
    folder, documents = folder_of_documents(tmp_path)
    config = TrainConfig(**tiny.SETTINGS | {"data": str(folder), "tokenizer": "bpe", "vocab_size": 320,
                                            "seed": 7})
    create_run(tmp_path / "run", config, note=lambda text: None)
    run = open_run(str(tmp_path / "run"))
    train, val = split_documents(documents, config.val_fraction, config.seed)
    assert run.tokenizer.merges == BPETokenizer.train(train, 320).merges
    assert run.tokenizer.merges != BPETokenizer.train(documents, 320).merges
    end = run.tokenizer.eos_token_id
    for tokens, texts in ((run.train, train), (run.val, val)):
        assert tokens[-1] == end
        parts = np.split(tokens, np.flatnonzero(tokens == end) + 1)[:-1]
        assert [run.tokenizer.decode(part[:-1].tolist()) for part in parts] == texts


def test_bpe_learns_from_the_training_examples_alone(tmp_path):
    rows = [{"prompt": f"{chr(97 + n) * 3} and ", "completion": f"the {chr(98 + n) * 4} " * 20}
            for n in range(12)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = TrainConfig(**tiny.SETTINGS | {"data": str(tmp_path / "rows.jsonl"), "tokenizer": "bpe",
                                            "vocab_size": 320, "block_size": 200, "seed": 7,
                                            "val_fraction": 0.25})
    run     = create_run(tmp_path / "run", config, note=lambda text: None)
    records = read_records(tmp_path / "rows.jsonl")
    train, _ = split_records(records, config.val_fraction, config.seed)
    assert (len(run.train), len(run.val)) == (9, 3)
    assert run.tokenizer.merges == BPETokenizer.train(list(texts_of(train)), 320).merges
    assert run.tokenizer.merges != BPETokenizer.train(list(texts_of(records)), 320).merges


def test_characters_of_the_validation_part_are_known(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("to be or not to be " * 30 + "§" * 20)
    config = TrainConfig(**tiny.SETTINGS | {"data": str(path)})
    run = create_run(tmp_path / "run", config, note=lambda text: None)
    assert "§" in run.tokenizer.decode(run.val.tolist())
    assert "§" not in run.tokenizer.decode(run.train.tolist())


def test_two_processes_do_not_make_one_run(tmp_path):
    run = tiny.new_run(tmp_path)
    before = sorted(run.path.rglob("*"))
    with pytest.raises(TrainingError, match="has just made a run"):
        tiny.new_run(tmp_path)
    with lock_run(tmp_path / "other"):
        (tmp_path / "other/tokenizer").mkdir()                                # the first is still at it
        with pytest.raises(TrainingError, match="training in"):
            tiny.new_run(tmp_path, "other")
        assert (tmp_path / "other/tokenizer").exists()
    assert sorted(run.path.rglob("*")) == before


@pytest.mark.parametrize(("name", "make"), [("a.csv", "read_csv"), ("a.tsv", "read_table"), ("a.txt", None),
                                            ("a.csv.gz", "read_csv")])
def test_a_table_is_learned_as_text_and_told_to_be(tmp_path, name, make):
    table = b"question,answer\nto be,or not to be\n" * 99
    (tmp_path / name).write_bytes(gzip.compress(table) if name.endswith(".gz") else table)
    config = TrainConfig(**tiny.SETTINGS | {"data": str(tmp_path / name)})
    run = create_run(tmp_path / "run", config, (said := []).append)
    assert run.tokenizer.decode(run.train[:15]) == "question,answer"
    told = [line for line in said if "a table is learned as the text that it is" in line]
    assert len(told) == bool(make)
    assert all(f"pandas.{make}({str(tmp_path / name)!r}).to_json({str(tmp_path / 'a.jsonl')!r}" in line
               for line in told)


def test_a_prepared_folder_brings_its_tokenizer_its_split_and_all_its_shards(tmp_path, monkeypatch):
    preparing.write_corpus(tmp_path / "texts")
    for format in ("npgpt", "nanogpt"):
        prepared = tmp_path / format
        preparing.run(tmp_path / "texts", prepared, format=format)
        shards = open_prepared(prepared)
        assert len(shards.train) > 2
        config = TrainConfig(**tiny.SETTINGS | {"data": str(prepared), "val_fraction": 0.5})
        said = []
        create_run(tmp_path / f"run-{format}", config, said.append)
        for path in prepared.glob("*.bin"):
            path.unlink()                                                          # the run needs it no more
        run = open_run(tmp_path / f"run-{format}")
        expected = load_tokenizer(prepared / "tokenizer")
        assert run.tokenizer.merges == expected.merges and run.tokenizer.vocab_size == 280
        assert np.array_equal(run.train, np.concatenate(shards.train))
        assert np.array_equal(run.val, np.concatenate(shards.val))
        assert f"{len(run.train):,} to train on, {len(run.val):,} to validate" in said[0]
    preparing.run(tmp_path / "texts", prepared := tmp_path / "cut")
    opened = open_prepared(prepared)
    monkeypatch.setattr("npgpt.training.run_data.open_prepared", lambda folder: opened)
    last = max(prepared.glob("train-*.bin"))
    os.truncate(last, last.stat().st_size - 1)
    with pytest.raises(DataError, match=f"{last} has become shorter while it was read"):
        create_run(tmp_path / "again", TrainConfig(**tiny.SETTINGS | {"data": str(prepared)}), said.append)
    monkeypatch.undo()
    with pytest.raises(DataError, match=r"train-00000.bin.*No such file"):
        create_run(tmp_path / "again", config, said.append)
    assert not (tmp_path / "again").exists()


def test_a_prepared_folder_validates_by_itself_or_not_at_all(tmp_path):
    preparing.write_corpus(tmp_path / "texts")
    preparing.run(tmp_path / "texts", prepared := tmp_path / "prepared")
    preparing.run(tmp_path / "texts", alone := tmp_path / "alone", val_fraction=0.0)
    for data, val_data, words in ((tmp_path / "texts", prepared, "val_data cannot be a prepared folder"),
                                  (prepared, tmp_path / "texts", "is prepared, and brings its own"),
                                  (prepared, prepared, "val_data cannot be a prepared folder")):
        config = TrainConfig(**tiny.SETTINGS | {"data": str(data), "val_data": str(val_data)})
        with pytest.raises(ConfigError, match=words):
            create_run(tmp_path / "run", config, str)
    with pytest.raises(DataError, match="alone was prepared without validation tokens: prepare it with"):
        create_run(tmp_path / "run", TrainConfig(**tiny.SETTINGS | {"data": str(alone)}), str)
    assert not (tmp_path / "run").exists()


def test_a_folder_of_texts_with_some_other_manifest_is_one_of_texts(tmp_path):
    folder, documents = folder_of_documents(tmp_path)
    (folder / "manifest.json").write_text(json.dumps({"name": "an app"}))
    config = TrainConfig(**tiny.SETTINGS | {"data": str(folder)})
    run = create_run(tmp_path / "run", config, note=lambda text: None)
    assert len(run.train) + len(run.val) == len("".join(documents)) + len(json.dumps({"name": "an app"}))


def test_an_unfinished_preparation_is_not_trained_on(tmp_path):
    preparing.write_corpus(tmp_path / "texts")

    def stop(step, *numbers):
        if step == "encoding":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        preparing.run(tmp_path / "texts", tmp_path / "out", progress=stop)
    with pytest.raises(DataError, match="out is not fully prepared: run the same npgpt prepare again"):
        create_run(tmp_path / "run", TrainConfig(**tiny.SETTINGS | {"data": str(tmp_path / "out")}), print)


def test_a_tokenizer_with_gaps_is_trained_with_and_sampled_from(tmp_path):
    """As cl100k_base's, which lacks some ids: the model may prefer them before it has learned."""
    gaps = BPETokenizer((), {"<|endoftext|>": 3000}, vocabulary={id: bytes([id]) for id in range(256)})
    gaps.save(tmp_path / "gaps")
    run   = tiny.new_run(tmp_path, tokenizer=str(tmp_path / "gaps"))
    model = new_model(run.path, run.config, run.tokenizer.vocab_size)
    assert model.config.vocab_size == 3001
    prompt, text = sample_text(run, model, 40)
    assert prompt == run.tokenizer.decode(run.val[:16].tolist())
    assert not np.array_equal(run.val[:16], run.train[:16])
    assert len(text.encode(errors="replace")) >= 1


def test_a_new_model_has_the_seed_and_the_type_of_its_run(tmp_path):
    config     = TrainConfig(**tiny.SETTINGS | {"seed": 5, "dtype": "float64"})
    model, own = new_model(tmp_path, config, 11), GPT(config.model(11), 5, dtype="float64")
    assert model.flat.data.dtype == np.float64 and np.array_equal(model.flat.data, own.flat.data)


def test_a_run_that_cannot_be_created_leaves_nothing(tmp_path, monkeypatch):
    config = TrainConfig(**tiny.SETTINGS | {"data": str(tiny.write_text(tmp_path, 60))})
    with pytest.raises(Exception, match="tokens"):
        create_run(tmp_path / "run", config, print)
    assert not (tmp_path / "run").exists()
    monkeypatch.setattr(runs, "open_run", lambda path: next(iter(())))               # at the very last
    with pytest.raises(StopIteration):
        tiny.new_run(tmp_path)
    assert not (tmp_path / "run").exists()


def test_a_text_without_any_token_is_no_prepared_folder(tmp_path):
    (tmp_path / "none.jsonl").write_text('{"text": ""}\n')
    with pytest.raises(DataError, match="the validation text has 0 tokens, but one window"):
        tiny.new_run(tmp_path, val_data=str(tmp_path / "none.jsonl"))


def test_an_answer_learned_from_nothing_has_its_end(tmp_path):
    pytest.importorskip("jinja2")
    talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    (talks := tmp_path / "talks.jsonl").write_text(f"{json.dumps({'messages': talk})}\n" * 9)
    config = TrainConfig(**tiny.SETTINGS | {"data": str(talks), "val_data": str(talks), "tokenizer": "bpe",
                                            "vocab_size": 257, "block_size": 32})
    run = create_run(tmp_path / "run", config, note=lambda text: None)
    assert run.tokenizer.decode(run.val.tokens[run.val.counted].tolist()) == " b<|endoftext|>" * 9


@pytest.mark.parametrize("vocab_size", [3, 99])
def test_tokens_of_another_tokenizer_are_refused(tmp_path, vocab_size):
    run = tiny.new_run(tmp_path)
    write_shard(run.path / "data" / "val.bin", [np.arange(9) % 3], vocab_size)
    with pytest.raises(DataError, match=f"val.bin was made with a vocabulary of {vocab_size}, but the tok"):
        open_run(run.path)


def test_a_refused_run_takes_along_the_folder_of_runs_where_there_is_no_other(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = TrainConfig(**tiny.SETTINGS | {"data": str(tiny.write_text(tmp_path, 60))})
    for others in ([], ["other"]):
        for name in others:
            (tmp_path / "runs" / name).mkdir(parents=True)
        with pytest.raises(DataError, match="tokens"):
            create_run(new_run_path(config, "quick"), config, print)
        assert (tmp_path / "runs").exists() == bool(others)
        assert [path.name for path in (tmp_path / "runs").glob("*")] == others
    Path("mine").mkdir()                                    # and none that a user has named
    config = replace(config, out_dir="mine/run")
    with pytest.raises(DataError, match="tokens"):
        create_run(new_run_path(config, "quick"), config, print)
    assert Path("mine").is_dir() and not Path("mine/run").exists()


def test_the_folder_of_runs_is_made_again_where_it_was_taken_away(tmp_path, monkeypatch):
    made = [lambda folder: None, runs.make_folder]          # by another process that was refused, meanwhile
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(runs, "make_folder", lambda folder: made.pop(0)(folder))
    assert str(new_run_path(TrainConfig(), "quick")) == "runs/quick"


def test_a_new_run_takes_a_free_name_and_never_an_occupied_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert str(new_run_path(TrainConfig(), "quick")) == "runs/quick"          # and takes it, so that the next
    assert str(new_run_path(TrainConfig(), "quick")) == "runs/quick-2"
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/runs").touch()
    monkeypatch.chdir(tmp_path / "sub")
    with pytest.raises(TrainingError, match="cannot use the run folder runs/quick: File exists"):
        new_run_path(TrainConfig(), "quick")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    assert str(new_run_path(TrainConfig(out_dir="mine"), "quick")) == "mine"
    for unfinished in ("tokenizer", "data", ".base.7.partial"):   # left by a run killed while it was made
        (tmp_path / "mine" / unfinished).mkdir()
    with pytest.raises(TrainingError, match="not an empty folder"):         # or somebody's own: no lock
        new_run_path(TrainConfig(out_dir="mine"), "quick")
    (tmp_path / "mine/lock").touch()
    assert str(new_run_path(TrainConfig(out_dir="mine"), "quick")) == "mine"
    (tmp_path / "mine/letter").write_text("dear")
    with pytest.raises(TrainingError, match="not an empty folder"):
        new_run_path(TrainConfig(out_dir="mine"), "quick")
    (tmp_path / "mine/config.toml").write_text("")
    with pytest.raises(TrainingError, match="--resume mine"):
        new_run_path(TrainConfig(out_dir="mine"), "quick")
