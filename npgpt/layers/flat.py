"""All learned parameters of a model in one array, and all gradients in another of the same layout.

Zeroing, clipping, the optimiser's update, checkpoints and what ranks exchange are then one call each. The
matrices, which weight decay shrinks, come first; the vectors (biases, gains), which it leaves alone, follow:

    data   [ wte.weight | wpe.weight | h.0.attn.c_attn.weight | …  ‖ h.0.ln_1.weight | … | ln_f.bias ]
                                              data[:decayed]       ‖       data[decayed:]
"""

import math
from collections.abc import Mapping
from typing import Any

from npgpt.errors import CheckpointError
from npgpt.tensor.device import array_module, check_device, empty, to_device
from npgpt.tensor.precision import accumulator


class FlatParameters:
    """`data` and the gradients (see `grad`): flat arrays of `size` elements; every Parameter's arrays are
    views into them, and it is not frozen. The first `decayed` elements are the matrices.
    dtype: of data; gradients, which many backwards may add to, are float32 where that has 16 bits.
    first: those of which these are a replica: both arrays are theirs, but each parameter has a gradient of
    its own, which `settle` adds to what is in the array.
    """

    def __init__(self, parameters: dict[str, Any], device: str, dtype: str,
                 first: "FlatParameters | None" = None):
        matrices = {name: p for name, p in parameters.items() if len(p.shape) >= 2}
        vectors = {name: p for name, p in parameters.items() if len(p.shape) < 2}
        self.device = device
        self.parameters = matrices | vectors
        self.places: dict[str, slice] = {}               # where each lies in a flat array of this layout
        self._parts: dict[Any, tuple] = {}               # module → which of these are its own
        self.size = 0
        for name, p in self.parameters.items():
            self.places[name] = slice(self.size, self.size + math.prod(p.shape))
            self.size = self.places[name].stop
        self.decayed = sum(math.prod(p.shape) for p in matrices.values())
        self.data: Any  = first.data if first else empty(self.size, dtype, device)
        self._grad: Any = first._grad if first else empty(self.size, accumulator(dtype), device)
        for parameter, data, grad in zip(self.parameters.values(), self.views(self.data).values(),
                                         self.views(self._grad).values(), strict=True):
            parameter._data, parameter.flat_grad, parameter._grad = data, grad, None if first else grad
            parameter.unset, parameter._frozen = True, False

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_parts": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """A copy's parameters, deep or pickled, are views into its arrays as the first's are into its own."""
        vars(self).update(state)
        for parameter, data, grad in zip(self.parameters.values(), self.views(self.data).values(),
                                         self.views(self._grad).values(), strict=True):
            if parameter._grad is parameter.flat_grad:
                parameter._grad = grad
            parameter._data, parameter.flat_grad = data, grad

    def make_current(self) -> None:
        """What is computed from here on is computed where these are: see npgpt/tensor/device.py."""
        check_device(self.device)

    def views(self, *parts) -> dict[str, Any]:
        """name → what belongs to the parameter, in its shape, of a flat array of this layout.

        That may come in consecutive parts; only a parameter that is cut by a border between two is copied.
        """
        views = {}
        for name, place in self.places.items():
            pieces, start = [], 0
            for part in parts:
                pieces.append(part[max(place.start - start, 0):max(place.stop - start, 0)])
                start += part.size
            pieces = [piece for piece in pieces if piece.size] or pieces[:1]
            whole = pieces[0] if len(pieces) == 1 else array_module(*pieces).concatenate(pieces)
            views[name] = whole.reshape(self.parameters[name].shape)
        return views

    def strayed(self) -> str | None:
        """The name of a parameter whose gradient lies elsewhere by now, in the arrays of a larger module."""
        share = array_module(self._grad).may_share_memory
        return next((name for name, parameter in self.parameters.items()
                     if parameter.flat_grad is None or not share(parameter.flat_grad, self._grad)), None)

    @property
    def grad_dtype(self):
        return self._grad.dtype

    @property
    def grad(self):
        """All gradients, flat: zero where no backward has added any; of replicas, what they have settled."""
        for parameter in self.parameters.values():
            if parameter.flat_grad is parameter._grad:
                parameter.settle()
        return self._grad

    def settle(self, module: Any = None) -> list[tuple[Any, slice]]:
        """The gradients of a module's parameters, or all, come to their places in the flat array. Returns
        that array and the stretches that they are: for who would use them before the others are there.
        """
        if module not in self._parts:
            self._parts[module] = self._part(module)
        parameters, stretches = self._parts[module]
        for parameter in parameters:
            parameter.settle()
        return [(self._grad, stretch) for stretch in stretches]

    def _part(self, module: Any) -> tuple[list[Any], list[slice]]:
        """Those of a module's parameters, or of all, that are here, and the stretches that they fill."""
        own = {parameter for _, parameter in module.named_parameters()} if module else None
        parameters: list[Any] = []
        stretches: list[slice] = []
        for place, parameter in zip(self.places.values(), self.parameters.values(), strict=True):
            if own is None or parameter in own:
                parameters.append(parameter)
                begun = stretches.pop().start if stretches and stretches[-1].stop == place.start \
                    else place.start
                stretches.append(slice(begun, place.stop))
        return parameters, stretches

    def load(self, arrays: Mapping[str, Any]) -> None:
        """Sets every parameter that is learned from host arrays by name, or from what has their `shape` and
        `astype`.

        Raises CheckpointError naming the first misfit.
        """
        load_arrays(self.parameters, arrays, self.device)


def load_arrays(parameters: Mapping[str, Any], arrays: Mapping[str, Any], device: str) -> None:
    """Sets the parameters from arrays of their names, as `FlatParameters.load`."""
    if not isinstance(arrays, Mapping):
        raise CheckpointError(f"parameters are set from arrays by name, a dict, and not from a "
                              f"{type(arrays).__name__}")
    for name in sorted(arrays.keys() ^ parameters.keys()):
        there, not_there = ("model", "checkpoint") if name in parameters else ("checkpoint", "model")
        raise CheckpointError(f"{name} is in the {there} but not in the {not_there}")
    for name, parameter in parameters.items():
        array = arrays[name]
        kind  = getattr(array, "dtype", type(array).__name__)
        if not hasattr(array, "astype") or getattr(kind, "kind", "f") in "cOSU":
            raise CheckpointError(f"{name} is {kind} in the checkpoint, and no array of NumPy or CuPy with "
                                  "real numbers")
        if array.shape != parameter.shape:
            raise CheckpointError(f"{name} has shape {tuple(array.shape)} in the checkpoint, "
                                  f"but {parameter.shape} in the model")
    for name, parameter in parameters.items():
        parameter.data[...] = to_device(arrays[name].astype(parameter.data.dtype, copy=False), device)
