"""Parameter and Module: what owns the numbers that are learned, and how they are found by name.

A layer is a Module with `forward(x) -> y, saved` and `backward(dy, saved) -> dx`. Its parameters and parts
are plain attributes; the modules in a list or a dict count as parts too. Names come from the attributes:
`h.0.attn.c_attn.weight`. A new layer's parameters are shapes only; `initialise` makes the arrays, where and
how the caller says:

    layer = Linear(3, 5).initialise(seed=0, device="cpu", dtype="float64")

A layer with a parameter of its own makes it, self.scale = Parameter(n_embd, constant=1.0), reads
self.scale.data in forward, and calls self.scale.add_grad(dscale) in backward.
Forward changes nothing of a layer, backward only adds to the gradients of its parameters: one that is used in
two places, or for two batches, gets the sum of both.
"""

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Self

import numpy as np

from npgpt.errors import ConfigError, DataError
from npgpt.layers.flat import FlatParameters, load_arrays
from npgpt.ranges import is_whole
from npgpt.tensor import array_module, device_of, to_device, to_numpy
from npgpt.tensor.precision import NARROW, accumulator
from npgpt.tensor.random import initial_normal


class Parameter:
    """An array that is learned, and its gradient.

    shape; std: initial values are Normal(0, std²), or all `constant` where std is None.
    `data` and `grad` are views into the module's flat arrays (npgpt/layers/flat.py), and stay there: what is
    assigned to `data` is written into it. A replica's gradient is an array of its own, until `settle` adds it
    there. A parameter that is frozen is not learned, and has no gradient (`Module.freeze`).
    Raises ConfigError for a shape that is none, and where there is no array yet.
    """

    _frozen = False
    _data: Any = None
    flat_grad: Any = None   # the gradient's place in the flat array, a view
    _grad: Any = None       # what backward adds to: that, or a replica's own array, None before it is made
    unset = True            # the gradient is zero and its memory not written yet: the first to add writes it

    def __init__(self, *shape: int, std: float | None = None, constant: float = 0.0):
        if not all(is_whole(size) for size in shape):
            raise ConfigError(f"a parameter's shape is given as whole numbers, Parameter(3, 4), not {shape}")
        self.shape, self.std, self.constant = shape, std, constant

    def initial(self, seed: int, name: str):
        """The initial values of a parameter of that name: on the host, float64."""
        if self.std is None:
            return np.full(self.shape, self.constant)
        return initial_normal(seed, name, self.shape, self.std)

    @property
    def frozen(self) -> bool:
        """Whether it is not learned. PyTorch's `requires_grad` is the opposite; neither is set here."""
        return self._frozen

    @frozen.setter
    def frozen(self, wanted: bool) -> None:
        if wanted != self._frozen:
            raise ConfigError("what is learned is said of all parameters at once, before the optimiser is "
                              "made: model.freeze(lambda name: …), true of the names of those that learn")

    @property
    def requires_grad(self) -> bool:
        return not self._frozen

    @requires_grad.setter
    def requires_grad(self, wanted: bool) -> None:
        self.frozen = not wanted

    @property
    def data(self):
        """The values; of the module's type, in its shape."""
        if self._data is None:
            raise ConfigError("a parameter has no array yet: initialise() of the outermost module makes all")
        return self._data

    @data.setter
    def data(self, values) -> None:
        if values is not self._data:
            self.data[...] = values

    @property
    def grad(self):
        """∂L/∂data, the sum of what every backward since `zero_grad` added; same shape as data. Of a frozen
        one nothing was computed: it reads as zeros, in no memory, and is not to be written to.
        """
        if self.frozen:
            xp = array_module(self.data)
            return xp.broadcast_to(xp.zeros((), accumulator(self.data.dtype)), self.shape)
        if self.unset:
            if self._grad is None:
                self._grad = array_module(self.data).empty(self.shape, self.flat_grad.dtype)
            self._grad[...] = 0
            self.unset = False
        return self._grad

    @grad.setter
    def grad(self, changed) -> None:
        if changed is not self._grad:                       # as it is after p.grad *= 0.5
            raise ConfigError("a gradient stays where it is: write into it, grad[...] = …, or in a layer's "
                              "backward add to it by add_grad(…)")

    @property
    def unwritten_grad(self):
        """The gradient's memory, for an op's `out=`, while nothing is in it; else, or if frozen, None."""
        return self._grad if self.unset else None

    def add_grad(self, grad) -> None:
        """grad += what one backward computed; that may stand in `unwritten_grad` already. Not if frozen."""
        if self.frozen:
            return
        if grad.shape != self.shape:
            raise DataError(f"a parameter of shape {self.shape} cannot have a gradient of shape {grad.shape}")
        if not self.unset and self._grad is self.flat_grad:
            self._grad += grad
        elif not self.unset:                    # of a replica, whose first may be another's array, too
            self._grad = self._grad + grad.astype(self._grad.dtype, copy=False)
        elif self._grad is None:
            self._grad = grad.astype(self.flat_grad.dtype, copy=False)
        elif grad is not self._grad:
            self._grad[...] = grad
        self.unset = False

    def settle(self) -> None:
        """The gradient comes to its place in the flat array: zero where no backward has added to it. That of
        a replica is added to what is there, and then zero again, in no memory.
        """
        if self._grad is self.flat_grad:
            _ = self.grad
        elif not self.unset:
            self.flat_grad += self._grad
            self._grad, self.unset = None, True


def _places(prefix: str, holder: Any) -> Iterator[tuple[str, Any, Any]]:
    """Where the parts in a module's attributes, a list or a dict stand: see `Module.places`."""
    for key, part in holder.items() if isinstance(holder, dict) else enumerate(holder):
        if isinstance(part, (Parameter, Module)):
            yield f"{prefix}{key}", holder, key
        if isinstance(part, Module):
            yield from part.places(f"{prefix}{key}.")
        elif isinstance(part, (list, tuple, dict)):
            yield from _places(f"{prefix}{key}.", part)


class Module:
    """Something with parameters, of its own or in its parts."""

    flat: FlatParameters

    def places(self, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
        """(name, holder, key) of every module and parameter in this one, each before what is in it, in the
        order in which the attributes were made: holder[key] is what has that name. holder is the attributes
        of a module, a list, a tuple or a dict.  prefix: of the names.
        """
        yield from _places(prefix, vars(self))

    def named_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """Every parameter with its name, under each of its names."""
        for name, holder, key in self.places():
            if isinstance(holder[key], Parameter):
                yield name, holder[key]

    def named_modules(self) -> Iterator[tuple[str, "Module"]]:
        """Every module in this one with its name, as PyTorch has it: "" and itself first, each before its
        parts. One that is used in two places comes once, under its first name.
        """
        seen: set[Module] = set()
        yield "", self
        for name, holder, key in self.places():
            part = holder[key]
            if isinstance(part, Module) and part not in seen:
                seen.add(part)
                yield name, part

    @property
    def parameters(self) -> dict[str, Parameter]:
        """Name → Parameter. One that is used in two places stands under its first name only."""
        first_names = {id(parameter): name for name, parameter in reversed(list(self.named_parameters()))}
        return {name: parameter for name, parameter in self.named_parameters()
                if first_names[id(parameter)] == name}

    def __repr__(self) -> str:
        """How many numbers it has, then a line for each parameter: its name, its shape, if it is frozen."""
        parameters = self.parameters
        width = max(map(len, parameters), default=0)
        size  = sum(math.prod(parameter.shape) for parameter in parameters.values())
        return "\n".join([f"{type(self).__name__}: {size:,} parameters",
                          *(f"    {name:<{width}}  {parameter.shape}{'  frozen' if parameter.frozen else ''}"
                            for name, parameter in parameters.items())])

    def initialise(self, seed: int | None = 0, device: str | None = None, dtype: str | None = None) -> Self:
        """Makes the arrays of all parameters, laid flat. Initial values depend on seed and name alone;
        a seed of None leaves them undefined, for who sets them all at once. Parts that have their arrays, as
        a pretrained model on which another is built, keep their values, and lie in this one's from then on.
        All are learned then, also what was frozen: `freeze` follows.

        device, dtype: by default those of such parts, or else "cpu" and "float32". "float64" is for checking;
        a GPU has "bfloat16" and "float16" as well (npgpt/tensor/precision.py).
        Raises ConfigError, DeviceError.
        """
        values = {name: parameter._data for name, parameter in self.parameters.items()}
        made   = next((array for array in values.values() if array is not None), None)
        if device is None:
            device = "cpu" if made is None else device_of(made)
        if dtype is None:
            dtype = "float32" if made is None else made.dtype.name
        if dtype not in ("float32", "float64", *NARROW):
            raise ConfigError(f"dtype must be float32, float64, bfloat16 or float16, not {dtype!r}")
        if dtype in NARROW and device == "cpu":
            raise ConfigError(f"dtype {dtype} needs a GPU: on the CPU use float32")
        self.flat = FlatParameters(self.parameters, device, dtype)
        for name, parameter in self.flat.parameters.items():
            if values[name] is not None:
                parameter.data = to_device(to_numpy(values[name]).astype(self.flat.data.dtype), device)
            elif seed is not None:
                parameter.data = to_device(parameter.initial(seed, name).astype(self.flat.data.dtype), device)
        return self

    def state_dict(self) -> dict[str, Any]:
        """Name → a copy of each parameter's values, learned or frozen, on the host: for `load_state_dict`, or
        for a file, numpy.savez("weights.npz", **model.state_dict()).
        """
        return {name: np.array(to_numpy(parameter.data)) for name, parameter in self.parameters.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Sets every parameter to what `state_dict` gave, or numpy.load("weights.npz").

        Raises CheckpointError naming the first that is missing, too many or of another shape.
        """
        self._check_initialised()
        load_arrays(self.parameters, state, self.flat.device)

    def freeze(self, trained: Callable[[str], bool]) -> None:
        """From now on only the parameters whose name `trained` accepts are learned; called again it decides
        anew, and `lambda name: True` has all learned again. Gradients are forgotten.

        `flat` then holds those alone, in arrays of its own, and what works on `flat` (optimiser, clipping,
        ranks, checkpoints) works on them. The others stay where they are. For a module with arrays, before
        an optimiser is made for it. Raises ConfigError if nothing would be learned.
        """
        self._check_initialised()
        if not callable(trained):
            raise ConfigError("freeze takes a function, true of the names of those that go on learning, such "
                              f"as lambda name: name.startswith('h.2.'), and not {trained!r}")
        parameters, old = self.parameters, self.flat
        learned = {name: parameter for name, parameter in parameters.items() if trained(name)}
        if not learned:
            raise ConfigError(f"nothing would be learned: all {len(parameters)} parameters would be frozen; "
                              "leave at least one to be trained")
        values = {name: parameter.data for name, parameter in learned.items()}
        for parameter in parameters.values():
            parameter._frozen, parameter.flat_grad, parameter._grad = True, None, None
        self.flat = FlatParameters(learned, old.device, str(old.data.dtype))
        for name, parameter in learned.items():
            parameter.data[...] = values[name]

    def _check_initialised(self) -> None:
        if "flat" not in vars(self):
            raise ConfigError(f"this {type(self).__name__} has no arrays of its own: initialise() it first, "
                              "or call this of the module that it is a part of")

    @property
    def learns(self) -> bool:
        """Whether any of its parameters is learned, so that backward has something to do here."""
        return any(not parameter.frozen for _, parameter in self.named_parameters())

    def replica(self) -> Self:
        """The same module on the very same parameter arrays, learned and frozen, with gradients of its own,
        which its `flat` adds to this one's: what another rank trains.
        """
        flat   = self.flat
        shared = [flat, *(array for _, parameter in self.named_parameters()
                          for array in (parameter._data, parameter.flat_grad, parameter._grad))]
        module = copy.deepcopy(self, {id(array): array for array in shared})
        parameters  = module.parameters
        module.flat = FlatParameters({name: parameters[name] for name in flat.parameters}, flat.device,
                                     str(flat.data.dtype), flat)
        return module

    def replicas(self, size: int) -> list[Self]:
        """One for each of `size` ranks, of which the first is the module itself. They are made before the
        ranks begin: what forked processes are to share must be there already.
        """
        return [self, *(self.replica() for _ in range(1, size))]

    def zero_grad(self) -> None:
        """Sets every gradient to zero (without touching its memory: see Parameter.unset)."""
        self._check_initialised()
        for parameter in self.flat.parameters.values():
            parameter.unset = True
