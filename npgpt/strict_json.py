"""JSON objects in which no entry comes twice: Python takes the last of them, other programs the first."""

from typing import Any

from npgpt.errors import shown


def without_duplicates(entries: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object_pairs_hook of json.loads. Raises ValueError, naming the first entry that comes again."""
    found: dict[str, Any] = {}
    for name, value in entries:
        if name in found:
            raise ValueError(f"the entry {shown(name)} comes twice")
        found[name] = value
    return found
