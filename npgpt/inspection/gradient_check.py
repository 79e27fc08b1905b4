"""The gradient check: does backward give the derivative of forward?

Forward maps x to y; its derivative at x is a linear map J, and backward must apply Jᵀ. For any direction v in
x and any dy in y the two sides of

    ⟨dy, J v⟩ = ⟨Jᵀ dy, v⟩                                    ⟨a, b⟩ = Σᵢ aᵢ bᵢ, (J v)ⱼ = Σᵢ ∂yⱼ/∂xᵢ vᵢ

are one number. The left is measured with forward alone, by a central difference along v, the right is
⟨backward(dy), v⟩:

    ⟨dy, forward(x + h v) − forward(x − h v)⟩ / 2h            with h = 10⁻⁵ ‖x‖, ‖v‖ = 1

The difference errs by about h²/6 times the third derivative along v: where the two sides are apart, one of
h/16 tells whether it was that. And it errs by rounding, for which 64 u Σ |dy y| / h is allowed, u = 2⁻⁵³.

A wrong element of the gradient shows in ⟨·, v⟩ only as far as v reaches into it, so every |vᵢ| is at least
about 0.1/√n, n being how many elements x has; and it shows beside all others, which come to about
‖gradient‖/√n, so of that a millionth is allowed, and not of ‖gradient‖. Each input and each parameter is
checked by itself, so that none hides behind a larger one.

Two things look like a wrong gradient and are none. A kink between x − h v and x + h v, as ReLU's at 0; and
numbers within forward that are much larger than y, or inputs much larger than the differences between them
on which y depends (a LayerNorm of 10⁵ and 10⁵ + 1): they are rounded, or jumped over by h. Inputs of order 1
around 0, none of them at a kink, have neither.
"""

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from npgpt.errors import NpgptError
from npgpt.ranges import is_whole
from npgpt.tensor import array_module, to_numpy
from npgpt.tensor.precision import map_arrays

STEP = 1e-5             # h, relative to ‖x‖
TOLERANCE = 1e-6        # relative to the larger of the measured number and ‖gradient‖/√n
LOCATED = 64            # of a wrong gradient, so many elements at most are measured one by one


class GradientError(NpgptError):
    """Backward does not give the gradient of forward."""


def check_gradients(forward: Callable, backward: Callable, *inputs: Any,
                    parameters: Mapping[str, Any] | None = None, directions: int = 3,
                    seed: int = 0) -> dict[str, float]:
    """Checks backward against central differences of forward, in float64.

    forward(*inputs) → (y, saved)      y: one array of float64, to which several outputs are joined
    backward(dy, saved) → the gradients of the float arrays among the inputs, in order: one array, a tuple,
        or None where there are no such inputs
    parameters: name → npgpt.layers.Parameter (a module's `.parameters`), whose gradients backward adds to
    `.grad`; frozen ones have none, and are passed over. By default those of the module whose method forward
        is; {} checks the inputs alone.
    directions: pairs of v and dy to try, at least 1.

        check_gradients(layer.forward, layer.backward, x, parameters=layer.parameters)
        check_gradients(lambda: model.loss(tokens, targets), lambda dy, saved: model.backward(saved, dy),
                        parameters=model.parameters)

    Give inputs of order 1 around 0, none of them at a kink: see the module.

    Returns, for each input (by its name in forward) and parameter, the worst error on a scale on which
    TOLERANCE is allowed: relative to the gradient, less what is rounding. Raises GradientError, which names
    the first gradient that is wrong, an element where it is, and others that are: backward comes from the
    end, so the fault is where the last of them is, or next to it. Also if an input or y is not float64, if an
    input or dy is modified, a parameter's gradient set instead of added to, what a later forward left
    used, or y not finite.
    """
    for name, given in (("forward", forward), ("backward", backward)):
        if not callable(given):
            raise GradientError(f"{name} must be a function, as layer.{name} is, and not a "
                                f"{type(given).__name__}")
    if not is_whole(directions) or directions < 1:
        raise GradientError(f"directions must be a whole number, at least 1, not {directions!r}")
    if parameters is None:
        parameters = getattr(getattr(forward, "__self__", None), "parameters", {})
    for odd in parameters.values() if isinstance(parameters, Mapping) else [parameters]:
        if not hasattr(odd, "frozen"):
            raise GradientError(f"parameters must be name → Parameter, a module's .parameters, and not a "
                                f"{type(odd).__name__}")
    parameters = {name: p for name, p in parameters.items() if not p.frozen}
    rng = np.random.default_rng(seed)
    inputs = _apart(inputs)
    variables = _variables(forward, inputs, parameters)
    watched = {f"input {n}": value for n, value in enumerate(inputs) if hasattr(value, "dtype")
               and not any(value is array for array in variables.values())} | variables
    before = {name: array.copy() for name, array in watched.items()}
    y = _call(forward, inputs)[0]
    _check_unmodified(watched, before, "forward")
    if not _same(y, _call(forward, inputs)[0]):
        raise GradientError("forward gives another y each time: let what is random depend on a seed or key, "
                            "and nothing on the calls before")
    errors = dict.fromkeys(variables, 0.0)
    for direction in range(directions):
        dy = _like(rng.standard_normal(y.shape), y)
        if direction % 2:
            dy = dy.T.copy().T                                # the same values, not C-contiguous
        given = dy.copy(order="K")
        gradients = _gradients(forward, backward, inputs, parameters, variables, given)
        _check_unmodified(watched, before, "backward")        # all of them before any is measured
        if not _same(given, dy):
            raise GradientError("backward modified dy, which it was only given to read")
        wrong = {}
        for name, x in variables.items():
            v = _direction(x, rng)
            error, allowed = _error(forward, inputs, y, dy, x, v, gradients[name], STEP)
            if not error <= allowed:                          # by backward, or because forward bends?
                error, allowed = _error(forward, inputs, y, dy, x, v, gradients[name], STEP / 16)
            if not error <= allowed < math.inf:               # NaN and Inf are errors too
                wrong[name] = error, allowed
            errors[name] = max(errors[name], TOLERANCE * error / (allowed or 1))   # none allowed: it is 0
        for name, off in wrong.items():
            raise GradientError(_describe(name, forward, inputs, dy, variables[name], gradients[name], *off)
                                + _listed([*wrong][1:]))
        if not direction:
            _check_again(forward, backward, inputs, parameters, gradients, dy)
    return errors


def _apart(inputs: tuple) -> tuple:
    """The inputs, those copied that cannot be moved, or of which another would be moved with them."""
    apart: list[Any] = []
    for value in inputs:
        value = np.asarray(value) if isinstance(value, np.floating) else value
        if getattr(getattr(value, "dtype", None), "kind", "") == "f":
            others = [other for other in apart if hasattr(other, "dtype")]
            if not getattr(value.flags, "writeable", True) or any(
                    array_module(value).may_share_memory(value, other) for other in others):
                value = value.copy()
        apart.append(value)
    return tuple(apart)


def _check_unmodified(watched: Mapping[str, Any], before: Mapping[str, Any], by: str) -> None:
    for name, x in watched.items():
        if not _same(x, before[name]):
            raise GradientError(f"{by} modified {name}, which it was only given to read")


def _same(one, other) -> bool:
    """Whether all elements are equal, NaN to NaN."""
    return bool(((one == other) | ((one != one) & (other != other))).all())


def _call(forward: Callable, inputs: tuple) -> tuple[Any, Any]:
    """y, as an array, and saved."""
    result = forward(*inputs)
    if not (isinstance(result, tuple) and len(result) == 2):
        raise GradientError("forward must return two things: y, and the tuple saved that backward is given")
    y, saved = result
    y = np.asarray(y) if isinstance(y, float) else y
    kind = getattr(y, "dtype", type(y).__name__)
    if str(kind) != "float64":
        raise GradientError(f"forward gives {kind} for y, which must be one array of float64: compute in no "
                            "coarser type, and join several outputs by concatenate")
    return y, saved


def _variables(forward: Callable, inputs: tuple, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """name → array of everything that has a gradient."""
    try:
        names = list(inspect.signature(forward).parameters)
    except (TypeError, ValueError):
        names = []
    variables = {}
    for n, value in enumerate(inputs):
        if hasattr(value, "dtype") and not hasattr(value.dtype, "kind"):
            raise GradientError(f"input {n} is a {type(value).__name__} of {type(value).__module__}: pass "
                                "arrays of NumPy or CuPy")
        if hasattr(value, "dtype") and value.dtype.kind == "f":
            named = n < len(names) and names[n] not in ("args", "kwargs", *parameters)
            variables[names[n] if named else f"input {n}"] = value
    variables |= {name: parameter.data for name, parameter in parameters.items()}
    for name, array in variables.items():
        if array.dtype != np.float64:
            raise GradientError(f"{name} is {array.dtype}, too coarse for differences: pass float64")
    return variables


def _gradients(forward, backward, inputs, parameters, variables, dy) -> dict[str, Any]:
    """name → what backward says, for every variable."""
    for parameter in parameters.values():
        parameter.unset = True
    y, saved = _call(forward, inputs)
    if not bool(array_module(y).isfinite(y).all()):
        raise GradientError("forward gives NaN or Inf for these inputs")
    returned = _returned(backward(dy, saved))
    names = [name for name in variables if name not in parameters]
    if len(returned) != len(names):
        raise GradientError(f"backward returns {len(returned)} gradients for {len(names)} inputs "
                            f"({', '.join(names) or 'none: only arrays of floats have one'})")
    gradients = dict(zip(names, returned, strict=True))
    gradients |= {name: parameter.grad.copy() for name, parameter in parameters.items()}
    for name, gradient in gradients.items():
        if gradient.shape != variables[name].shape:
            raise GradientError(f"the gradient of {name} has shape {gradient.shape}, "
                                f"not {variables[name].shape}")
    return gradients


def _returned(gradients) -> list[Any]:
    """The arrays among what backward returned."""
    gradients = gradients if isinstance(gradients, (tuple, list)) else [gradients]
    return [gradient if hasattr(gradient, "shape") else np.asarray(gradient)
            for gradient in gradients if gradient is not None]


def _check_again(forward, backward, inputs, parameters, gradients, dy) -> None:
    """Another backward returns and adds the same, though forward was called before it with other inputs."""
    saved = _call(forward, inputs)[1]
    _call(forward, map_arrays(lambda x: (1 + STEP) * x if x.dtype.kind == "f" else x, inputs))
    returned = _returned(backward(dy.copy(order="K"), saved))
    for name, gradient in gradients.items():
        again = parameters[name].grad - gradient if name in parameters else returned.pop(0)
        if name in parameters and _norm(again) <= 1e-9 * _norm(gradient) > 0:
            raise GradientError(f"backward sets the gradient of {name} and does not add to it: called twice, "
                                "it does not leave twice as much")
        if not _norm(again - gradient) <= 1e-9 * _norm(gradient):
            raise GradientError(f"the gradient of {name} is another where forward was called again before "
                                "backward: read all that it depends on from saved, and nothing from self")


def _direction(x, rng) -> Any:
    """A random v of norm 1, none of whose elements is small."""
    v = rng.standard_normal(x.shape)
    floor = 0.1 * math.sqrt(float((v * v).sum()) / max(v.size, 1))
    v = np.where(abs(v) < floor, np.where(v < 0, -floor, floor), v)
    return _like(v / max(float(np.sqrt((v * v).sum())), 1e-300), x)


def _error(forward, inputs, y, dy, x, v, gradient, step: float) -> tuple[float, float]:
    """How far ⟨gradient, v⟩ is from the difference along v, and how far it may be."""
    h = step * (_norm(x) or math.sqrt(max(x.size, 1)))
    measured = _difference(forward, inputs, dy, x, v, h)
    claimed  = _number((gradient * v).sum())
    rounding = 64 * 2.0**-53 * _number(abs(dy * y).sum()) / h
    scale    = max(abs(measured), _norm(gradient) / math.sqrt(max(x.size, 1)))
    return abs(claimed - measured), TOLERANCE * scale + rounding


def _difference(forward, inputs, dy, x, v, h: float) -> float:
    """⟨dy, forward(x + h v) − forward(x − h v)⟩ / 2h, with x moved in place and put back."""
    kept = x.copy()
    try:
        x += h * v
        above = _call(forward, inputs)[0].copy()
        x[...] = kept - h * v
        return _number((dy * (above - _call(forward, inputs)[0])).sum()) / (2 * h)
    finally:
        x[...] = kept


def _describe(name, forward, inputs, dy, x, gradient, error, allowed) -> str:
    """What is wrong with a gradient, and where: of a large one the half that is further off is halved, and
    so on, until its elements can be measured one by one.
    """
    text = (f"the gradient of {name} is wrong: off by {error:.2g} along a random direction, "
            f"where {allowed:.1g} is allowed")
    places, rng = np.arange(x.size), np.random.default_rng(0)
    while places.size > LOCATED:
        halves = np.array_split(rng.permutation(places), 2)
        places = max(halves, key=lambda half: _off_along(forward, inputs, dy, x, gradient, half, rng))
    worst: tuple[float, tuple[int, ...], float, float] = (-1.0, (), 0.0, 0.0)
    for place in np.sort(places):
        index = tuple(int(i) for i in np.unravel_index(place, x.shape))
        e = np.zeros(x.shape)
        e[index] = 1
        h = STEP * max(abs(_number(x[index])), _norm(x) / math.sqrt(x.size), 1e-3)
        measured, claimed = _difference(forward, inputs, dy, x, _like(e, x), h), _number(gradient[index])
        off = abs(measured - claimed) if math.isfinite(measured - claimed) else math.inf
        if off > worst[0]:
            worst = (off, index, measured, claimed)
    _, index, measured, claimed = worst
    return (f"{text}; {'for one' if x.size > LOCATED else 'worst'} at {name}{list(index)}: "
            f"backward says {claimed:.6g}, measured {measured:.6g}")


def _listed(others: list[str]) -> str:
    """The other gradients that are wrong, at most four of them, and always the last."""
    shown = others if len(others) <= 4 else [*others[:2], f"{len(others) - 3} more", others[-1]]
    return f"; wrong as well: {', '.join(shown)}" if others else ""


def _off_along(forward, inputs, dy, x, gradient, places, rng) -> float:
    """How far backward and difference are apart along a direction that reaches these elements alone; Inf
    where one of the two is no number.
    """
    signs = rng.choice([-1.0, 1.0], places.size)
    v = np.zeros(x.size)
    v[places] = signs
    h = STEP * max(_norm(x) / math.sqrt(x.size), 1e-3)
    claimed = _number((gradient.reshape(-1)[_like(places, x)] * _like(signs, x)).sum())
    off = abs(claimed - _difference(forward, inputs, dy, x, _like(v.reshape(x.shape), x), h))
    return off if math.isfinite(off) else math.inf


def _norm(x) -> float:
    return math.sqrt(_number((x * x).sum()))


def _number(value) -> float:
    return float(to_numpy(value))


def _like(values: np.ndarray, array) -> Any:
    """NumPy values as an array of the same module as `array`."""
    return array_module(array).asarray(values)
