"""The strict stand-in for CuPy enforces its rules."""

import warnings

import numpy as np
import pytest
import strict_cupy
from strict_cupy import SynchronisationError, forbid_synchronisation

from npgpt.tensor import array_module, to_numpy


@pytest.fixture
def cupy(monkeypatch):
    return strict_cupy.install(monkeypatch)


@pytest.fixture
def x(cupy):
    return cupy.asarray(np.arange(12, dtype=np.float32).reshape(3, 4))


HOST = np.ones((3, 4), np.float32)

MIXTURES = {
    "np.asarray(x)": lambda cp, x: np.asarray(x),
    "np.array([x])": lambda cp, x: np.array([x[0, 0], x[0, 1]]),
    "np.empty()[...] = x": lambda cp, x: np.empty((3, 4)).__setitem__(Ellipsis, x),
    "np.exp(x)": lambda cp, x: np.exp(x),
    "np.sum(x)": lambda cp, x: np.sum(x),
    "np.add(host, x)": lambda cp, x: np.add(HOST, x),
    "host + x": lambda cp, x: HOST + x,
    "x + host": lambda cp, x: x + HOST,
    "x += host": lambda cp, x: x.__iadd__(HOST),
    "x < host": lambda cp, x: x < HOST,
    "x == None": lambda cp, x: x == None,                                     # noqa: E711
    "x + [1]": lambda cp, x: x * [1.0, 2.0, 3.0, 4.0],
    "x + 0-d host": lambda cp, x: x + np.array(1.0),
    "x * np.float32": lambda cp, x: x * np.float32(2),
    "x * np.float64": lambda cp, x: x * np.float64(2),
    "np.float32 * x": lambda cp, x: np.float32(2) * x,
    "x[...] = host": lambda cp, x: x.__setitem__(Ellipsis, HOST),
    "x[...] = np.float32": lambda cp, x: x.__setitem__(Ellipsis, np.float32(1)),
    "x @ host": lambda cp, x: x @ HOST.T,
    "host @ x": lambda cp, x: HOST.T @ x,
    "exp(host)": lambda cp, x: cp.exp(HOST),
    "maximum(x, host)": lambda cp, x: cp.maximum(x, HOST),
    "where(host, x, x)": lambda cp, x: cp.where(HOST > 0, x, x),
    "where(True, x, x)": lambda cp, x: cp.where(True, x, x),
    "where(x, host, x)": lambda cp, x: cp.where(x > 0, HOST, x),
    "full(np.float32)": lambda cp, x: cp.full((), np.float32(1)),
    "add.at(x, …, host)": lambda cp, x: cp.add.at(x, cp.arange(3), HOST),
    "arange(x)": lambda cp, x: cp.arange(x[0, 1]),
    "range(x)": lambda cp, x: range(x[0, 1]),
    "a list indexed by x": lambda cp, x: [1, 2][cp.asarray(1)],
    "hash(x)": lambda cp, x: hash(x),
}


@pytest.mark.parametrize("mixture", MIXTURES)
def test_host_and_device_do_not_mix(cupy, x, mixture):
    with pytest.raises(TypeError):
        MIXTURES[mixture](cupy, x)


@pytest.mark.parametrize("index", [np.array([0]), [0, 1], (0, np.array([1])), True, 1.0, "a"], ids=repr)
def test_host_arrays_do_not_index_a_device_array(x, index):
    with pytest.raises(IndexError):
        x[index]
    with pytest.raises(IndexError):
        x[index] = 0


def test_python_numbers_keep_the_type_and_the_array_is_no_numpy_array(cupy, x):
    assert not isinstance(x, np.ndarray) and isinstance(x, cupy.ndarray) and array_module(x) is cupy
    assert ((2.5 * x - 1) / 3 + True).dtype == np.float32 and (1 - x).dtype == np.float32


def test_reductions_and_full_indices_give_arrays(cupy, x):
    for number in (x.sum(), x.max(), x.mean(), (x > 0).all(), x[1, 2], x[-1, -1], x[0] @ x[1]):
        assert isinstance(number, cupy.ndarray) and number.shape == ()
    x[0][1] = 7                                                               # views, down to a single number
    number = x[1, 2]
    number += 100
    assert x.get()[0, 1] == 7 and x.get()[1, 2] == 106


WAITS = {
    "float": lambda cp, x: float(x[0, 0]),
    "int": lambda cp, x: int(x[0, 0]),
    "bool": lambda cp, x: bool(x[0, 1]),
    "if": lambda cp, x: 1 if (x > -1).all() else 2,
    "min": lambda cp, x: min(x[0, 0], 3.0),
    "in": lambda cp, x: x[0, 1] in [x[0, 0], x[0, 1]],
    "item": lambda cp, x: x[0, 0].item(),
    "f-string": lambda cp, x: f"{x[0, 0]:.3f}",
    "str": lambda cp, x: str(x),
    "iteration": lambda cp, x: list(x[0]),
    "get": lambda cp, x: x.get(),
    "asnumpy": lambda cp, x: cp.asnumpy(x),
    "to_numpy": lambda cp, x: to_numpy(x),
    "mask read": lambda cp, x: x[x > 3],
    "mask written": lambda cp, x: x.__setitem__(x > 3, 0),
    "Device.synchronize": lambda cp, x: cp.cuda.Device(0).synchronize(),
}


@pytest.mark.parametrize("wait", WAITS)
def test_waiting_for_the_device_is_forbidden_within_a_step_only(cupy, x, wait):
    WAITS[wait](cupy, x)
    with forbid_synchronisation(), pytest.raises(SynchronisationError):
        WAITS[wait](cupy, x)
    WAITS[wait](cupy, x)


def test_unpacking_views_does_not_wait(x):
    with forbid_synchronisation():
        first, _, last = x
    first[0] = 50
    assert x.get()[0, 0] == 50 and last.shape == (4,)


def test_uploads_and_downloads_are_counted(cupy, x):
    cupy.asarray(x)
    cupy.asarray(1.0, "float32")
    x.get()
    assert strict_cupy.machine.uploads == [((3, 4), "float32"), ((), "float32")]
    assert strict_cupy.machine.downloads == 1


def test_an_index_array_out_of_range_wraps_silently_a_python_integer_does_not(cupy, x):
    np.testing.assert_array_equal(x[cupy.asarray([4, -5])].get(), x.get()[[1, 1]])
    np.testing.assert_array_equal(x[:, cupy.asarray([5, 2])].get(), x.get()[:, [1, 2]])
    np.testing.assert_array_equal(x[None, cupy.asarray(3)].get(), x.get()[None, 0])
    cube = x.reshape(2, 3, 2)
    np.testing.assert_array_equal(cube[..., cupy.asarray([2])].get(), cube.get()[..., [0]])
    x[cupy.asarray([3]), cupy.asarray([9])] = 70
    assert x.get()[0, 1] == 70
    with pytest.raises(IndexError):
        x[3]


def test_a_repeated_index_may_not_be_assigned_to_but_added_at(cupy, x):
    rows = cupy.asarray([0, 2, 0])
    wrapped = cupy.asarray([0, 3])
    for index in (rows, wrapped, (rows, 1), (slice(1), rows), (rows[:, None], cupy.asarray([1, 2]))):
        with pytest.raises(ValueError, match="repeated"):
            x[index] = 1
        with pytest.raises(ValueError, match="repeated"):
            x[index] += 1
    expected = x.get()
    np.add.at(expected, [0, 2, 0], HOST)
    cupy.add.at(x, rows, cupy.asarray(HOST))
    np.testing.assert_array_equal(x.get(), expected)
    x[rows[:2]] -= 1
    with pytest.raises(TypeError):
        cupy.add.at(cupy.zeros(3, "int64"), rows, 1)


def test_only_sound_matrix_products(cupy, x):
    batch = cupy.asarray(np.ones((2, 3, 4), np.float32))
    assert (x @ x.T).shape == (3, 3) and (batch @ batch.swapaxes(1, 2)).shape == (2, 3, 3)
    for a, b in ((batch, x.T), (x, batch.swapaxes(1, 2)), (x, x[0]), (x, cupy.asarray(2.0))):
        with pytest.raises(ValueError, match="axes"):
            a @ b
    half = batch.astype("float16")
    assert (half[0] @ half[0].T).dtype == np.float16
    for a, b in ((half, half.swapaxes(1, 2)), (x.astype("float64"), x.T)):
        with pytest.raises(TypeError):
            a @ b


def test_the_output_of_a_matrix_product_must_be_contiguous_and_fit(cupy, x):
    out = cupy.empty((3, 3), "float32")
    assert cupy.matmul(x, x.T, out=out) is out
    np.testing.assert_array_equal(out.get(), x.get() @ x.get().T)
    for wrong in (out.T, cupy.empty((3, 6), "float32")[:, ::2], cupy.empty((2, 3, 3), "float32"),
                  cupy.empty((3, 3), "float64"), np.empty((3, 3), "float32")):
        with pytest.raises(ValueError):
            cupy.matmul(x, x.T, out=wrong)


def test_results_are_not_in_c_order(cupy, x):
    for result in (x + 1, cupy.exp(x), x[cupy.asarray([0, 1])], cupy.where(x > 0, x, 0), x.astype("float64")):
        assert not result.flags.c_contiguous
    for made in (x, x.copy(), (x + 1).copy(), cupy.zeros((3, 4)), x.T @ x):
        assert made.flags.c_contiguous


def test_unwritten_memory_shows(cupy):
    assert np.isnan(cupy.empty((2, 3), "float32").get()).all()
    assert (cupy.empty(3, "int64").get() == np.iinfo("int64").max).all()


def test_nan_and_infinity_do_not_warn(cupy):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        zero = cupy.zeros(2, "float32")
        assert np.isnan((zero / zero).get()).all() and np.isinf(cupy.log(zero).get()).all()
        cupy.exp(zero + 1e30).astype("int64")
        zero /= 0.0


def test_what_is_not_listed_is_not_there(cupy):
    with pytest.raises(AttributeError, match=r"cupy\.vecdot"):
        cupy.vecdot(1, 2)
    with pytest.raises(AttributeError, match="tobytes"):
        cupy.zeros(3).tobytes()


def test_arrays_of_another_device_are_refused_until_it_is_the_current_one(cupy, x):
    other = cupy.cuda.Device(1)
    for operation in (lambda: x + 1, x.sum, lambda: x @ x.T, lambda: x.__setitem__(0, 1), x.copy):
        operation()
        with other, pytest.raises(ValueError, match="different from the current device"):
            operation()
    with other:
        assert cupy.asarray(x).device.id == 1 and (cupy.asarray(x) + 1).device.id == 1
    assert x.device.id == 0 and cupy.asarray(x) is x


def test_memory_can_run_out(cupy, x):
    strict_cupy.machine.free_bytes = 47
    for make in (lambda: x + 1, lambda: cupy.empty(12, "float32"), lambda: cupy.asarray(HOST)):
        with pytest.raises(cupy.cuda.memory.OutOfMemoryError):
            make()


def test_cupy_has_everything_that_the_stand_in_offers():
    cupy = pytest.importorskip("cupy", exc_type=ImportError)                  # works without a GPU
    for name in strict_cupy.FUNCTIONS:
        assert hasattr(cupy, name), name
    for name in vars(strict_cupy.ndarray).keys() - vars(object).keys():
        private = name.startswith("_") and not name.endswith("__")
        assert private or name in ("__dict__", "__weakref__") or hasattr(cupy.ndarray, name), name
    assert cupy.add.at and cupy.cuda.Device(0).use and cupy.cuda.runtime.getDeviceCount
    assert issubclass(cupy.cuda.memory.OutOfMemoryError, MemoryError)


def test_what_the_stand_in_does_not_have_is_told_with_what_to_do(cupy, x):
    for asked in (lambda: cupy.hypot(x, x), lambda: x.trace()):
        with pytest.raises(AttributeError, match=r"^the stand-in.* no (cupy\.hypot|trace): add it if"):
            asked()
