"""What a new run is made of: whose text the tokenizer has seen, and where one document ends."""

import numpy as np
import pytest
import tiny

from npgpt.data.corpora import split_documents
from npgpt.errors import TrainingError
from npgpt.tokenizers import BPETokenizer
from npgpt.training.checkpoint import lock_run
from npgpt.training.config import TrainConfig
from npgpt.training.runs import create_run, open_run


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
    config = TrainConfig(**tiny.SETTINGS | {"data": str(folder), "tokenizer": "bpe", "vocab_size": 320})
    create_run(tmp_path / "run", config, note=lambda text: None)
    run = open_run(tmp_path / "run")
    train, val = split_documents(documents, config.val_fraction, config.seed)
    assert run.tokenizer.merges == BPETokenizer.train(train, 320).merges
    assert run.tokenizer.merges != BPETokenizer.train(documents, 320).merges
    end = run.tokenizer.eos_token_id
    for tokens, texts in ((run.train, train), (run.val, val)):
        assert tokens[-1] == end
        parts = np.split(tokens, np.flatnonzero(tokens == end) + 1)[:-1]
        assert [run.tokenizer.decode(part[:-1].tolist()) for part in parts] == texts


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
