"""The numbers that tests and `npgpt gradcheck` compute with can hide no bug: were they to lose what makes
them so, every other test would still pass.
"""

import numpy as np
import pytest

from npgpt import GPT, GPTConfig
from npgpt.inspection.draw import Draw
from npgpt.inspection.examples import LAYERS, OPS, Sizes
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
    assert np.isfinite(draw.rows(3, 1)).all()


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


@pytest.mark.parametrize("label", [*OPS, *LAYERS])
def test_an_example_is_another_with_another_seed_and_has_no_float_twice(label):
    """Numbers that are all alike would hide which is used where."""
    arrays = []
    for seed in (0, 1):
        case = {**OPS, **LAYERS}[label](Sizes(), np.random.default_rng(seed), "cpu")
        arrays.append([])
        map_arrays(arrays[-1].append, case.inputs)
        arrays[-1] += [parameter.data for parameter in case.parameters.values()]
    for one, other in zip(*arrays, strict=True):
        if one.dtype.kind == "f":
            assert (one != other).any() and len(set(one.flat)) == one.size
