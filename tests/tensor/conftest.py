"""The strict stand-in for CuPy, for the tests of devices. (tests/ is on the path, for its conftest.py.)"""

import pytest
import strict_cupy


@pytest.fixture
def cupy(monkeypatch):
    return strict_cupy.install(monkeypatch)


@pytest.fixture
def gpus(cupy):
    """The pretended machine."""
    return strict_cupy.machine
