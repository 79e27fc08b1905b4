"""The numbers and the examples that tests and `npgpt gradcheck` compute with can hide no bug: were they to
lose what makes them so, every other test would still pass.
"""

import dataclasses
import inspect

import numpy as np
import pytest

from npgpt import GPT, GPTConfig, layers
from npgpt.inspection import examples
from npgpt.inspection.draw import Draw
from npgpt.inspection.examples import EXAMPLES, LAYERS, MODELS, OPS, Sizes
from npgpt.models.config import ALLOWED
from npgpt.tensor.precision import map_arrays


@pytest.fixture(params=range(3))
def draw(request):
    return Draw(np.random.default_rng(request.param))


def test_normal_numbers_are_of_order_1(draw):
    x = draw.normal(40, 50)
    assert x.shape == (40, 50) and abs(x.mean()) < 0.1 and abs(x.std() - 1) < 0.1


def test_what_is_kept_from_a_kink_is_on_both_sides_and_at_least_a_hundredth_away(draw):
    x = draw.apart(40, 50)
    assert x.shape == (40, 50) and 0.01 <= abs(x).min() < 0.02 and abs(x.std() - 1) < 0.1
    assert 0.4 < (x > 0).mean() < 0.6


def test_gains_are_around_1_and_none_is_1(draw):
    gain = draw.gain(2000)
    assert abs(gain.mean() - 1) < 0.05 and abs(gain.std() - 0.5) < 0.05 and abs(gain - 1).min() >= 0.005


def test_rows_have_any_mean_and_a_spread_from_a_half_to_2(draw):
    x = draw.rows(30, 40, 6)
    assert x.shape == (30, 40, 6) and np.std(x.mean(-1)) > 0.8
    assert 0.5 <= x.std(-1).min() < 0.6 and 1.9 < x.std(-1).max() <= 2
    assert abs(draw.rows(3, 1)).max() < 9


def test_some_tokens_repeat_and_some_are_never_used(draw):
    tokens = draw.tokens(11, 20, 30)
    assert tokens.shape == (20, 30) and set(tokens.flat) == set(range(6))


def test_some_targets_do_not_count_and_the_last_is_the_last_token(draw):
    targets = draw.targets(11, 20, 30)
    assert targets.shape == (20, 30) and set(targets.flat) == {-100, *range(11)} and targets[-1, -1] == 10
    assert 0.2 < (targets == -100).mean() < 0.4
    assert draw.targets(11, 1).tolist() == [10]


def test_a_mask_hides_about_a_third_and_from_the_first_query_all(draw):
    mask = draw.key_mask(30, 40)
    assert mask.dtype == bool and 0.25 < (~mask).mean() < 0.35
    assert not mask[0, 0] and mask[1:, 0].any()


def test_segments_rise_by_at_most_1_and_are_of_several_lengths(draw):
    steps = np.diff(draw.segments(30, 40), axis=1)
    assert set(steps.flat) == {0, 1} and 0.3 < steps.mean() < 0.5


def test_no_parameter_is_what_it_is_at_first(draw):
    model = GPT(GPTConfig(50, 64, 1, 2, 32))
    fresh = {name: parameter.data.copy() for name, parameter in model.parameters.items()}
    draw.parameters(model)
    for name, parameter in model.parameters.items():
        values = parameter.data
        assert (values != fresh[name]).all(), name
        if values.ndim > 1:
            assert abs(values.std() * values.shape[0] ** 0.5 - 1) < 0.15, name
        else:
            gain = name.startswith(("h.0.ln", "ln_f")) and name.endswith("weight")
            assert abs(values.mean() - gain) < (0.4 if gain else 0.8), name
            assert (0.3 if gain else 0.6) < values.std() < (0.7 if gain else 1.4), name
    again = model.flat.data.copy()
    draw.parameters(model)
    assert (model.flat.data != again).all()


def test_all_sizes_are_different():
    assert len(set(Sizes())) == len(Sizes())


def example(label, seed=0):
    return EXAMPLES[label](Sizes(), np.random.default_rng(seed), "cpu")


@pytest.mark.parametrize("label", EXAMPLES)
def test_an_example_is_another_with_another_seed_and_has_no_float_twice(label):
    """Numbers that are all alike would hide which is used where."""
    arrays = []
    for case in (example(label, seed) for seed in (0, 1)):
        arrays.append([])
        map_arrays(arrays[-1].append, case.inputs)
        arrays[-1] += [parameter.data for parameter in case.parameters.values()]
    for one, other in zip(*arrays, strict=True):
        if one.dtype.kind == "f":
            assert (one != other).any() and len(set(one.flat)) == one.size


def choices(case):
    """Place and name of the inputs that could be left out and are not, and what stands for them then."""
    for place, option in enumerate(inspect.signature(case.forward).parameters.values()):
        if place < len(case.inputs) and option.default is not option.empty:
            value = case.inputs[place]
            if isinstance(value, np.ndarray) or value != option.default:
                yield place, option.name, option.default


@pytest.mark.parametrize("label", [*OPS, *LAYERS, "SequenceClassifier"])
def test_whatever_else_an_example_is_given_counts(label):
    """A key that drops nothing or a mask that hides nothing could not show what is wrong with them."""
    case = example(label)
    y, _ = case.forward(*case.inputs)
    for place, name, left_out in choices(case):
        inputs = [*case.inputs[:place], left_out, *case.inputs[place + 1:]]
        assert name == "rows" or (case.forward(*inputs)[0] != y).any(), name


def test_every_choice_of_an_op_is_in_an_example():
    offered, made = set(), set()
    for case in map(example, OPS):
        options  = inspect.signature(case.forward).parameters.values()
        offered |= {option.name for option in options if option.default is not option.empty}
        made    |= {name for _, name, _ in choices(case)}
    assert offered - made == {"ignore_index"}


@pytest.mark.parametrize("layer", [layers.SelfAttention, layers.FeedForward])
def test_every_choice_of_a_layer_is_in_an_example(layer, monkeypatch):
    begin, made = layer.__init__, set()
    signature   = inspect.signature(begin)

    def noted(*args, **options):
        made.update(signature.bind(*args, **options).arguments)
        begin(*args, **options)
    monkeypatch.setattr(layer, "__init__", noted)
    for label in LAYERS:
        example(label)
    assert signature.parameters.keys() - made == {"proj_std"}                 # of its initial values


def test_of_what_is_frozen_that_alone_is_learned_which_the_name_tells():
    assert [*example("Linear, frozen but for its bias").parameters] == ["bias"]
    assert [*example("LoRALinear, frozen but for the addition").parameters] == ["lora_A", "lora_B"]
    names = example("GPT, its last block and norm alone").parameters
    assert {name[:4] for name in names} == {"h.1.", "ln_f"}


def test_every_choice_of_a_model_is_in_an_example_where_it_counts(monkeypatch):
    """But for numbers that no gradient depends on by themselves; and checkpointing, which changes nothing."""
    made, values = set(), {name: set() for name in ("block", "norm", "position")}
    sizes = {"vocab_size", "block_size", "n_layer", "n_head", "n_embd"}

    def loss(label, left_out=None):
        def config(*shape, **options):
            asked.update(options)
            made = GPTConfig(*shape, **{name: value for name, value in options.items() if name != left_out})
            for name in values:
                values[name].add(getattr(made, name))
            return made
        monkeypatch.setattr(examples, "GPTConfig", config)
        case = example(label)
        return case.forward(*case.inputs)[0]

    for label in MODELS:
        asked = {}
        whole = loss(label)
        made |= {name for name in asked.keys() - sizes if name == "gradient_checkpointing"
                 or (loss(label, name) != whole).any()}
    offered = {field.name for field in dataclasses.fields(GPTConfig)} - sizes
    assert offered - made == {"norm_eps", "rope_theta", "rope_low_freq_factor", "rope_high_freq_factor",
                              "rope_original_block_size"}
    assert values == {name: set(ALLOWED[name]) for name in values}


STRAIGHT = ("linear", "lora", "embedding", "relu", "rotary", "dropout", "residual")


@pytest.mark.parametrize("label", [label for label in OPS if label.split(",")[0] not in STRAIGHT])
def test_what_bends_is_shown_where_it_bends(label):
    """Inputs a tenth larger have another gradient: where an op is all but a straight line, or flat, the
    check takes its derivative for that of the line."""
    case, slopes = example(label), []
    for factor in (1, 1.1):
        y, saved = case.forward(factor * case.inputs[0], *case.inputs[1:])
        gradient = case.backward(np.random.default_rng(1).standard_normal(y.shape), saved)
        slopes.append(gradient[0] if isinstance(gradient, tuple) else gradient)
    change = np.linalg.norm(slopes[1] - slopes[0]) / np.linalg.norm(slopes[0])
    assert 0.02 < change < 1, f"draw inputs at which {label} bends, or name it in STRAIGHT if it never does"
