"""What a result file says, and of which model."""

import json
import math
import os
from pathlib import Path

import numpy as np
import pytest

import npgpt
from npgpt.errors import ConfigError
from npgpt.evaluation.results import model_sha256, write_lines, write_result


def test_the_hash_tells_models_apart():
    arrays  = {"a": np.arange(6.0), "b": np.ones((2, 3), np.float32)}
    changed = [arrays | {"a": arrays["a"] + 1e-12}, arrays | {"a": arrays["a"].reshape(2, 3)},
               arrays | {"b": arrays["b"].astype(np.float64)}, {"c": arrays["a"], "b": arrays["b"]},
               {"a": arrays["a"]}]
    hashes  = {model_sha256(each) for each in (arrays, *changed)}
    assert len(hashes) == 6
    assert model_sha256(dict(reversed(arrays.items()))) == model_sha256(arrays)
    strided = arrays | {"b": np.ones((2, 6), np.float32)[:, ::2]}
    assert model_sha256(strided) == model_sha256(arrays)


def test_a_result_is_json_whatever_the_numbers(tmp_path):
    path = tmp_path / "result.json"
    write_result(path, {"numbers": {"loss": 2000.0, "perplexity": math.inf},
                        "intervals": [(1.0, math.nan), None], "model": Path("schön"),
                        "data": os.fsdecode(b"\xe9")})
    assert json.loads(path.read_text(encoding="utf-8"), parse_constant=lambda name: pytest.fail(name)) == {
        "npgpt": npgpt.__version__, "numbers": {"loss": 2000.0, "perplexity": None},
        "intervals": [[1.0, None], None], "model": "schön",
        "data": "\\udce9"}


def test_a_failure_leaves_what_was_there(tmp_path):
    path = tmp_path / "lines.jsonl"
    write_lines(path, [{"bits": 1.5}, {"bits": math.inf}])
    assert path.read_text() == '{"bits": 1.5}\n{"bits": null}\n'

    def rows():
        yield {"bits": 2}
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_lines(path, rows())
    assert path.read_text().startswith('{"bits": 1.5}') and [*tmp_path.iterdir()] == [path]


def test_a_full_disk_is_told_with_the_name_of_the_file(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    for write, content in ((write_result, {}), (write_lines, [{"bits": 1}])):
        with pytest.raises(ConfigError, match=f"cannot write {tmp_path / 'x'}: No space left on device"):
            write(tmp_path / "x", content)
    assert not [*tmp_path.iterdir()]
