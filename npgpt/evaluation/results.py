"""A result as a file: the numbers, how they were got, and hashes that say of which model on which data."""

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

import npgpt
from npgpt.files import output_file
from npgpt.tensor import to_numpy


def model_sha256(parameters: Mapping[str, Any]) -> str:
    """Of names, types, shapes and values of the parameters' arrays: the same for a run and for its export."""
    digest = hashlib.sha256()
    for name in sorted(parameters):
        array = np.ascontiguousarray(to_numpy(parameters[name]))
        digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def write_result(path: Path, result: Mapping[str, Any]) -> None:
    """Writes it as JSON with npgpt's version, whole or not at all. A number that is not finite becomes null.
    Raises ConfigError where the file cannot be written."""
    with output_file(path, "w") as file:
        json.dump(_finite({"npgpt": npgpt.__version__, **result}), file, indent=1, ensure_ascii=False,
                  allow_nan=False)
        file.write("\n")


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes JSONL, whole or not at all. Raises ConfigError where the file cannot be written."""
    with output_file(path, "w") as file:
        file.writelines(json.dumps(_finite(row), ensure_ascii=False) + "\n" for row in rows)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _finite(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    if isinstance(value, str | Path):                      # a file's name may be no UTF-8
        return str(value).encode(errors="backslashreplace").decode()
    return None if isinstance(value, float) and not math.isfinite(value) else value
