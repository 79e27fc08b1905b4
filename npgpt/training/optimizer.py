"""AdamW over the flat parameters, and clipping by the global norm."""

from collections.abc import Mapping
from typing import Any

from npgpt.errors import CheckpointError
from npgpt.layers.module import Module
from npgpt.ops.adamw import adamw
from npgpt.tensor import array_module, to_device, to_numpy


class AdamW:
    """The moments of every parameter, flat, and the number of updates made.

    lr: learning rate.  weight_decay: on matrices only; biases and gains are not decayed.
    """

    def __init__(self, model: Module, lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.95),
                 eps: float = 1e-8, weight_decay: float = 0.1):
        xp = array_module(model.flat.data)
        self.flat = model.flat
        self.lr, self.betas, self.eps, self.weight_decay = lr, betas, eps, weight_decay
        self.exp_avg    = xp.zeros_like(self.flat.data)                       # m
        self.exp_avg_sq = xp.zeros_like(self.flat.data)                       # v
        self.updates = 0

    def step(self, lr: float | None = None) -> None:
        """Updates every parameter from its gradient. lr: of this step; None takes the optimiser's own."""
        self.updates += 1
        grad, decayed = self.flat.grad, self.flat.decayed
        for part, decay in ((slice(0, decayed), self.weight_decay), (slice(decayed, None), 0.0)):
            w, m, v = self.flat.data[part], self.exp_avg[part], self.exp_avg_sq[part]
            adamw(w, grad[part], m, v, self.updates, self.lr if lr is None else lr, *self.betas, self.eps,
                  decay, out=(w, m, v))

    def state(self) -> dict[str, Any]:
        """The moments by parameter, as PyTorch names them: exp_avg.wte.weight, exp_avg_sq.wte.weight, …; on
        the host."""
        return {f"{kind}.{name}": to_numpy(moment)
                for kind in ("exp_avg", "exp_avg_sq")
                for name, moment in self.flat.views(getattr(self, kind)).items()}

    def load_state(self, state: Mapping[str, Any], updates: int) -> None:
        """Takes over what `state` gave. Raises CheckpointError if names or shapes are not this model's."""
        views = {f"{kind}.{name}": moment
                 for kind in ("exp_avg", "exp_avg_sq")
                 for name, moment in self.flat.views(getattr(self, kind)).items()}
        if views.keys() != state.keys():
            odd = sorted(views.keys() ^ state.keys())[0]
            raise CheckpointError(f"the optimiser's state does not fit this model: one lacks {odd}")
        for name, moment in views.items():
            if moment.shape != state[name].shape:
                raise CheckpointError(f"the optimiser's state does not fit this model: {name} has shape "
                                      f"{state[name].shape}, not {moment.shape}")
            moment[...] = to_device(state[name], self.flat.device)
        self.updates = updates


def clip_grad_norm(model: Module, max_norm: float):
    """Scales all gradients by max_norm / (norm + 1e-6) if that is below 1, as PyTorch does; returns the norm,
    0-d.

    norm: √ of the sum of squares of all gradients, before scaling. Where it is NaN or Inf the gradients are
    left as they are, so that the tensor at fault can be found: look at the norm before updating.
    """
    grad = model.flat.grad
    xp = array_module(grad)
    norm = xp.sqrt(grad @ grad)
    grad *= xp.where(xp.isfinite(norm), xp.minimum(max_norm / (norm + 1e-6), 1.0), 1.0)
    return norm
