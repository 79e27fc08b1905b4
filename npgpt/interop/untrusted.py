"""What a model's folder from a stranger holds: a file is found inside the folder, JSON is read up to a limit,
and what cannot be used is refused in one sentence.
"""

import json
from pathlib import Path
from typing import Any

from npgpt.errors import CheckpointError, shown
from npgpt.strict_json import without_duplicates

MAX_JSON = 1 << 20          # bytes of a header or index: 9,000 tensors; parsed, it takes up to 30 times that


def member(folder: Path, name: str, index: Path | None = None) -> Path:
    """The file of that name inside a folder. Raises CheckpointError if it lies elsewhere or is no file.

    A link may not lead out of the folder; in Hugging Face's own cache, where snapshots/HASH/NAME leads to
    blobs/SUM two folders up, it may lead there.  index: what named the file.
    """
    path, named = folder / name, index or folder
    if name in ("", ".", "..") or "/" in name or "\\" in name or "\0" in name or Path(name).is_absolute():
        raise refused(named, f"it names the file {shown(name)}, which is not inside the folder")
    try:
        target, homes = path.resolve(), [folder.resolve()]
        if homes[0].parent.name == "snapshots":
            homes.append(homes[0].parent.parent / "blobs")
        if target.parent not in homes:
            raise refused(path, "it is a link that leads out of its folder; put the file itself there")
        if not path.is_file():                      # opening a pipe would wait for ever
            pickled = " (of PyTorch's pickles npgpt reads none)" * (folder / "pytorch_model.bin").exists()
            raise CheckpointError(f"{folder} is no complete model: there is no file {name} in it{pickled}")
    except (OSError, RuntimeError) as error:        # RuntimeError: links in a circle
        raise refused(path, getattr(error, "strerror", None) or "it cannot be found") from error
    return path


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file of at most MAX_JSON bytes; raises CheckpointError."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_JSON + 1)
    except OSError as error:
        raise refused(path, error.strerror or str(error)) from error
    if len(data) > MAX_JSON:
        raise refused(path, f"it is longer than the {MAX_JSON:,} bytes that npgpt reads")
    return parse_json(path, data, "it")


def parse_json(path: Path, data: bytes, what: str) -> dict[str, Any]:
    """A JSON object that is in the file; what: "it", or the part of it that this is."""
    try:
        content = json.loads(data.decode(), object_pairs_hook=without_duplicates)
    except UnicodeDecodeError as error:
        raise refused(path, f"{what} is not UTF-8 at byte {error.start}") from None
    except (ValueError, RecursionError) as error:               # RecursionError: thousands of open brackets
        raise refused(path, f"{what} is not valid JSON ({error})") from None
    if not isinstance(content, dict):
        raise refused(path, f"{what} is not a JSON object")
    return content


def refused(path: Path, reason: str) -> CheckpointError:
    return CheckpointError(f"{path} cannot be used: {reason}")
