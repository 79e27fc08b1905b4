"""Which ops a tool is asked for."""

import sys
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


def chosen(calls: dict[str, T], names: Sequence[str]) -> dict[str, T]:
    """Those of the calls whose names contain one of `names`; all where none is given. A name that is in no
    call's ends the process with status 2, and the names are listed.
    """
    for part in names:
        if not any(part in name for name in calls):
            print(f"no op is called {part!r}; they are called {'; '.join(calls)}", file=sys.stderr)
            sys.exit(2)
    return {name: call for name, call in calls.items() if not names or any(part in name for part in names)}
