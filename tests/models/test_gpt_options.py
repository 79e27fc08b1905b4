"""What must be true of a GPT whatever its options are, and what each of them changes in its parameters."""

import math

import gpt_options
import numpy as np
import pytest

from npgpt import GPT, GPTConfig, check_gradients
from npgpt.inspection.draw import Draw
from npgpt.tensor import Key


def gpt(**options):
    config = GPTConfig(vocab_size=13, block_size=8, n_layer=2, n_head=2, n_embd=8, **options)
    return GPT(config, dtype="float64")


def lively(options):
    """With weights of order 1, so that everything in the model acts."""
    model = GPT(GPTConfig(**gpt_options.SHAPE | options), dtype="float64")
    Draw(np.random.default_rng(0)).parameters(model)
    return model


def tokens(B, T, seed=0):
    return np.random.default_rng(seed).integers(0, gpt_options.SHAPE["vocab_size"], (B, T))


@pytest.mark.parametrize("options", [*gpt_options.ALONE, *gpt_options.together(12, seed=2)],
                         ids=gpt_options.label)
def test_with_every_option_gradients_are_right(options):
    """Dropout acts in every place; its masks stay as they are while the parameters are moved."""
    model = lively(options | {"attention_dropout": 0.2, "dropout": 0.1})
    x, y, key = tokens(2, 4), tokens(2, 4, seed=1), Key(1)
    check_gradients(lambda: model.loss(x, y, key), lambda dy, saved: model.backward(saved, dy),
                    parameters=model.parameters)


@pytest.mark.parametrize("options", [*gpt_options.ALONE, *gpt_options.together(12, seed=5)],
                         ids=gpt_options.label)
def test_with_every_option_a_future_token_never_changes_the_past(options):
    model, before = lively(options), tokens(3, 6)
    logits, _ = model.forward(before)
    for t in range(1, 6):
        changed = before.copy()
        changed[:, t:] = (changed[:, t:] + 1) % 11
        assert np.array_equal(model.forward(changed)[0][:, :t], logits[:, :t])


@pytest.mark.parametrize("options", [*gpt_options.ALONE, *gpt_options.together(12, seed=7)],
                         ids=gpt_options.label)
def test_with_every_option_a_packed_text_is_read_as_if_it_stood_alone(options):
    """Loss and gradients of three texts in one row, and one in another, are the sums of their own."""
    model, lengths = lively(options), [[3, 2, 1], [4]]
    x, y = tokens(2, 6), tokens(2, 6, seed=1)
    mask = np.array([[3, 3, 3, 1, 1, 2], [7, 7, 7, 7, 0, 0]])
    y[1, 4:] = -100
    logits, _ = model.forward(x, attention_mask=mask)
    loss, saved = model.loss(x, y, None, 10, mask)
    model.backward(saved)
    packed = model.flat.grad.copy()
    model.zero_grad()
    total = 0
    for row, parts in enumerate(lengths):
        for n in range(len(parts)):
            part = np.s_[row:row + 1, sum(parts[:n]):sum(parts[:n + 1])]
            np.testing.assert_allclose(logits[part], model.forward(x[part])[0], rtol=0, atol=1e-12)
            alone, saved = model.loss(x[part], y[part], None, 10)
            model.backward(saved)
            total += alone
    assert abs(loss - total) < 1e-13
    np.testing.assert_allclose(packed, model.flat.grad, rtol=0, atol=1e-12 * np.abs(packed).max())


@pytest.mark.parametrize("kind", ["bool", "uint8", "int32", "int64", "float32"])
def test_attention_gets_a_mask_in_the_types_that_its_twin_on_a_gpu_takes(kind):
    """Of another type it would be the formula's, which computes the same, slowly."""
    model, given = gpt(), []
    inner = model.h[1].forward
    model.h[1].forward = lambda x, key=None, **context: given.append(context) or inner(x, key, **context)
    padded = np.array([[0, 1, 1], [1, 1, 1]])
    for mask in (padded, padded * 2)[:1 if kind == "bool" else 2]:
        model.forward(tokens(2, 3), attention_mask=mask.astype(kind))
    assert given[0]["key_mask"].dtype == bool and given[0]["segments"] is None
    assert all(packed["segments"].dtype == "int64" and packed["key_mask"] is None for packed in given[1:])


def test_grouped_queries_and_gates_have_their_shapes_and_an_untied_head_its_name():
    parameters = gpt(n_kv_head=1, head_dim=6, n_inner=5, activation="swiglu", qk_norm=True, norm="rmsnorm",
                     position="rotary", tie_word_embeddings=False, qkv_bias=True, bias=False).parameters
    shapes = {name: parameter.shape for name, parameter in parameters.items() if "h.1" not in name}
    assert shapes == {
        "wte.weight": (13, 8), "h.0.ln_1.weight": (8,), "h.0.attn.c_attn.weight": (8, 24),
        "h.0.attn.c_attn.bias": (24,), "h.0.attn.q_norm.weight": (6,), "h.0.attn.k_norm.weight": (6,),
        "h.0.attn.c_proj.weight": (12, 8), "h.0.ln_2.weight": (8,), "h.0.mlp.c_fc.weight": (8, 10),
        "h.0.mlp.c_proj.weight": (5, 8), "ln_f.weight": (8,), "lm_head.weight": (13, 8)}


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("qkv_bias", [None, True, False])
@pytest.mark.parametrize("attn_proj_bias", [None, True, False])
def test_attentions_biases_are_as_the_others_unless_told_otherwise(bias, qkv_bias, attn_proj_bias):
    names = gpt(bias=bias, qkv_bias=qkv_bias, attn_proj_bias=attn_proj_bias).parameters
    assert ("h.1.mlp.c_fc.bias" in names) == ("h.1.ln_1.bias" in names) == bias
    assert ("h.1.attn.c_attn.bias" in names) == (bias if qkv_bias is None else qkv_bias)
    assert ("h.1.attn.c_proj.bias" in names) == (bias if attn_proj_bias is None else attn_proj_bias)


def test_operations_are_counted_by_the_weights_of_the_products():
    """Six for each weight but those of the embeddings, and attention's."""
    for options in ({}, {"n_kv_head": 1, "head_dim": 6, "n_inner": 5, "activation": "swiglu",
                         "position": "none", "norm": "rmsnorm", "tie_word_embeddings": False}):
        model = gpt(**options)
        products = sum(math.prod(p.shape) for name, p in model.parameters.items()
                       if len(p.shape) == 2 and name not in ("wte.weight", "wpe.weight"))
        head = 0 if options else 13 * 8
        attention = 2 * 12 * 2 * (options.get("head_dim") or 4) * 8
        assert model.config.flops_per_token == 6 * (products + head) + attention
