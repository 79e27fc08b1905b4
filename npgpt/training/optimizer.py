"""AdamW over the flat parameters, and clipping by the global norm."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from npgpt.errors import CheckpointError, ConfigError
from npgpt.layers.flat import FlatParameters
from npgpt.layers.module import Module
from npgpt.ops.adamw import adamw
from npgpt.ops.sum_of_squares import sum_of_squares
from npgpt.ranges import FINITE, check_range
from npgpt.tensor import Key, array_module, to_device, to_numpy
from npgpt.tensor.precision import accumulator
from npgpt.tensor.random import ROUNDING
from npgpt.training.communication import Ranks


class AdamW:
    """Updates parameters from their gradients; keeps two moments of each, and the number of updates made.

    lr: learning rate.  weight_decay: on matrices only; biases and gains are not decayed.
    ranks: each of several updates its own part of the flat parameters, and keeps the moments of that alone.
    Of a model of 16 bits it also keeps float32 weights, `master`, which are what it updates; the model's are
    these rounded, to bfloat16 by random bits under `seed`.
    Raises ConfigError for what is no model, or a number that cannot be.
    """

    def __init__(self, model: Module, lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.95),
                 eps: float = 1e-8, weight_decay: float = 0.1, ranks: Ranks | None = None, seed: int = 0):
        if np.shape(betas) != (2,):
            raise ConfigError(f"betas must be two numbers, (0.9, 0.95), not {betas!r}")
        for name, value in (("betas[0]", betas[0]), ("betas[1]", betas[1])):
            check_range(name, value, least=0, below=1)
        for name, value in (("lr", lr), ("eps", eps), ("weight_decay", weight_decay)):
            check_range(name, value, least=0, most=FINITE)
        self.model, self.flat = model, _flat(model, "AdamW")
        self._check_that_it_is_the_models()
        self.ranks, self.seed = ranks or Ranks(), seed
        self.part = self.ranks.part(self.flat.size)
        self.lr, self.betas, self.eps, self.weight_decay = lr, betas, eps, weight_decay
        self.flat.make_current()
        xp, mine = array_module(self.flat.data), self.flat.data[self.part]
        self.master     = mine.astype(accumulator(mine.dtype), copy=False)    # the model's own if not 16 bits
        self.exp_avg    = xp.zeros_like(self.master)                          # m
        self.exp_avg_sq = xp.zeros_like(self.master)                          # v
        self.updates = 0
        self.kinds   = ("exp_avg", "exp_avg_sq") + (("master",) if self.master is not mine else ())

    def _check_that_it_is_the_models(self) -> None:
        """That what would be updated is what the model computes with."""
        learned = {name: p for name, p in self.model.parameters.items() if not p.frozen}
        if not learned:
            raise ConfigError("the model has no parameter that is learned, and so nothing to optimise")
        for name in learned.keys() ^ self.flat.parameters.keys():
            raise ConfigError(f"the parameter {name} came or went after the model was initialised: do "
                              "that again, which keeps all values, and say by freeze() what is learned")
        for name, parameter in learned.items():
            if not array_module(parameter.data).may_share_memory(parameter.data, self.flat.data):
                raise ConfigError(f"the parameter {name} lies in the arrays of a larger module: make the "
                                  "optimiser for that")

    def step(self, lr: float | None = None, grad_scale=1.0) -> None:
        """Updates every parameter from its gradient; a meeting of the ranks, which have added up theirs.

        lr: of this step; None takes the optimiser's own.  grad_scale: the gradients are multiplied by it.
        Raises ConfigError for a rate that cannot be, and if since it was made other parameters are learned,
        or they lie elsewhere.
        """
        if self.model.flat is not self.flat or self.flat.strayed():
            raise ConfigError("the optimiser is older than what was frozen or initialised, or the LoRA that "
                              "was added: make another, for what is learned now")
        if lr is not None:
            check_range("lr", lr, least=0, most=FINITE)
        self.updates += 1
        self.flat.make_current()
        grad, start, stop = self.flat.grad, self.part.start, self.part.stop
        vectors = min(max(self.flat.decayed, start), stop)                    # where they begin in this part
        for place, decay in ((slice(start, vectors), self.weight_decay), (slice(vectors, stop), 0.0)):
            here = slice(place.start - start, place.stop - start)
            w, m, v = self.master[here], self.exp_avg[here], self.exp_avg_sq[here]
            rounded = {"narrow": self.flat.data[place], "first": place.start,
                       "key": Key(self.seed, ROUNDING, self.updates)} if "master" in self.kinds else {}
            adamw(w, grad[place], m, v, self.updates, self.lr if lr is None else lr, *self.betas, self.eps,
                  decay, grad_scale, out=(w, m, v), **rounded)
        self.ranks.all_gather(self.flat.data)

    def state(self) -> dict[str, Any]:
        """The moments by parameter, as PyTorch names them: exp_avg.wte.weight, exp_avg_sq.wte.weight, …, and
        the master weights, master.wte.weight, …; on the host. A meeting of the ranks, and empty on all but
        the first.
        """
        return {f"{kind}.{name}": moment
                for kind in self.kinds
                if (parts := self.ranks.gather(to_numpy(getattr(self, kind))))
                for name, moment in self.flat.views(*parts).items()}

    def load_state(self, state: Mapping[str, Any], updates: int) -> None:
        """Takes over what `state` gave, whatever the number of ranks that wrote it. Raises CheckpointError if
        names or shapes are not this model's.
        """
        places, start, stop = self.flat.places, self.part.start, self.part.stop
        names = {f"{kind}.{name}" for kind in self.kinds for name in places}
        if names != state.keys():
            odd = sorted(names ^ state.keys())[0]
            raise CheckpointError(f"the optimiser's state does not fit this model: one lacks {odd}")
        for kind in self.kinds:
            for name, parameter in self.flat.parameters.items():
                moment = state[f"{kind}.{name}"]
                if moment.shape != parameter.shape:
                    raise CheckpointError(f"the optimiser's state does not fit this model: {kind}.{name} has "
                                          f"shape {moment.shape}, not {parameter.shape}")
                place = places[name]
                first, last = max(place.start, start), min(place.stop, stop)
                if first < last:
                    mine = moment.reshape(-1)[first - place.start:last - place.start]
                    getattr(self, kind)[first - start:last - start] = to_device(mine, self.flat.device)
        self.updates = updates


def clip_grad_norm(model: Module, max_norm: float):
    """Scales all gradients by max_norm / (norm + 1e-6) if that is below 1, as PyTorch does; returns the norm,
    0-d.

    norm: √ of the sum of squares of all gradients, before scaling. Where it is NaN or Inf the gradients are
    left as they are, so that the tensor at fault can be found: look at the norm before updating.
    Raises ConfigError for what is no model, or lies in a larger one, and a max_norm below 0.
    """
    flat = _flat(model, "clip_grad_norm")
    check_range("max_norm", max_norm, least=0)
    if name := flat.strayed():
        raise ConfigError(f"the parameter {name} lies in the arrays of a larger module: clip the gradients "
                          "of that")
    flat.make_current()
    grad = flat.grad
    norm = array_module(grad).sqrt(sum_of_squares(grad))
    grad *= clip_scale(norm, max_norm)
    return norm


def _flat(model: Module, asked: str) -> FlatParameters:
    if not isinstance(getattr(model, "flat", None), FlatParameters):
        raise ConfigError(f"{asked} takes a model, initialised, and not a {type(model).__name__}"
                          f"{' that is not' if isinstance(model, Module) else ''}")
    return model.flat


def clip_scale(norm, max_norm: float):
    """What gradients of this norm, 0-d, are to be multiplied by, so that it is at most max_norm; 0-d."""
    xp = array_module(norm)
    return xp.where(xp.isfinite(norm), xp.minimum(max_norm / (norm + 1e-6), 1.0), 1.0)
