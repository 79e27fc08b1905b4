"""What must be true of a GPT."""

import dataclasses
import math
import weakref

import numpy as np
import pytest

from npgpt import GPT, GPTConfig
from npgpt.errors import DataError
from npgpt.tensor import Key

CONFIG = GPTConfig(vocab_size=13, block_size=8, n_layer=2, n_head=2, n_embd=8)


def gpt(dtype="float64", seed=1, **options):
    return GPT(dataclasses.replace(CONFIG, **options), seed=seed, dtype=dtype)


def lively(model):
    """Weights of order 1 instead of 0.02, so that everything in the model acts."""
    rng = np.random.default_rng(0)
    for parameter in model.parameters.values():
        parameter.data += 0.4 * rng.standard_normal(parameter.shape)
    return model


def tokens(B=3, T=6, seed=0, V=13):
    return np.random.default_rng(seed).integers(0, V, (B, T))


def gradients(model, *arguments, dloss=1.0, **options):
    model.zero_grad()
    loss, saved = model.loss(*arguments, **options)
    model.backward(saved, dloss)
    return loss, {name: parameter.grad.copy() for name, parameter in model.parameters.items()}


# ---- names, layout and initial values ----

GPT2_NAMES = ["wte.weight", "wpe.weight",
              *(f"h.{n}.{name}" for n in (0, 1) for name in (
                  "ln_1.weight", "ln_1.bias", "attn.c_attn.weight", "attn.c_attn.bias", "attn.c_proj.weight",
                  "attn.c_proj.bias", "ln_2.weight", "ln_2.bias", "mlp.c_fc.weight", "mlp.c_fc.bias",
                  "mlp.c_proj.weight", "mlp.c_proj.bias")),
              "ln_f.weight", "ln_f.bias"]


@pytest.mark.parametrize("gradient_checkpointing", [False, True])
def test_parameters_have_the_names_and_shapes_of_gpt2(gradient_checkpointing):
    parameters = gpt(gradient_checkpointing=gradient_checkpointing).parameters
    assert list(parameters) == GPT2_NAMES
    assert parameters["wte.weight"].data.shape == (13, 8) and parameters["wpe.weight"].data.shape == (8, 8)
    assert parameters["h.1.attn.c_attn.weight"].data.shape == (8, 24)
    assert parameters["h.1.mlp.c_fc.weight"].data.shape == (8, 32)
    assert parameters["h.1.mlp.c_proj.weight"].data.shape == (32, 8)


def test_without_bias_and_with_sinusoidal_positions_nothing_of_them_is_learned():
    names = list(gpt(bias=False, position="sinusoidal").parameters)
    assert names == [name for name in GPT2_NAMES if not name.endswith("bias") and name != "wpe.weight"]


def test_gpt2_124m_has_its_number_of_parameters():
    class Shapes(GPT):
        def initialise(self, *_):
            return self
    assert sum(math.prod(p.shape) for p in Shapes(GPTConfig()).parameters.values()) == 124_439_808


def test_parameters_and_gradients_are_views_into_flat_arrays_matrices_first():
    model = gpt()
    gradients(model, tokens(), tokens(seed=1))
    flat = model.flat
    for array, kind in ((flat.data, "data"), (flat.grad, "grad")):
        views = [getattr(parameter, kind) for parameter in flat.parameters.values()]
        assert all(np.shares_memory(view, array) for view in views)
        assert np.array_equal(np.concatenate([view.ravel() for view in views]), array)
    dimensions = [parameter.data.ndim for parameter in flat.parameters.values()]
    assert dimensions == sorted(dimensions, reverse=True) and set(dimensions) == {1, 2}
    assert flat.decayed == sum(p.data.size for p in flat.parameters.values() if p.data.ndim == 2)


def test_initial_values_are_those_of_gpt2():
    model = GPT(GPTConfig(vocab_size=500, block_size=64, n_layer=3, n_head=4, n_embd=64))
    for name, parameter in model.parameters.items():
        values = parameter.data.astype("f8")
        if values.ndim == 2:
            std = 0.02 / math.sqrt(2 * 3) if name.endswith("c_proj.weight") else 0.02
            assert abs(values.std() / std - 1) < 5 / math.sqrt(2 * values.size), name
            assert abs(values.mean()) < 5 * std / math.sqrt(values.size), name
        else:
            assert (values == (1 if name.endswith("weight") else 0)).all(), name


def test_a_seed_gives_the_same_start_in_float32_and_float64():
    single, double = gpt("float32"), gpt("float64")
    assert np.array_equal(single.flat.data, double.flat.data.astype("f4"))
    assert not np.array_equal(single.flat.data, gpt("float32", seed=2).flat.data)


def test_another_layer_changes_no_other_initial_value():
    """But the scale of the residual projections, which is a function of the number of layers."""
    two, three = gpt().parameters, gpt(n_layer=3).parameters
    for name, parameter in two.items():
        scale = math.sqrt(3 / 2) if name.endswith("c_proj.weight") else 1
        assert np.allclose(parameter.data, three[name].data * scale, rtol=1e-15, atol=0), name


def test_no_two_matrices_begin_alike():
    matrices = [p.data.ravel()[:32] / p.data.std() for p in gpt().parameters.values() if p.data.ndim == 2]
    for n, first in enumerate(matrices):
        assert all(abs(np.corrcoef(first, second)[0, 1]) < 0.8 for second in matrices[:n])


@pytest.mark.parametrize("options", [{}, {"bias": False, "position": "sinusoidal", "activation": "relu"}])
def test_the_loss_of_a_fresh_model_is_the_logarithm_of_the_vocabulary(options):
    model = GPT(GPTConfig(vocab_size=65, block_size=32, n_layer=4, n_head=4, n_embd=64, **options))
    loss, _ = model.loss(tokens(8, 32, V=65), tokens(8, 32, seed=1, V=65))
    assert abs(float(loss) - math.log(65)) < 0.1


def test_flops_per_token_counts_the_weights_that_multiply_and_attention():
    config  = GPTConfig(vocab_size=50, block_size=16, n_layer=3, n_head=2, n_embd=8)
    weights = sum(math.prod(parameter.shape) for name, parameter in GPT(config).parameters.items()
                  if len(parameter.shape) == 2 and name != "wpe.weight")
    attention = 3 * 2 * (2 * 16 * 8) * 3        # L, two products of 2 T C, once forward and twice backward
    assert config.flops_per_token == 6 * weights + attention


# ---- forward ----

def test_a_future_token_never_changes_the_past():
    model, before = lively(gpt()), tokens()
    logits, _ = model.forward(before)
    for t in range(1, 6):
        changed = before.copy()
        changed[:, t:] = (changed[:, t:] + 1) % 13
        other, _ = model.forward(changed)
        assert np.array_equal(other[:, :t], logits[:, :t])
        assert (other[:, t] != logits[:, t]).any(-1).all()


def test_examples_of_a_batch_do_not_see_each_other():
    model, x = lively(gpt()), tokens()
    logits, _ = model.forward(x)
    for b in range(3):
        assert np.allclose(model.forward(x[b:b + 1])[0], logits[b:b + 1], rtol=0, atol=1e-12)


def test_the_loss_is_the_mean_cross_entropy_of_the_logits():
    model, x, y = lively(gpt()), tokens(), tokens(seed=1)
    y[0, :4] = -100
    logits, _ = model.forward(x)
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    expected = -np.mean([log_p[b, t, y[b, t]] for b in range(3) for t in range(6) if y[b, t] != -100])
    loss, _ = model.loss(x, y)
    assert np.isclose(loss, expected, rtol=1e-13) and np.ndim(loss) == 0


def test_the_two_ways_back_agree():
    """Through the logits and their gradient, and through the loss that never has them all."""
    model, x, y = lively(gpt()), tokens(), tokens(seed=1)
    _, expected = gradients(model, x, y)
    logits, saved = model.forward(x)
    p = np.exp(logits - logits.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    model.zero_grad()
    model.backward_logits((p - np.eye(13)[y]) / y.size, saved)
    for name, parameter in model.parameters.items():
        assert np.allclose(parameter.grad, expected[name], rtol=0, atol=1e-12), name


def test_next_logits_are_those_after_the_last_token_and_read_the_last_block_only():
    model = lively(gpt())
    long = tokens(2, 20)
    assert np.allclose(model.next_logits(long), model.forward(long[:, -8:])[0][:, -1], rtol=0, atol=1e-12)
    short = long[:, :3]
    assert np.allclose(model.next_logits(short), model.forward(short)[0][:, -1], rtol=0, atol=1e-12)


def test_unsigned_and_small_integers_are_tokens_too():
    model, x = lively(gpt()), tokens()
    logits, _ = model.forward(x)
    for dtype in ("uint16", "int32", "uint8"):
        assert np.array_equal(model.forward(x.astype(dtype))[0], logits)


# ---- gradients ----

def test_all_targets_ignored_give_loss_zero_and_gradients_zero():
    loss, all_gradients = gradients(lively(gpt()), tokens(), np.full((3, 6), -100))
    assert loss == 0 and not any(gradient.any() for gradient in all_gradients.values())


def test_a_backward_adds_to_the_gradients_that_are_there():
    model, x, y = lively(gpt()), tokens(), tokens(seed=1)
    _, once = gradients(model, x, y)
    _, saved = model.loss(x, y)
    model.backward(saved)
    for name, parameter in model.parameters.items():
        assert np.allclose(parameter.grad, 2 * once[name], rtol=1e-14, atol=1e-16), name


def test_backward_drops_what_it_has_passed():
    """So that gradients may take its place: first the head's, then block by block."""
    model    = lively(gpt())
    _, saved = model.loss(tokens(), tokens(seed=1))
    _, body, head = saved
    blocks  = body[1]
    assert len(blocks) == len(model.h) == 2
    watched = [weakref.ref(next(part for part in arrays(parts) if part.shape[-1] == width))
               for parts, width in ((head, 13), (blocks[0], 24), (blocks[1], 24))]     # logits, and q, k, v
    del body, head
    left = []

    def after_block(block):
        left.append([array() is not None for array in watched])

    model.backward(saved, after_block=after_block)
    assert left == [[False, True, False], [False, False, False]]
    assert saved == ["loss"] and not blocks
    with pytest.raises(DataError, match="a backward has used this `saved` up already"):
        model.backward(saved)
    with pytest.raises(DataError, match="this `saved` is from loss, .* takes that from forward"):
        model.backward_logits(np.ones((3, 6, 13)), model.loss(tokens(), tokens())[1])
    _, saved = model.forward(tokens())
    with pytest.raises(DataError, match="this `saved` is from forward, .* takes that from loss"):
        model.backward(saved)
    model.backward_logits(np.ones((3, 6, 13)), saved)
    with pytest.raises(DataError, match="let forward or loss make another"):
        model.backward_logits(np.ones((3, 6, 13)), saved)


def arrays(saved):
    """Those that own their memory, of what forward saved."""
    if isinstance(saved, (tuple, list)):
        for part in saved:
            yield from arrays(part)
    elif isinstance(saved, np.ndarray):
        yield saved if saved.base is None else saved.base


def test_a_backward_that_is_given_dloss_first_says_what_it_takes():
    model = gpt()
    loss, saved = model.loss(tokens(), tokens())
    with pytest.raises(DataError, match="backward takes `saved`, the second thing that forward or loss"):
        model.backward(loss, saved)


def test_there_is_no_backward_through_a_cache():
    model = gpt()
    logits, saved = model.forward(tokens(), kv_cache=model.new_cache(8))
    with pytest.raises(DataError, match="no backward through a KV cache"):
        model.backward_logits(logits, saved)


def test_both_ways_back_tell_of_each_block_that_is_complete():
    model, passed = gpt(), []
    logits, saved = model.forward(tokens())
    model.backward_logits(logits, saved, passed.append)
    _, saved = model.loss(tokens(), tokens())
    model.backward(saved, after_block=passed.append)
    assert passed == [*reversed(model.h)] * 2


def test_gradients_are_proportional_to_dloss():
    model, x, y = lively(gpt()), tokens(), tokens(seed=1)
    _, one = gradients(model, x, y)
    _, three = gradients(model, x, y, dloss=3.0)
    assert all(np.allclose(three[name], 3 * one[name], rtol=1e-12, atol=1e-14) for name in one)


def test_zero_grad_forgets_even_garbage():
    model, x, y = lively(gpt()), tokens(), tokens(seed=1)
    _, clean = gradients(model, x, y)
    model.flat._grad[...] = np.nan
    _, dirty = gradients(model, x, y)
    assert all(np.array_equal(clean[name], dirty[name]) for name in clean)
    model.zero_grad()
    assert not model.flat.grad.any()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_gradient_checkpointing_changes_no_bit(dropout, dtype):
    plain = lively(gpt(dtype, dropout=dropout))
    checkpointed = lively(gpt(dtype, dropout=dropout, gradient_checkpointing=True))
    x, y, key = tokens(), tokens(seed=1), Key(1, step=4, example=8)
    loss, expected = gradients(plain, x, y, key=key)
    other_loss, actual = gradients(checkpointed, x, y, key=key)
    assert loss == other_loss
    assert all(np.array_equal(actual[name], expected[name]) for name in expected)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_the_parts_of_a_batch_add_up_to_the_whole(dropout):
    model, x, y, key = lively(gpt(dropout=dropout)), tokens(5), tokens(5, seed=1), Key(3, step=2, example=10)
    y[1, :5] = y[4] = -100
    count = int((y != -100).sum())
    loss, whole = gradients(model, x, y, key=key)
    model.zero_grad()
    total = 0.0
    for part in (slice(0, 1), slice(1, 4), slice(4, 5)):
        part_loss, saved = model.loss(x[part], y[part], key._replace(example=10 + part.start), count)
        model.backward(saved)
        total += part_loss
    assert np.isclose(total, loss, rtol=1e-13)
    for name, parameter in model.parameters.items():
        assert np.allclose(parameter.grad, whole[name], rtol=0, atol=1e-13), name


def test_dropout_acts_in_every_place_and_only_with_a_key():
    model, x, y = lively(gpt(dropout=0.3)), tokens(), tokens(seed=1)
    silent = lively(gpt())
    assert model.loss(x, y)[0] == silent.loss(x, y)[0]
    assert model.loss(x, y, Key(1))[0] == model.loss(x, y, Key(1))[0] != model.loss(x, y, Key(1, step=1))[0]


@pytest.mark.parametrize("block", ["pre", "post", "parallel", "parallel_post"])
def test_no_two_places_drop_by_the_same_key(block):
    model    = gpt(block=block, dropout=0.3, attention_dropout=0.2)
    _, saved = model.loss(tokens(), tokens(seed=1), Key(1, step=4, example=8))
    keys = list(keys_in(saved))
    assert len(keys) == len(set(keys)) == 1 + 2 * 3    # the embeddings; in a block attention and two sums
    assert {key._replace(site=0) for key in keys} == {Key(1, step=4, example=8)}


def keys_in(saved):
    """Every key of what forward saved."""
    if isinstance(saved, Key):
        yield saved
    elif isinstance(saved, (tuple, list)):
        for part in saved:
            yield from keys_in(part)


def test_forward_and_loss_leave_gradients_and_tokens_alone():
    model, x, y = lively(gpt()), tokens(), tokens(seed=1)
    x.flags.writeable = y.flags.writeable = False
    model.loss(x, y), model.forward(x)
    assert all(parameter.unset for parameter in model.parameters.values())


def test_float32_stays_float32_through_the_whole_step():
    _, all_gradients = gradients(lively(gpt("float32", dropout=0.1)), tokens(), tokens(seed=1), key=Key(1))
    assert {gradient.dtype for gradient in all_gradients.values()} == {np.dtype("f4")}
