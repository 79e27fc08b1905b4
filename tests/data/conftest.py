"""A corpus to prepare."""

import preparing
import pytest

from npgpt.data import parts, reading


@pytest.fixture
def texts(tmp_path, monkeypatch):
    """The corpus in tmp_path/texts, to be cut into small parts: (documents that should stay, counts of the
    rest)."""
    monkeypatch.setattr(reading, "_PART", preparing.PART)
    monkeypatch.setattr(parts, "_RUN", preparing.RUN)
    return preparing.write_corpus(tmp_path / "texts")
