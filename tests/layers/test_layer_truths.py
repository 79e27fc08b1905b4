"""What must be true of single layers, of parameters and of their flat arrays."""

import inspect
import math

import numpy as np
import pytest

from npgpt import layers, ops
from npgpt.errors import ConfigError, NpgptError
from npgpt.kernels.heads import side_by_side
from npgpt.layers.attention import merge_heads, split_heads
from npgpt.layers.feed_forward import ACTIVATIONS
from npgpt.layers.module import Module, Parameter
from npgpt.layers.position import sinusoidal_table
from npgpt.tensor import Key


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


class Pair(Module):
    """Two linear maps and one more, used twice."""

    def __init__(self):
        self.first = layers.Linear(3, 4)
        self.parts = [layers.LayerNorm(4), layers.Linear(4, 2, bias=False)]
        self.again = self.first


def test_a_head_that_is_told_of_no_cap_caps_nothing():
    head = layers.LanguageModelHead(Parameter(5, 4, std=1.0)).initialise(dtype="float64")
    x    = 1e4 * normal(2, 3, 4)
    assert np.allclose(head.forward(x)[0], x @ head.weight.data.T, rtol=1e-12)


@pytest.mark.parametrize("softcap", [0.0, 2.0])
def test_a_heads_loss_is_a_share_of_the_items_that_it_is_told_of(softcap):
    head = layers.LanguageModelHead(Parameter(5, 4, std=1.0), softcap).initialise(dtype="float64")
    x, targets = normal(2, 3, 4), np.array([[0, 1, -100], [2, 4, -100]])
    (mean, whole), (part, saved) = head.loss(x, targets), head.loss(x, targets, 16)
    one = np.float64(1)
    assert float(part) == pytest.approx(float(mean) * 4 / 16)
    np.testing.assert_allclose(head.loss_backward(one, saved), head.loss_backward(one, whole) * 4 / 16)


# ---- parameters ----

def test_parameters_are_named_by_attributes_and_listed_once():
    pair = Pair()
    names = ["first.weight", "first.bias", "parts.0.weight", "parts.0.bias", "parts.1.weight"]
    assert list(pair.parameters) == names
    assert pair.parameters["first.weight"] is pair.again.weight


def test_a_module_shows_its_parameters_with_or_without_arrays():
    pair = Pair()
    shown = """Pair: 32 parameters
    first.weight    (3, 4)
    first.bias      (4,)
    parts.0.weight  (4,)
    parts.0.bias    (4,)
    parts.1.weight  (4, 2)"""
    assert repr(pair) == repr(pair.initialise()) == shown
    pair.freeze(lambda name: name != "first.weight")
    assert repr(pair).splitlines()[1:3] == ["    first.weight    (3, 4)  frozen", "    first.bias      (4,)"]
    assert repr(layers.Dropout(0.5)) == "Dropout: 0 parameters"


def test_parameters_and_gradients_are_views_into_two_flat_arrays_matrices_first():
    pair = Pair().initialise(dtype="float64")
    flat = pair.flat
    names = ["first.weight", "parts.1.weight", "first.bias", "parts.0.weight", "parts.0.bias"]
    assert list(flat.parameters) == names
    assert flat.decayed == 3 * 4 + 4 * 2 and flat.size == flat.decayed + 4 + 4 + 4
    flat.data[...] = np.arange(flat.size)
    flat.grad[...] = -np.arange(flat.size)
    start = 0
    for parameter in flat.parameters.values():
        numbers = np.arange(start, start + parameter.data.size).reshape(parameter.shape)
        assert np.array_equal(parameter.data, numbers) and np.array_equal(parameter.grad, -numbers)
        start += parameter.data.size
    assert start == flat.size


def test_the_gradient_of_an_untouched_parameter_is_zero_whatever_the_memory_held():
    linear = layers.Linear(3, 4).initialise()
    linear.flat._grad[...] = np.nan
    assert not linear.weight.grad.any()
    assert not linear.flat.grad.any()


def test_the_first_to_add_writes_and_the_next_adds():
    linear = layers.Linear(2, 2).initialise(dtype="float64")
    linear.flat._grad[...] = np.nan
    memory = linear.weight.unwritten_grad
    assert memory is not None
    linear.weight.add_grad(np.ones((2, 2)))
    assert linear.weight.unwritten_grad is None
    linear.weight.add_grad(np.ones((2, 2)))
    assert np.array_equal(linear.weight.grad, np.full((2, 2), 2.0)) and linear.weight.grad is memory


def test_what_an_op_wrote_into_the_unwritten_gradient_is_not_added_again():
    linear = layers.Linear(2, 2).initialise(dtype="float64")
    memory = linear.weight.unwritten_grad
    memory[...] = 3
    linear.weight.add_grad(memory)
    assert np.array_equal(linear.weight.grad, np.full((2, 2), 3.0))


def test_a_replicas_gradient_is_zero_again_when_it_has_come_to_its_place():
    layer = layers.Linear(3, 4, bias=False).initialise()
    replica, flat = layer.replica(), layer.flat.grad
    for times in (1, 2):
        replica.weight.add_grad(np.ones((3, 4), "float32"))
        replica.flat.settle()
        replica.flat.settle()
        assert (flat == times).all() and not replica.weight.grad.any()


def test_zero_grad_zeroes_every_gradient():
    pair = Pair().initialise(dtype="float64")
    pair.flat.grad[...] = 7
    pair.zero_grad()
    assert all(parameter.unset for parameter in pair.parameters.values())
    assert not pair.flat.grad.any()


def test_a_seed_gives_the_same_start_in_float32_and_float64():
    single, double = Pair().initialise(seed=3), Pair().initialise(seed=3, dtype="float64")
    assert single.flat.data.dtype == np.float32
    assert np.array_equal(single.flat.data, double.flat.data.astype("f4"))
    assert not np.array_equal(single.flat.data, Pair().initialise(seed=4).flat.data)


def test_initial_values_are_normal_for_matrices_one_for_gains_zero_for_biases():
    linear, norm = layers.Linear(300, 400, std=0.5).initialise(), layers.LayerNorm(9).initialise()
    z = linear.weight.data.ravel() / 0.5
    assert abs(z.mean()) < 5 / math.sqrt(z.size) and abs(z.std() - 1) < 5 / math.sqrt(2 * z.size)
    assert abs((abs(z) < 1).mean() - 0.6827) < 0.01
    assert not linear.bias.data.any() and (norm.weight.data == 1).all() and not norm.bias.data.any()


def test_an_unknown_dtype_is_refused():
    with pytest.raises(ConfigError, match="float16"):
        layers.Linear(2, 2).initialise(dtype="float16")


def test_an_unknown_device_is_refused():
    with pytest.raises(NpgptError, match="tpu"):
        layers.Linear(2, 2).initialise(device="tpu")


def test_a_parameter_remembers_how_it_begins():
    parameter = Parameter(2, 3, std=0.1)
    assert parameter.shape == (2, 3) and parameter.std == 0.1
    for what in ("data", "grad"):
        with pytest.raises(ConfigError, match=r"no array yet: initialise\(\) of the outermost module"):
            getattr(parameter, what)
    with pytest.raises(ConfigError, match=r"Parameter\(3, 4\), not \(\(3, 4\),\)"):
        Parameter((3, 4))


# ---- norms ----

@pytest.mark.parametrize("kind", [layers.LayerNorm, layers.RMSNorm])
def test_before_it_has_learned_a_norm_gives_rows_of_mean_square_one(kind):
    y, _ = kind(6).initialise(dtype="float64").forward(5 * normal(3, 6))
    np.testing.assert_allclose((y * y).mean(-1), 1, rtol=1e-5)


def test_layernorm_uses_its_eps():
    x = normal(2, 4)
    y, _ = layers.LayerNorm(4, eps=0.5).initialise(dtype="float64").forward(x)
    assert np.allclose(y.var(-1), x.var(-1) / (x.var(-1) + 0.5), rtol=1e-14)


# ---- attention ----

def test_heads_are_consecutive_columns():
    x = normal(2, 3, 12)
    q, k = split_heads(x, (3, 3))                             # C = 6, three heads of two
    assert q.shape == (2, 3, 3, 2)
    assert np.array_equal(q[:, 1], x[:, :, 2:4]) and np.array_equal(k[:, 2], x[:, :, 10:12])


def test_queries_may_have_more_heads_than_keys_and_values():
    x = normal(2, 3, 16)
    q, k, v = split_heads(x, (4, 2, 2))
    assert (q.shape, k.shape, v.shape) == ((2, 4, 3, 2), (2, 2, 3, 2), (2, 2, 3, 2))
    assert np.array_equal(k[:, 1], x[:, :, 10:12]) and np.array_equal(v[:, 0], x[:, :, 12:14])


@pytest.mark.parametrize("heads", [(3,), (3, 3, 3), (6, 1, 2)])
def test_merging_undoes_splitting(heads):
    x = normal(2, 5, sum(heads) * 2)
    assert np.array_equal(merge_heads(split_heads(x, heads)), x)


def test_heads_that_lie_side_by_side_are_merged_without_a_copy():
    q, k, v = side_by_side(normal(2, 4, 5, 3), *(normal(2, 2, 5, 3) for _ in range(2)))
    for n, part in enumerate((q, k, v)):
        part[...] = normal(*part.shape, seed=n)
    merged = merge_heads([q, k, v])
    assert np.shares_memory(merged, q) and np.shares_memory(merged, v)
    for parts in ([q, k, v], [q, v, k], [q, k, k], [q, k], [k, v], [q[:, :2], q[:, 2:], k, v],
                  [q, k[:, :, ::-1], v], [q, k.copy(), v]):
        assert np.array_equal(merge_heads(parts), merge_heads([part.copy() for part in parts]))
    q, k, v = side_by_side(*[normal(2, 2, 2, 3)] * 3)
    q[...], k[...], v[...] = (normal(2, 2, 2, 3, seed=n) for n in range(3))
    turned = [q, k.swapaxes(1, 2), v]                                         # begins where k does
    assert np.array_equal(merge_heads(turned), merge_heads([part.copy() for part in turned]))


def test_causal_attention_sees_no_later_position_and_the_other_kind_does():
    x = normal(2, 5, 6)
    changed = x.copy()
    changed[:, 3:] += 1
    for causal in (True, False):
        attention = layers.SelfAttention(6, 2, causal=causal, proj_std=1.0).initialise(dtype="float64")
        attention.c_attn.weight.data[...] = normal(6, 18)
        same = np.isclose(attention.forward(x)[0], attention.forward(changed)[0], rtol=0, atol=1e-13)
        assert same[:, :3].all() == causal and not same[:, 3:].all()


def test_a_hidden_position_is_not_attended_to():
    attention = layers.SelfAttention(6, 2, causal=False, proj_std=1.0).initialise(dtype="float64")
    x, mask = normal(1, 4, 6), np.array([[True, False, True, True]])
    changed = x.copy()
    changed[:, 1] += 5
    y, other = (attention.forward(values, key_mask=mask)[0] for values in (x, changed))
    assert np.allclose(y[:, [0, 2, 3]], other[:, [0, 2, 3]], rtol=0, atol=1e-15)


@pytest.mark.parametrize(("n_embd", "n_head"), [(6, 4), (2, 3)])
def test_heads_must_be_of_one_size(n_embd, n_head):
    with pytest.raises(ConfigError, match=f"{n_embd} is no multiple of {n_head}"):
        layers.SelfAttention(n_embd, n_head)


def test_equally_many_queries_must_share_a_key():
    with pytest.raises(ConfigError, match="n_head must be a multiple of n_kv_head.* 4 is no multiple of 3"):
        layers.SelfAttention(8, 4, 3)


# ---- dropout, feed-forward, positions, checkpointing ----

@pytest.mark.parametrize(("p", "key"), [(0.5, None), (0.0, Key(1))])
def test_dropout_without_a_key_or_with_p_zero_is_the_identity(p, key):
    x, dropout = normal(2, 3), layers.Dropout(p)
    y, saved = dropout.forward(x, key)
    assert y is x and dropout.backward(x, saved) is x


@pytest.mark.parametrize("p", [-0.1, 1.0, 1.5, math.nan])
def test_dropout_of_everything_or_of_less_than_nothing_is_refused(p):
    for layer in (layers.Dropout, lambda p: layers.SelfAttention(8, 2, attention_dropout=p)):
        with pytest.raises(ConfigError, match=f"dropout must be at least 0 and below 1, not {p}"):
            layer(p)


def test_dropout_with_a_key_drops():
    y, _ = layers.Dropout(0.5).forward(np.ones((4, 50)), Key(1))
    assert set(np.unique(y)) == {0.0, 2.0}


@pytest.mark.parametrize("kind", [layers.Block, layers.PostNormBlock, layers.ParallelBlock,
                                  layers.ParallelPostNormBlock])
def test_attention_and_feed_forward_of_a_block_drop_different_elements(kind):
    """And attention other probabilities: three keys."""
    def keys(saved):
        if isinstance(saved, Key):
            return [saved]
        return [key for part in saved for key in keys(part)] if isinstance(saved, tuple) else []

    parts = {"attn": layers.SelfAttention(8, 2, dropout=0.5, attention_dropout=0.5),
             "mlp": layers.FeedForward(8, dropout=0.5), "ln_1": layers.LayerNorm(8),
             "ln_2": layers.LayerNorm(8)}
    block = kind(**{name: parts[name] for name in inspect.signature(kind).parameters})
    used  = keys(block.initialise(dtype="float64").forward(normal(2, 5, 8), Key(1))[1])
    assert len(used) == len(set(used)) == 3


def test_an_unknown_activation_is_refused_and_the_known_ones_are_named():
    with pytest.raises(ConfigError, match=r"'none'.*gelu_tanh, gelu_erf, relu, "):
        layers.FeedForward(4, activation="none")


def test_an_activation_is_the_op_of_its_name():
    for name, pair in ACTIVATIONS.items():
        assert pair == (getattr(ops, f"{name}_forward"), getattr(ops, f"{name}_backward"))
        layer = layers.FeedForward(4, activation=name)
        assert (layer.act_forward, layer.act_backward) == pair


def test_feed_forward_is_four_times_as_wide_inside():
    feed_forward = layers.FeedForward(5)
    assert feed_forward.c_fc.weight.shape == (5, 20) and feed_forward.c_proj.weight.shape == (20, 5)
    gated = layers.FeedForward(5, 7, activation="swiglu")
    assert gated.c_fc.weight.shape == (5, 14) and gated.c_proj.weight.shape == (7, 5)


def test_sinusoidal_positions_are_sines_and_cosines():
    table = sinusoidal_table(np.arange(7), 5)
    for t in range(7):
        for i in range(5):
            angle = t / 10000 ** (2 * (i // 2) / 5)
            assert math.isclose(table[t, i], math.cos(angle) if i % 2 else math.sin(angle), abs_tol=1e-14)


def test_far_into_a_text_angles_are_as_exact_as_at_its_beginning():
    """An angle of 100,000 rounded to float32 before its sine is off by 0.004."""
    places, rotary = np.array([0, 3, 100_003]), layers.RotaryPosition(8)
    exact = rotary.rotation(places, np.zeros(1))
    angles = [[t * 10000 ** (-2 * i / 8) for i in range(4)] for t in places]
    np.testing.assert_allclose(exact, [np.cos(angles), np.sin(angles)], rtol=0, atol=1e-10)
    np.testing.assert_array_equal(rotary.rotation(places, np.zeros(1, "f4")), np.asarray(exact, "f4"))
    y, _ = layers.SinusoidalPosition().forward(np.zeros((1, 3, 8), "f4"), places)
    np.testing.assert_array_equal(y[0], sinusoidal_table(places, 8).astype("f4"))


def test_rates_are_stretched_for_longer_contexts():
    """All of them, or as Llama 3.1 those of the waves that are too long for the first context."""
    plain = layers.RotaryPosition(16).rates
    np.testing.assert_allclose(layers.RotaryPosition(16, scaling="linear", factor=8.0).rates, plain / 8)
    expected = []
    for rate in plain:
        turns = 64 / (2 * math.pi / rate)                                     # of the wave in 64 places
        kept  = 1 if turns > 4 else 0 if turns < 1 else (turns - 1) / (4 - 1)
        expected.append(rate * (kept + (1 - kept) / 8))
    llama = layers.RotaryPosition(16, scaling="llama3", factor=8.0, original_block_size=64)
    np.testing.assert_allclose(llama.rates, expected, rtol=1e-12)
    assert len({round(share, 3) for share in llama.rates / plain}) > 3        # all three kinds are there
    with pytest.raises(ConfigError, match="heads of 5 have none"):
        layers.RotaryPosition(5)


def test_learned_positions_differ_by_place_and_not_by_example():
    layer = layers.LearnedPosition(4, 3).initialise(dtype="float64")
    y, _ = layer.forward(np.zeros((2, 3, 3)), np.arange(3))
    assert np.array_equal(y[0], y[1]) and np.array_equal(y[0], layer.weight.data[:3])


@pytest.mark.parametrize("layer", [layers.LearnedPosition(7, 5), layers.SinusoidalPosition()])
def test_positions_begin_where_they_are_told_to(layer):
    layer.initialise(dtype="float64")
    x = normal(2, 7, 5)
    whole, _ = layer.forward(x, np.arange(7))
    for start, stop in ((0, 3), (3, 4), (4, 7)):
        y, saved = layer.forward(x[:, start:stop], np.arange(start, stop))
        assert np.array_equal(y, whole[:, start:stop])
        layer.backward(y, saved)
    for parameter in layer.parameters.values():
        assert np.allclose(parameter.grad, whole.sum(0), rtol=1e-14)          # each row from its own place


def test_checkpointing_keeps_the_names_and_only_the_input():
    block = layers.Block(layers.LayerNorm(6), layers.SelfAttention(6, 2), layers.LayerNorm(6),
                         layers.FeedForward(6))
    wrapped = layers.Checkpointed(block).initialise()
    assert wrapped.parameters == block.parameters
    x, key = normal(1, 2, 6).astype("f4"), Key(1)
    saved = wrapped.forward(x, key)[1]
    assert saved[0] is x and saved[1] is key and saved[2:] == ({},)
