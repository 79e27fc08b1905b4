"""The entries of a config.json, each asked for by name and checked, or refused in one sentence."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from npgpt.errors import ConfigError, shown

REQUIRED: Any = object()


class Entries:
    """entries: as JSON has them; an entry that is null counts as absent.  names: what the file calls those
    that it calls otherwise.
    """

    def __init__(self, path: Path, entries: Mapping[str, Any], place: str = "",
                 names: Mapping[str, str] = {}):
        self.path, self.entries, self.place, self.names = path, entries, place, names

    def get(self, name: str, default: Any = None) -> Any:
        value = self.entries.get(name)
        return default if value is None else value

    def whole(self, name: str, default: Any = REQUIRED) -> Any:
        """A whole number of at least 1, or the default."""
        value = self._required(name, default)
        if value is not default and (type(value) is not int or not 1 <= value < 2**31):
            raise self.refused(f"its {self._named(name)} is {shown(value)}, which is not a number from 1 on")
        return value

    def number(self, name: str, default: Any = REQUIRED) -> float:
        value = self._required(name, default)
        if type(value) not in (int, float) or not 0 <= value < 1e38:
            raise self.refused(f"its {self._named(name)} is {shown(value)}, which is no number of at least 0")
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        value = self.get(name, default)
        if not isinstance(value, bool):
            raise self.refused(f"its {self._named(name)} is {shown(value)}, not true or false")
        return value

    def one_of(self, name: str, known: Mapping[str, str], default: str) -> str:
        """What the entry stands for, by a table of those that npgpt knows."""
        value = self.get(name, default)
        if not isinstance(value, str) or value not in known:
            raise self.refused(f"its {self._named(name)} is {shown(value)}, and npgpt knows "
                               f"{', '.join(known)}")
        return known[value]

    def only(self, name: str, value: Any) -> None:
        """Refuses another value than the one that npgpt computes with."""
        found = self.get(name, value)
        if found != value or type(found) is not type(value):
            raise self.refused(f"it asks for {self._named(name)} = {shown(found)}, which npgpt does not have")

    def inside(self, name: str) -> "Entries":
        """The entries of an object, none if it is absent."""
        value = self.get(name, {})
        if not isinstance(value, dict):
            raise self.refused(f"its {self._named(name)} is {shown(value)}, which is no JSON object")
        return Entries(self.path, value, f"{self.place}{name}.")

    def refused(self, reason: str) -> ConfigError:
        return ConfigError(f"{self.path} cannot be used: {reason}")

    def _named(self, name: str) -> str:
        return self.names.get(name, f"{self.place}{name}")

    def _required(self, name: str, default: Any) -> Any:
        value = self.get(name, default)
        if value is REQUIRED:
            raise self.refused(f"it has no {self._named(name)}")
        return value
