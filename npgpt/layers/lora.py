"""LoRA (Hu et al. 2021): linear layers that stay as they are, with a low-rank addition that is learned.

    add_lora(model, rank=8, alpha=16, targets=("c_attn",), seed=0)      # … train …
    merge_lora(model)                                                   # an ordinary model again

There is no LoRA dropout: what the model itself drops it goes on dropping.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from npgpt.errors import ConfigError
from npgpt.layers.linear import Linear
from npgpt.layers.module import Module, Parameter
from npgpt.ops.lora import lora_backward, lora_forward
from npgpt.ranges import FINITE, check_range
from npgpt.tensor import to_device

ADDED = ("lora_A", "lora_B")


class LoRALinear(Module):
    """y = x W + b + s (x A) B, s = alpha/rank.   x: (..., n_in) → y: (..., n_out)

    weight, bias: those of the layer whose place it takes.  lora_A: (n_in, rank), lora_B: (rank, n_out).
    B begins as 0, so that nothing changes at first; A is Normal of the variance 1/(3 n_in) that PEFT's
    default has (kaiming_uniform_ with a = √5: uniform between ± 1/√n_in).
    """

    def __init__(self, linear: Linear, rank: int, alpha: float):
        n_in, n_out = linear.weight.shape
        self.weight, self.bias = linear.weight, linear.bias
        self.lora_A = Parameter(n_in, rank, std=(3 * n_in) ** -0.5)
        self.lora_B = Parameter(rank, n_out)
        self.rank, self.alpha = rank, alpha

    @property
    def scale(self) -> float:
        return self.alpha / self.rank

    def forward(self, x):
        return lora_forward(x, self.weight.data, self.bias.data if self.bias else None, self.lora_A.data,
                            self.lora_B.data, self.scale)

    def backward(self, dy, saved):
        learned = not self.weight.frozen, bool(self.bias and not self.bias.frozen)
        dx, dweight, dbias, dlora_A, dlora_B = lora_backward(dy, saved, self.weight.unwritten_grad, learned)
        self.weight.add_grad(dweight)
        if self.bias:
            self.bias.add_grad(dbias)
        self.lora_A.add_grad(dlora_A)
        self.lora_B.add_grad(dlora_B)
        return dx


def add_lora(model: Any, rank: int, alpha: float, targets: str | Sequence[str], seed: int = 0,
             also: Callable[[str], bool] = lambda name: False) -> None:
    """Puts a LoRALinear in the place of the named layers of every block of a model (that has blocks, `h`),
    and freezes all else but the parameters whose name `also` accepts: a classifier's head.

    targets: c_attn, attn.c_proj, mlp.c_fc, mlp.c_proj, or the end of such a name: c_proj is both; or of one
    in a part of your own, mlp.experts.0.c_fc. A layer that is used in two places has it in both.  seed: of
    the initial values. For a model with arrays, before an optimiser is made for it.
    Raises ConfigError for what is not there, and for a model that has LoRA already.
    """
    check_range("LoRA's rank", rank, least=1)
    check_range("LoRA's alpha", alpha, above=0, most=FINITE)
    if lora_layers(model):
        raise ConfigError("the model has LoRA already: merge that into its weights first")
    found = list(_linear_layers(model))
    targets = [targets] if isinstance(targets, str) else targets
    for target in targets:
        if not any(_is_meant(name, target) for name, _ in found):
            known = dict.fromkeys(name.split(".", 2)[2] for name, _ in found)
            raise ConfigError(f"LoRA cannot be put at {target!r}: a block has {', '.join(known)}")
    flat, adapted = model.flat, {}
    for name, linear in found:
        if linear not in adapted and any(_is_meant(name, target) for target in targets):
            adapted[linear] = layer = LoRALinear(linear, rank, alpha)
            for added in ADDED:
                parameter = getattr(layer, added)
                values = parameter.initial(seed, f"{name}.{added}").astype(flat.data.dtype)
                parameter._data = to_device(values, flat.device)
    _exchange(model, adapted)
    model.freeze(lambda name: name.endswith(ADDED) or also(name))


def merge_lora(model: Any) -> None:
    """W ← W + s A B, and ordinary layers again. The model computes what it did, to rounding, and is as if
    there had been no LoRA: all of its parameters are learned. A model without LoRA is left alone.
    """
    merged = {}
    for layer in dict.fromkeys(lora_layers(model).values()):
        merged[layer] = linear = Linear(layer.weight.shape[0], layer.weight.shape[1], bias=False)
        linear.weight, linear.bias = layer.weight, layer.bias
        linear.weight.data += layer.scale * (layer.lora_A.data @ layer.lora_B.data)
    if merged:
        _exchange(model, merged)
        model.freeze(lambda name: True)


def lora_layers(model: Any) -> dict[str, LoRALinear]:
    """Name → layer of all that `add_lora` put in: h.0.attn.c_attn, …"""
    return {name: layer for name, layer in _linear_layers(model) if isinstance(layer, LoRALinear)}


def _is_meant(name: str, target: str) -> bool:
    return name.endswith(f".{target}")


def _linear_layers(model: Any) -> Iterator[tuple[str, Any]]:
    """Linear layers, LoRA'd or not, of all blocks, with their names."""
    if not hasattr(model, "h"):
        raise ConfigError(f"LoRA is for a model with blocks, `h`, and not for a {type(model).__name__}: "
                          "give it the GPT within, before that is built on")
    for number, block in enumerate(model.h):
        for name, layer in block.named_modules():
            if isinstance(layer, (Linear, LoRALinear)):
                yield f"h.{number}.{name}", layer


def _exchange(model: Module, others: Mapping[Any, Module]) -> None:
    """Puts another in the place of each module in `others`, in all of its places if it has several."""
    places = [place for place in model.places() if place[1][place[2]] in others]
    for name, holder, _ in places:
        if isinstance(holder, tuple):
            raise ConfigError(f"{name} stands in a tuple, where nothing can be put in its place: make that "
                              "a list")
    for _, holder, key in places:
        holder[key] = others.get(holder[key], holder[key])                    # a shared holder comes twice
