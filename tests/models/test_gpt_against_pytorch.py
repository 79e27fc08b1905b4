"""A GPT and the same GPT in PyTorch, given the same weights: loss, logits and every gradient agree, for each
option alone and for many together.

The error of an array is its largest difference over the largest number that PyTorch, in float64, has in it;
of a gradient all but zero, as the key bias's is, over a hundredth of the largest gradient in the model.
"""

import math

import gpt_options
import numpy as np
import pytest

from npgpt import GPT, GPTConfig

torch = pytest.importorskip("torch")
F = torch.nn.functional

TOKENS = np.array([[3, 1, 4, 1, 5, 9], [2, 6, 5, 3, 5, 8], [0, 0, 7, 10, 7, 0]])
TARGETS = np.array([[1, 4, -100, 5, 9, 2], [6, 5, 3, 5, 8, -100], [-100, -100, 10, 7, 0, 0]])
PADDING = np.array([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1], [0, 1, 1, 0, 1, 1]])


def pytorch_logits(c, w, tokens, mask=None):
    """c: GPTConfig.  w: name → tensor.  mask: (B, T), 0 hides a token"""
    B, T = tokens.shape
    H, G, D = c.n_head, c.kv_heads, c.head_size
    mask    = torch.ones(B, T, dtype=torch.bool) if mask is None else mask.bool()
    places  = (mask.cumsum(1) - 1).clamp(min=0).double()                      # (B, T)

    def norm(x, name, kind=c.norm):
        if kind == "rmsnorm":
            return F.rms_norm(x, x.shape[-1:], w[f"{name}.weight"], c.norm_eps)
        return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w.get(f"{name}.bias"), c.norm_eps)

    def linear(x, name):
        return F.linear(x, w[f"{name}.weight"].T, w.get(f"{name}.bias"))

    def rate(i):
        """Of rotary pair i, as the papers write it."""
        theta = c.rope_theta ** (-2 * i / D)
        if c.rope_scaling == "linear":
            return theta / c.rope_factor
        if c.rope_scaling == "llama3":
            wavelength = 2 * math.pi / theta
            low  = c.rope_original_block_size / c.rope_low_freq_factor
            high = c.rope_original_block_size / c.rope_high_freq_factor
            if wavelength > low:
                return theta / c.rope_factor
            if wavelength > high:
                smooth = (c.rope_original_block_size / wavelength - c.rope_low_freq_factor) \
                    / (c.rope_high_freq_factor - c.rope_low_freq_factor)
                return (1 - smooth) * theta / c.rope_factor + smooth * theta
        return theta

    def rotated(x):
        """Each pair of channels times a 2 × 2 rotation matrix."""
        y = x.clone()
        for i in range(D // 2):
            a, b  = (2 * i, 2 * i + 1) if c.rope_interleaved else (i, i + D // 2)
            angle = (places * rate(i))[:, None]                               # (B, 1, T)
            y[..., a] = x[..., a] * angle.cos() - x[..., b] * angle.sin()
            y[..., b] = x[..., a] * angle.sin() + x[..., b] * angle.cos()
        return y

    def attention(x, name):
        q, k, v = (part.view(B, T, -1, D).transpose(1, 2)
                   for part in linear(x, f"{name}.c_attn").split([H * D, G * D, G * D], -1))
        if c.qk_norm:
            q, k = norm(q, f"{name}.q_norm", "rmsnorm"), norm(k, f"{name}.k_norm", "rmsnorm")
        if c.position == "rotary":
            q, k = rotated(q), rotated(k)
        k, v = k.repeat_interleave(H // G, 1), v.repeat_interleave(H // G, 1)
        sees = torch.ones(T, T, dtype=torch.bool).tril() & mask[:, None, None, :]
        scores = (q @ k.transpose(-1, -2) / D ** 0.5).masked_fill(~sees, -1e30)
        y = (torch.softmax(scores, -1) * sees) @ v                            # who sees nothing gets nothing
        return linear(y.transpose(1, 2).reshape(B, T, H * D), f"{name}.c_proj")

    def feed_forward(x, name):
        h = linear(x, f"{name}.c_fc")
        if c.activation == "swiglu":
            gate, up = h.chunk(2, -1)
            return linear(F.silu(gate) * up, f"{name}.c_proj")
        bend = {"gelu_tanh": lambda x: F.gelu(x, approximate="tanh"), "gelu_erf": F.gelu, "relu": F.relu}
        return linear(bend[c.activation](h), f"{name}.c_proj")

    x = F.embedding(tokens, w["wte.weight"])
    if c.position == "learned":
        x = x + w["wpe.weight"][places.long()]
    if c.position == "sinusoidal":
        angles = places[..., None] / 10000 ** (torch.arange(0, c.n_embd, 2, dtype=torch.float64) / c.n_embd)
        x = x + torch.stack([angles.sin(), angles.cos()], -1).flatten(2)[..., :c.n_embd]
    for n in range(c.n_layer):
        h = f"h.{n}."
        if c.block == "pre":
            x = x + attention(norm(x, h + "ln_1"), h + "attn")
            x = x + feed_forward(norm(x, h + "ln_2"), h + "mlp")
        elif c.block == "post":
            x = norm(x + attention(x, h + "attn"), h + "ln_1")
            x = norm(x + feed_forward(x, h + "mlp"), h + "ln_2")
        elif c.block == "parallel":
            x = x + attention(norm(x, h + "ln_1"), h + "attn") + feed_forward(norm(x, h + "ln_1"), h + "mlp")
        else:
            x = norm(x + attention(x, h + "attn") + feed_forward(x, h + "mlp"), h + "ln_1")
    if "post" not in c.block:
        x = norm(x, "ln_f")
    logits = x @ w["wte.weight" if c.tie_word_embeddings else "lm_head.weight"].T
    return c.logit_softcap * (logits / c.logit_softcap).tanh() if c.logit_softcap else logits


def error(actual, expected, at_least=0.0):
    expected = expected.detach().numpy()
    assert actual.shape == expected.shape
    return np.abs(actual - expected).max() / max(np.abs(expected).max(), at_least)


def random_gpt(dtype, **options):
    """With weights of order 1, gains that are not 1 and biases that are not 0."""
    config = GPTConfig(**gpt_options.SHAPE | options)
    model, rng = GPT(config, dtype=dtype), np.random.default_rng(5)
    for parameter in model.parameters.values():
        noise = rng.standard_normal(parameter.shape)
        parameter.data[...] = noise * parameter.shape[0] ** -0.5 if noise.ndim == 2 else \
            0.5 * noise + parameter.constant
    return model


def tensors(model):
    return {name: torch.from_numpy(parameter.data.astype("f8")).requires_grad_()
            for name, parameter in model.parameters.items()}


def parameters_agree(model, w, tolerance):
    largest = max(float(tensor.grad.abs().max()) for tensor in w.values())
    for name, parameter in model.parameters.items():
        assert parameter.grad.dtype == model.flat.data.dtype, name
        assert error(parameter.grad, w[name].grad, largest / 100) <= tolerance, name


@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-12), ("float32", 1e-5)])
@pytest.mark.parametrize("options", [{}, *gpt_options.ALONE, *gpt_options.together(40)],
                         ids=gpt_options.label)
def test_loss_and_every_gradient_are_those_of_pytorch(options, dtype, tolerance):
    model = random_gpt(dtype, **options)
    w = tensors(model)
    logits = pytorch_logits(model.config, w, torch.from_numpy(TOKENS))
    expected = F.cross_entropy(logits.flatten(0, 1), torch.from_numpy(TARGETS).flatten(), ignore_index=-100)
    expected.backward()

    loss, saved = model.loss(TOKENS, TARGETS)
    model.backward(saved)
    assert loss.dtype == dtype and error(loss, expected) <= tolerance
    assert error(model.forward(TOKENS)[0], logits) <= tolerance
    parameters_agree(model, w, tolerance)


@pytest.mark.parametrize("options", [{}, *gpt_options.together(12, seed=1)], ids=gpt_options.label)
def test_padding_is_seen_by_nobody_and_takes_no_place(options):
    """Real tokens only are looked at: what stands at padding is nobody's business."""
    model = random_gpt("float64", **options)
    w = tensors(model)
    logits = pytorch_logits(model.config, w, torch.from_numpy(TOKENS), torch.from_numpy(PADDING))
    targets = np.where(PADDING, TARGETS, -100)
    F.cross_entropy(logits.flatten(0, 1), torch.from_numpy(targets).flatten(), ignore_index=-100).backward()
    assert error(model.forward(TOKENS, attention_mask=PADDING)[0], logits) <= 1e-12
    _, saved = model.loss(TOKENS, targets, attention_mask=PADDING)
    model.backward(saved)
    parameters_agree(model, w, 1e-12)


@pytest.mark.parametrize("options", [{}, {"logit_softcap": 2.0, "tie_word_embeddings": False}],
                         ids=gpt_options.label)
def test_the_gradient_of_the_logits_is_that_of_pytorch(options):
    model = random_gpt("float64", **options)
    dlogits = np.random.default_rng(0).standard_normal((3, 6, 11))
    w = tensors(model)
    pytorch_logits(model.config, w, torch.from_numpy(TOKENS)).backward(torch.from_numpy(dlogits))
    model.backward_logits(dlogits, model.forward(TOKENS)[1])
    parameters_agree(model, w, 1e-12)
