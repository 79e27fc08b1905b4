"""A GPT and the same GPT in PyTorch, given the same weights: loss, logits and every gradient agree.

The error of an array is its largest difference over the largest number that PyTorch, in float64, has in it.
"""

import numpy as np
import pytest

from npgpt import GPT, GPTConfig

torch = pytest.importorskip("torch")
F = torch.nn.functional

TOKENS = np.array([[3, 1, 4, 1, 5, 9], [2, 6, 5, 3, 5, 8], [0, 0, 7, 10, 7, 0]])
TARGETS = np.array([[1, 4, -100, 5, 9, 2], [6, 5, 3, 5, 8, -100], [-100, -100, 10, 7, 0, 0]])


def pytorch_logits(config, w, tokens):
    """w: name → tensor"""
    def norm(x, name):
        return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w.get(f"{name}.bias"), 1e-5)

    def linear(x, name):
        return F.linear(x, w[f"{name}.weight"].T, w.get(f"{name}.bias"))

    activation = {"gelu_tanh": lambda x: F.gelu(x, approximate="tanh"), "gelu_erf": F.gelu, "relu": F.relu}
    B, T, C = *tokens.shape, config.n_embd
    x = F.embedding(tokens, w["wte.weight"])
    if config.position == "learned":
        x = x + w["wpe.weight"][:T]
    else:
        angles = torch.arange(T)[:, None] / 10000 ** (torch.arange(0, C, 2, dtype=torch.float64) / C)
        x = x + torch.stack([angles.sin(), angles.cos()], -1).flatten(1)[:, :C]
    for n in range(config.n_layer):
        q, k, v = (part.view(B, T, config.n_head, -1).transpose(1, 2)
                   for part in linear(norm(x, f"h.{n}.ln_1"), f"h.{n}.attn.c_attn").chunk(3, -1))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(B, T, C)
        x = x + linear(y, f"h.{n}.attn.c_proj")
        h = activation[config.activation](linear(norm(x, f"h.{n}.ln_2"), f"h.{n}.mlp.c_fc"))
        x = x + linear(h, f"h.{n}.mlp.c_proj")
    return norm(x, "ln_f") @ w["wte.weight"].T


def error(actual, expected):
    expected = expected.detach().numpy()
    assert actual.shape == expected.shape
    return np.abs(actual - expected).max() / np.abs(expected).max()


def random_gpt(dtype, **options):
    """With weights of order 1, gains that are not 1 and biases that are not 0."""
    config = GPTConfig(vocab_size=11, block_size=8, n_layer=3, n_head=2, n_embd=10, **options)
    model, rng = GPT(config, dtype=dtype), np.random.default_rng(5)
    for name, parameter in model.parameters.items():
        noise = rng.standard_normal(parameter.shape)
        parameter.data[...] = noise * parameter.shape[0] ** -0.5 if noise.ndim == 2 else \
            noise + (1 if "ln" in name and name.endswith("weight") else 0)
    return model


OPTIONS = [{"bias": bias, "activation": activation, "position": position} for bias in (True, False)
           for activation in ("gelu_tanh", "gelu_erf", "relu") for position in ("learned", "sinusoidal")]


@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-12), ("float32", 1e-5)])
@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: " ".join(map(str, options.values())))
def test_loss_and_every_gradient_are_those_of_pytorch(options, dtype, tolerance):
    model = random_gpt(dtype, **options)
    w = {name: torch.from_numpy(p.data.astype("f8")).requires_grad_() for name, p in model.parameters.items()}
    logits = pytorch_logits(model.config, w, torch.from_numpy(TOKENS))
    expected = F.cross_entropy(logits.flatten(0, 1), torch.from_numpy(TARGETS).flatten(), ignore_index=-100)
    expected.backward()

    loss, saved = model.loss(TOKENS, TARGETS)
    model.backward(saved)
    assert loss.dtype == dtype and error(loss, expected) <= tolerance
    assert error(model.forward(TOKENS)[0], logits) <= tolerance
    for name, parameter in model.parameters.items():
        assert parameter.grad.dtype == dtype and error(parameter.grad, w[name].grad) <= tolerance, name


def test_the_gradient_of_the_logits_is_that_of_pytorch():
    model = random_gpt("float64")
    dlogits = np.random.default_rng(0).standard_normal((3, 6, 11))
    w = {name: torch.from_numpy(p.data.copy()).requires_grad_() for name, p in model.parameters.items()}
    pytorch_logits(model.config, w, torch.from_numpy(TOKENS)).backward(torch.from_numpy(dlogits))
    model.backward_logits(dlogits, model.forward(TOKENS)[1])
    for name, parameter in model.parameters.items():
        assert error(parameter.grad, w[name].grad) <= 1e-12, name
