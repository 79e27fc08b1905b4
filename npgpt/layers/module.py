"""Parameter and Module: what owns the numbers that are learned, and how they are found by name.

A layer is a Module with `forward(x) -> y, saved` and `backward(dy, saved) -> dx`. Its parameters and parts
are plain attributes; a list of modules counts as parts too. Names come from the attributes:
`h.0.attn.c_attn.weight`. A new layer's parameters are shapes only; `initialise` makes the arrays, where and
how the caller says:

    layer = Linear(3, 5).initialise(seed=0, device="cpu", dtype="float64")

Forward changes nothing of a layer, backward only adds to the gradients of its parameters.
"""

from collections.abc import Iterator
from typing import Any, Self

from npgpt.errors import ConfigError
from npgpt.layers.flat import FlatParameters


class Parameter:
    """An array that is learned, and its gradient.

    shape; std: initial values are Normal(0, std²), or all `constant` where std is None.
    `data` and `grad` are views into the module's flat arrays (npgpt/layers/flat.py).
    """

    data: Any = None
    _grad: Any = None
    unset = True        # the gradient is zero and its memory not written yet: the first to add writes it

    def __init__(self, *shape: int, std: float | None = None, constant: float = 0.0):
        self.shape, self.std, self.constant = shape, std, constant

    @property
    def grad(self):
        """∂L/∂data, the sum of what every backward since `zero_grad` added; same shape as data."""
        if self.unset:
            self._grad[...] = 0
            self.unset = False
        return self._grad

    @property
    def unwritten_grad(self):
        """The gradient's memory, for an op's `out=`, while nothing is in it; else None."""
        return self._grad if self.unset else None

    def add_grad(self, grad) -> None:
        """grad += what one backward computed; that may stand in `unwritten_grad` already."""
        if not self.unset:
            self._grad += grad
        elif grad is not self._grad:
            self._grad[...] = grad
        self.unset = False


class Module:
    """Something with parameters, of its own or in its parts."""

    flat: FlatParameters

    def named_parameters(self, prefix: str = "") -> Iterator[tuple[str, Parameter]]:
        """Every parameter with its name, in the order in which the attributes were made."""
        for name, value in vars(self).items():
            parts = enumerate(value) if isinstance(value, (list, tuple)) else [(None, value)]
            for number, part in parts:
                place = f"{prefix}{name}" if number is None else f"{prefix}{name}.{number}"
                if isinstance(part, Parameter):
                    yield place, part
                elif isinstance(part, Module):
                    yield from part.named_parameters(place + ".")

    @property
    def parameters(self) -> dict[str, Parameter]:
        """Name → Parameter. One that is used in two places stands under its first name only."""
        first_names = {id(parameter): name for name, parameter in reversed(list(self.named_parameters()))}
        return {name: parameter for name, parameter in self.named_parameters()
                if first_names[id(parameter)] == name}

    def initialise(self, seed: int | None = 0, device: str = "cpu", dtype: str = "float32",
                   data: Any = None) -> Self:
        """Makes the arrays of all parameters, laid flat. Initial values depend on seed and name alone;
        a seed of None leaves them undefined, for who sets them all at once.

        dtype: "float32", or "float64" for checking.  data: the flat array of a module of the same shape,
        to be shared as it is; only gradients are made.  Raises ConfigError, DeviceError.
        """
        if dtype not in ("float32", "float64"):
            raise ConfigError(f"dtype must be float32 or float64, not {dtype!r}")
        self.flat = FlatParameters(self.parameters, device, dtype, data)
        if data is None and seed is not None:
            self.flat.fill(seed)
        return self

    def zero_grad(self) -> None:
        """Sets every gradient to zero (without touching its memory: see Parameter.unset)."""
        for _, parameter in self.named_parameters():
            parameter.unset = True
