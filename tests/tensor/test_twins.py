"""Twins: found by name beside the formulas, for the kind of the first array; or the formula."""

import importlib
import sys

import numpy as np
import pytest
import strict_cupy

from npgpt.tensor import twins

FORMULA = """
from npgpt.tensor import accelerated

@accelerated
def thing_forward(x, scale=1, *, shift=0):
    "What it does."
    return "formula", x, scale, shift

@accelerated
def thing_backward(dy, saved):
    return "formula"
"""
TWIN = """
def thing_forward(x, scale=1, *, shift=0):
    return NotImplemented if str(scale) == "3" else ("{kind}", x, scale, shift)
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Makes a package of files with this text; gives it as `house`."""
    def make(files):
        for name, text in files.items():
            path = tmp_path / "house" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            for folder in (path.parent, *path.parent.parents):
                if folder == tmp_path:
                    break
                (folder / "__init__.py").touch()
            path.write_text(text)
        importlib.invalidate_caches()
        return importlib.import_module("house.ops.thing")
    monkeypatch.syspath_prepend(tmp_path)
    twins.find_twin.cache_clear()
    yield make
    twins.find_twin.cache_clear()
    for name in [name for name in sys.modules if name.partition(".")[0] == "house"]:
        del sys.modules[name]


X = np.ones(2)


def test_the_twin_runs_with_the_same_arguments(package):
    thing = package({"ops/thing.py": FORMULA, "kernels/cpu/thing.py": TWIN.format(kind="cpu")})
    assert thing.thing_forward(X, 2, shift=5) == ("cpu", X, 2, 5)
    assert thing.thing_forward(X)[2:] == (1, 0)


def test_the_formula_runs_where_the_twin_does_not_cover_the_call(package):
    thing = package({"ops/thing.py": FORMULA, "kernels/cpu/thing.py": TWIN.format(kind="cpu")})
    assert thing.thing_forward(X, 3, shift=5) == ("formula", X, 3, 5)


def test_the_formula_runs_where_the_file_has_no_such_function(package):
    thing = package({"ops/thing.py": FORMULA, "kernels/cpu/thing.py": TWIN.format(kind="cpu")})
    assert thing.thing_backward(X, ()) == "formula"


@pytest.mark.parametrize("beside", [
    "kernels/cpu/else.py", "kernels/cuda/thing.py", "kernels/thing.py", "else.py",
])
def test_the_formula_runs_where_there_is_no_such_file_or_folder(package, beside):
    thing = package({"ops/thing.py": FORMULA, beside: TWIN.format(kind="wrong")})
    assert thing.thing_forward(X)[0] == "formula"


def test_the_kind_follows_the_first_array(package, monkeypatch):
    find_twin = twins.find_twin
    cupy = strict_cupy.install(monkeypatch)
    monkeypatch.setattr(twins, "find_twin", find_twin)
    thing = package({"ops/thing.py": FORMULA, "kernels/cpu/thing.py": TWIN.format(kind="cpu"),
                     "kernels/cuda/thing.py": TWIN.format(kind="cuda")})
    there = cupy.zeros(2)
    assert thing.thing_forward(there, 2) == ("cuda", there, 2, 0)
    assert thing.thing_forward(X)[0] == thing.thing_forward(X, there)[0] == "cpu"
    assert thing.thing_forward(there, 3)[0] == "formula"
    assert thing.thing_forward(x=there, scale=2)[0] == "cuda" and thing.thing_forward(x=X)[0] == "cpu"


def test_reference_is_the_formula_and_the_name_stays(package):
    thing = package({"ops/thing.py": FORMULA, "kernels/cpu/thing.py": TWIN.format(kind="cpu")})
    assert thing.thing_forward.reference(X, 2) == ("formula", X, 2, 0)
    assert (thing.thing_forward.__name__, thing.thing_forward.__doc__) == ("thing_forward", "What it does.")


def test_an_error_within_a_twin_is_not_hidden(package):
    thing = package({"ops/thing.py": FORMULA, "kernels/cpu/thing.py": "import no_such_module_at_all"})
    with pytest.raises(ModuleNotFoundError, match="no_such_module_at_all"):
        thing.thing_forward(X)


def test_a_function_outside_ops_has_no_twin():
    @twins.accelerated
    def doubled(x):
        return 2 * x
    assert twins.find_twin(doubled.reference, "cpu") is None and (doubled(X) == 2).all()


def test_npgpts_own_twins_are_found():
    from npgpt import ops
    from npgpt.kernels.cpu import embedding, layernorm
    for op, twin in ((ops.layernorm_forward, layernorm.layernorm_forward),
                     (ops.embedding_backward, embedding.embedding_backward), (ops.embedding_forward, None)):
        assert twins.find_twin(op.reference, "cpu") is twin
