"""Every op a second time, in PyTorch: the oracle for a forward that is wrong together with its backward.

Run as a program, it computes oracle_numbers.json again: values and gradients of small inputs in float64,
against which the ops are held where PyTorch is not installed.    python tests/ops/pytorch_ops.py
"""

import json
from pathlib import Path

import numpy as np

from npgpt.tensor import Key
from npgpt.tensor.random import keep_mask

NUMBERS = Path(__file__).with_name("oracle_numbers.json")


def attention(q, k, v, causal=True, key_mask=None, segments=None, dropout_p=0.0, dropout_key=None):
    """Written out: PyTorch's own kernels do not agree among themselves on rows that may look at nothing."""
    import torch
    (T, D), S = q.shape[-2:], k.shape[-2]
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    may_look = torch.ones(q.shape[0], 1, T, S, dtype=torch.bool)
    if causal:
        may_look &= torch.ones(T, S, dtype=torch.bool).tril(S - T)
    if key_mask is not None:
        may_look &= key_mask[:, None, None, :]
    if segments is not None:
        may_look &= (segments[:, S - T:, None] == segments[:, None, :])[:, None]
    sees = may_look.any(-1, keepdim=True)
    scores = torch.einsum("bhtd,bhsd->bhts", q, k) / D ** 0.5
    weights = torch.softmax(scores.masked_fill(~may_look & sees, -torch.inf), -1) * sees
    if dropout_p:
        weights = dropout(weights, dropout_p, dropout_key)
    return torch.einsum("bhts,bhsd->bhtd", weights, v)


def cross_entropy(logits, targets, num_items_in_batch=None, ignore_index=-100):
    import torch.nn.functional as F
    total = F.cross_entropy(logits.flatten(0, -2), targets.flatten(), None, ignore_index=ignore_index,
                            reduction="sum")
    return total / (num_items_in_batch or max(int((targets != ignore_index).sum()), 1))


def linear_cross_entropy(x, weight, targets, num_items_in_batch=None, ignore_index=-100, rows=None):
    return cross_entropy(x @ weight.T, targets, num_items_in_batch, ignore_index)


def dropout(x, p, key):
    import torch
    keep = round((1 - p) * 2**16) / 2**16
    return torch.where(torch.from_numpy(keep_mask(key, tuple(x.shape), keep)), x / keep, 0)


def rotary(x, rotation, interleaved=False):
    """The pairs as complex numbers, turned by a product."""
    import torch
    cos, sin = (torch.from_numpy(part.astype("f8")) for part in rotation)
    pairs = torch.stack([x[..., ::2], x[..., 1::2]] if interleaved else x.chunk(2, -1), -1)
    turned = torch.view_as_real(torch.view_as_complex(pairs.contiguous()) * torch.complex(cos, sin))
    return turned.flatten(-2) if interleaved else torch.cat(turned.unbind(-1), -1)


def penalty(w, l1, l2):
    return l1 * w.abs().sum() + l2 * w.square().sum()


def pytorch_op(name):
    """The PyTorch function that takes the arguments of `<name>_forward`."""
    import torch
    import torch.nn.functional as F

    def layernorm(x, gamma, beta=None, eps=1e-5):
        return F.layer_norm(x, x.shape[-1:], gamma, beta, eps)

    def rmsnorm(x, gamma, eps=1e-5):
        return F.rms_norm(x, x.shape[-1:], gamma, eps)

    return {
        "linear": lambda x, weight, bias=None: F.linear(x, weight.T, bias),
        "lora": lambda x, weight, bias, lora_A, lora_B, scale=1.0: F.linear(
            x, (weight + scale * (lora_A @ lora_B)).T, bias),
        "embedding": F.embedding,
        "layernorm": layernorm,
        "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
        "gelu_erf": F.gelu,
        "relu": F.relu,
        "rmsnorm": rmsnorm,
        "rotary": rotary,
        "softcap": lambda x, cap: cap * (x / cap).tanh(),
        "swiglu": lambda x: F.silu(x.chunk(2, -1)[0]) * x.chunk(2, -1)[1],
        "softmax": lambda x: F.softmax(x, -1),
        "residual": lambda x, h: x + h,
        "residual_layernorm": lambda x, h, *others: torch.stack([x + h, layernorm(x + h, *others)]),
        "residual_rmsnorm": lambda x, h, *others: torch.stack([x + h, rmsnorm(x + h, *others)]),
        "attention": attention,
        "cross_entropy": cross_entropy,
        "linear_cross_entropy": linear_cross_entropy,
        "dropout": dropout,
        "penalty": penalty,
    }[name]


def pytorch_results(name, inputs, dy=None):
    """Value and gradients, in float64, of an op for NumPy inputs.   dy: a function of y's shape"""
    import torch
    floats = []

    def convert(value):
        if not isinstance(value, np.ndarray):
            return value
        tensor = torch.from_numpy(value.astype("f8") if value.dtype.kind == "f" else value.copy())
        if value.dtype.kind == "f":
            floats.append(tensor.requires_grad_())
        return tensor

    y = pytorch_op(name)(*map(convert, inputs))
    y.backward(torch.from_numpy(dy(tuple(y.shape))))
    return y.detach().numpy(), [tensor.grad.numpy() for tensor in floats]


def waves(*shape, start=0.0):
    """Numbers of order 1 in no simple pattern, the same on every machine and with every NumPy."""
    places = np.arange(1, 1 + np.prod(shape, dtype=int))
    return (2 * np.sin(start + 1.7 * places ** 1.3)).reshape(shape)


STORED = {      # label → op and its inputs
    "linear": ("linear", (waves(2, 2, 3), waves(3, 4, start=1), waves(4, start=2))),
    "lora": ("lora", (waves(2, 2, 3), waves(3, 4, start=1), waves(4, start=2), waves(3, 2, start=4),
                      waves(2, 4, start=5), 0.7)),
    "embedding": ("embedding", (np.array([[2, 0], [2, 3]]), waves(5, 3))),
    "layernorm": ("layernorm", (waves(2, 2, 3), waves(3, start=1), waves(3, start=2))),
    "layernorm, large eps": ("layernorm", (waves(2, 3), waves(3, start=1), None, 0.5)),
    "gelu_tanh": ("gelu_tanh", (np.array([-7.0, -3.1, -1.2, -0.3, 0.0, 0.4, 1.1, 2.9, 8.0]),)),
    "gelu_erf": ("gelu_erf", (np.array([-7.0, -3.1, -1.2, -0.3, 0.0, 0.4, 1.1, 2.9, 8.0]),)),
    "relu": ("relu", (waves(2, 3),)),
    "rmsnorm": ("rmsnorm", (waves(2, 2, 3), waves(3, start=1))),
    "rmsnorm, large eps": ("rmsnorm", (waves(2, 3), waves(3, start=1), 0.5)),
    "rotary": ("rotary", (waves(1, 2, 3, 4), (np.cos(waves(3, 2, start=1)), np.sin(waves(3, 2, start=1))))),
    "rotary, interleaved": ("rotary", (waves(2, 1, 2, 4), (np.cos(waves(2, 1, 2, 2, start=1)),
                                                           np.sin(waves(2, 1, 2, 2, start=1))), True)),
    "softcap": ("softcap", (waves(2, 3), 1.5)),
    "swiglu": ("swiglu", (waves(2, 2, 6),)),
    "softmax": ("softmax", (waves(2, 2, 3),)),
    "residual": ("residual", (waves(2, 3), waves(2, 3, start=1))),
    "residual_layernorm": ("residual_layernorm", (waves(2, 3), waves(2, 3, start=1), waves(3, start=2),
                                                  waves(3, start=3))),
    "residual_rmsnorm": ("residual_rmsnorm", (waves(2, 3), waves(2, 3, start=1), waves(3, start=2))),
    "attention, causal": ("attention", (waves(1, 2, 3, 2), waves(1, 2, 3, 2, start=1),
                                        waves(1, 2, 3, 2, start=2))),
    "attention, causal, S > T": ("attention", (waves(1, 1, 2, 3), waves(1, 1, 4, 3, start=1),
                                               waves(1, 1, 4, 3, start=2))),
    "attention, causal, S < T": ("attention", (waves(1, 1, 4, 3), waves(1, 1, 2, 3, start=1),
                                               waves(1, 1, 2, 3, start=2))),
    "attention, key mask": ("attention", (waves(2, 1, 2, 2), waves(2, 1, 3, 2, start=1),
                                          waves(2, 1, 3, 2, start=2), False,
                                          np.array([[True, False, True], [False, True, True]]))),
    "attention, grouped queries": ("attention", (waves(1, 4, 2, 2), waves(1, 2, 3, 2, start=1),
                                                 waves(1, 2, 3, 2, start=2))),
    "attention, segments": ("attention", (waves(1, 2, 3, 2), waves(1, 1, 4, 2, start=1),
                                          waves(1, 1, 4, 2, start=2), True, None, np.array([[1, 2, 2, 3]]))),
    "attention, grouped queries, dropout": ("attention", (
        waves(2, 2, 3, 2), waves(2, 1, 3, 2, start=1), waves(2, 1, 3, 2, start=2), True, None, None, 0.3,
        Key(5, step=1, site=9))),
    "dropout": ("dropout", (waves(2, 3, 4), 0.3, Key(5, step=3, example=2, site=7))),
    "cross_entropy": ("cross_entropy", (waves(2, 2, 3), np.array([[2, -100], [0, 2]]))),
    "cross_entropy, part of a batch": ("cross_entropy", (waves(3, 4), np.array([1, 3, 0]), 11, 3)),
    "linear_cross_entropy": ("linear_cross_entropy", (waves(2, 2, 3), waves(5, 3, start=1),
                                                      np.array([[2, -100], [0, 4]]), 7, -100, 3)),
    "penalty": ("penalty", (waves(2, 3), 0.3, 0.7)),
}


def stored_dy(shape):
    return waves(*shape, start=3.0)


ADAMW = {"lr": 0.1, "beta1": 0.9, "beta2": 0.95, "eps": 1e-3, "weight_decay": 0.2}
ADAMW_STEPS = 6


def adamw_gradient(step):
    """Of steps 1 to 6."""
    return waves(2, 3, start=10.0 * step) * 10.0 ** (step - 4)


def pytorch_adamw():
    """The weights after each of six steps, (6, 2, 3)."""
    import torch
    w = torch.from_numpy(waves(2, 3)).requires_grad_()
    optimizer = torch.optim.AdamW([w], lr=ADAMW["lr"], betas=(ADAMW["beta1"], ADAMW["beta2"]),
                                  eps=ADAMW["eps"], weight_decay=ADAMW["weight_decay"])
    weights = []
    for step in range(1, ADAMW_STEPS + 1):
        w.grad = torch.from_numpy(adamw_gradient(step))
        optimizer.step()
        weights.append(w.detach().numpy().copy())
    return np.array(weights)


def main():
    numbers = {}
    for label, (name, inputs) in STORED.items():
        y, gradients = pytorch_results(name, inputs, stored_dy)
        numbers[label] = {"y": y.ravel().tolist(), "gradients": [g.ravel().tolist() for g in gradients]}
    numbers["adamw"] = {"weights": pytorch_adamw().ravel().tolist()}
    lines = (f"{json.dumps(label)}: {json.dumps(value)}" for label, value in numbers.items())
    NUMBERS.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
