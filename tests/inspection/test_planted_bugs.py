"""The gradient check catches planted bugs, and names what is wrong."""

import re

import numpy as np
import pytest
from inspection.test_gradient_check import message_of, normal, scaled

from npgpt import check_gradients, ops
from npgpt.layers import Linear
from npgpt.layers.module import Module, Parameter
from npgpt.ops.layernorm import layernorm_backward, layernorm_forward


def test_scrambled_dk_of_attention_is_caught():
    def backward(dy, saved):
        dq, dk, dv = ops.attention_backward(dy, saved)
        return dq, dk[:, :, ::-1], dv
    text = message_of(ops.attention_forward, backward, *(normal(2, 2, 3, 4, seed=n) for n in range(3)))
    assert "the gradient of k is wrong" in text


def test_a_layernorm_that_is_right_for_constant_gamma_only_is_caught():
    def backward(dy, saved):
        x, gamma, _, mean, rstd = saved
        x_hat = (x - mean) * rstd
        dx = gamma * rstd * (dy - dy.mean(-1, keepdims=True) - x_hat * (dy * x_hat).mean(-1, keepdims=True))
        return dx, (dy * x_hat).sum(0), dy.sum(0)
    x, beta = normal(3, 5), normal(5, seed=1)
    check_gradients(layernorm_forward, backward, x, np.full(5, 1.3), beta)
    assert "the gradient of x is wrong" in message_of(layernorm_forward, backward, x, 1 + 0.5 * beta, beta)


@pytest.mark.parametrize("missing", ["the mean", "the part along x_hat"])
def test_a_missing_term_of_layernorm_is_caught(missing):
    def backward(dy, saved):
        x, gamma, _, mean, rstd = saved
        x_hat, dx_hat = (x - mean) * rstd, dy * gamma
        term = dx_hat.mean(-1, keepdims=True) if missing == "the mean" \
            else x_hat * (dx_hat * x_hat).mean(-1, keepdims=True)
        return layernorm_backward(dy, saved)[0] + rstd * term, *layernorm_backward(dy, saved)[1:]
    gamma, beta = 1 + 0.3 * normal(5, seed=1), normal(5, seed=2)
    text = message_of(layernorm_forward, backward, normal(3, 5), gamma, beta)
    assert "the gradient of x is wrong" in text


def test_the_transpose_of_a_square_weights_gradient_is_caught():
    def backward(dy, saved):
        dx, dweight, dbias = ops.linear_backward(dy, saved)
        return dx, dweight.T, dbias
    text = message_of(ops.linear_forward, backward, normal(5, 4), normal(4, 4), normal(4))
    assert "the gradient of weight is wrong" in text


@pytest.mark.parametrize("place", [(0, 0), (17, 41), (63, 49)])
def test_one_wrong_element_of_a_large_gradient_is_caught_and_located(place):
    def backward(dy, saved):
        dx, dweight, _ = ops.linear_backward(dy, saved)
        dweight[place] += 0.05 * np.sqrt((dweight ** 2).mean())
        return dx, dweight
    text = message_of(ops.linear_forward, backward, normal(9, 64), normal(64, 50))
    said, measured = map(float, re.search(r"backward says (\S+), measured (\S+)$", text).groups())
    assert f"weight{list(place)}" in text and said != measured


@pytest.mark.parametrize("wrong", [0, np.nan])
@pytest.mark.parametrize("seed", range(2))
def test_one_wrong_element_of_a_million_is_caught_and_located(seed, wrong):
    x = normal(1000, 1000, seed=9)
    place = tuple(np.random.default_rng(seed).integers(0, 1000, 2).tolist())
    x[place] = 1.5                                       # so that its gradient is like others'

    def backward(dy, saved):
        dx = 2 * dy * saved
        dx[place] *= wrong
        return dx

    text = message_of(lambda x: (x * x, x), backward, x, seed=seed)
    said, measured = re.search(r"for one at x(\[.*\]): backward says (\S+), measured", text).groups()
    assert said == str(list(place)) and measured in ("0", "-0", "nan")


@pytest.mark.parametrize("factor", [1.00001, 0.99999, -1, 0, 2, np.nan, np.inf])
@pytest.mark.parametrize(("place", "name"), [(0, "x"), (1, "weight"), (2, "bias")])
def test_a_gradient_off_by_a_factor_is_caught_and_named(place, name, factor):
    backward = scaled(ops.linear_backward, place, factor)
    with np.errstate(invalid="ignore"):
        text = message_of(ops.linear_forward, backward, normal(3, 4), normal(4, 2), normal(2))
    assert f"the gradient of {name} is wrong" in text


def test_the_message_tells_where_and_by_how_much():
    def backward(dy, saved):
        dx = 2 * saved * dy
        dx[1, 2] = 7
        return dx
    text = message_of(lambda x: (x * x, x), backward, normal(3, 4))
    assert re.search(r"worst at x\[1, 2\]: backward says 7, measured \S+$", text)


@pytest.mark.parametrize("number, told", [
    (1, ""), (2, "; wrong as well: b"), (5, "; wrong as well: b, c, d, e"),
    (8, "; wrong as well: b, c, 4 more, h")])
def test_what_is_wrong_besides_is_told_up_to_the_last_of_it(number, told):
    """Backward comes from the end: a fault within a model is next to the last that it makes wrong."""
    def forward(a, b, c, d, e, f, g, h, i):
        return a + b + c + d + e + f + g + h + i, ()

    def backward(dy, saved):
        return number * [2 * dy] + (9 - number) * [dy]
    text = message_of(forward, backward, *(normal(3, seed=n) for n in range(9)))
    assert text.startswith("the gradient of a is wrong")
    assert re.search(r"measured -?[0-9.]+(.*)", text)[1] == told


def test_a_wrong_small_gradient_is_not_hidden_by_a_large_one():
    """The bias's gradient is a millionth of the weight's."""
    x, weight, bias = 1e6 * normal(3, 4), normal(4, 2), normal(2)
    assert "the gradient of bias" in message_of(ops.linear_forward, scaled(ops.linear_backward, 2, 1.1),
                                                x, 1e-6 * weight, bias)


class Forgetful(Module):
    """A layer whose backward sets its gradient, or leaves it, instead of adding to it."""

    def __init__(self, way):
        self.way, self.scale = way, Parameter(4, constant=1.0)

    def forward(self, x):
        return x * self.scale.data * self.scale.data, x

    def backward(self, dy, x):
        if self.way == "right":
            self.scale.add_grad(2 * (dy * x).sum(0) * self.scale.data)
        elif self.way == "half":
            self.scale.add_grad((dy * x).sum(0) * self.scale.data)
        return dy * self.scale.data ** 2


def test_a_parameter_whose_gradient_is_forgotten_is_caught_and_named():
    for way in ("right", "half", "never"):
        layer = Forgetful(way).initialise(dtype="float64")
        layer.flat._grad[...] = 123.0
        if way == "right":
            check_gradients(layer.forward, layer.backward, normal(3, 4), parameters=layer.parameters)
        else:
            text = message_of(layer.forward, layer.backward, normal(3, 4), parameters=layer.parameters)
            assert "the gradient of scale is wrong" in text


class Twice(Module):
    """Uses its weight in two places, and gathers both gradients or only the last."""

    def __init__(self, accumulates):
        self.accumulates, self.linear = accumulates, Linear(4, 4)

    def forward(self, x):
        h, s1 = self.linear.forward(x)
        y, s2 = self.linear.forward(h)
        return y, (s1, s2)

    def backward(self, dy, saved):
        dh = self.linear.backward(dy, saved[1])
        if not self.accumulates:
            self.linear.weight.unset = True
        return self.linear.backward(dh, saved[0])


class Overwriting(Module):
    """Right once, but another backward loses what the first one left."""

    def __init__(self):
        self.scale = Parameter(4, constant=1.0)

    def forward(self, x):
        return x * self.scale.data, x

    def backward(self, dy, x):
        self.scale.grad[...] = (dy * x).sum(0)
        return dy * self.scale.data


def test_a_gradient_that_is_set_instead_of_added_to_is_caught_and_named():
    layer = Overwriting().initialise(dtype="float64")
    text  = message_of(layer.forward, layer.backward, normal(3, 4), parameters=layer.parameters, directions=1)
    assert "backward sets the gradient of scale and does not add to it" in text


class Remembering(Module):
    """Right, as long as backward follows upon its own forward."""

    def __init__(self, where):
        self.scale, self.where = Parameter(4, constant=1.0), where

    def forward(self, x):
        self.x = x
        return x * x * self.scale.data, x

    def backward(self, dy, x):
        self.scale.add_grad((dy * (self.x if self.where == "scale" else x) ** 2).sum(0))
        return 2 * dy * (self.x if self.where == "x" else x) * self.scale.data


@pytest.mark.parametrize("where", ["x", "scale", ""])
def test_what_backward_takes_from_a_later_forward_instead_of_saved_is_caught_and_named(where):
    layer = Remembering(where).initialise(dtype="float64")
    if not where:
        check_gradients(layer.forward, layer.backward, normal(3, 4))
    else:
        text = message_of(layer.forward, layer.backward, normal(3, 4), parameters=layer.parameters)
        assert f"the gradient of {where} is another where forward was called again" in text


def test_forgotten_accumulation_is_caught_and_named():
    for accumulates in (True, False):
        layer = Twice(accumulates).initialise(dtype="float64")
        layer.flat.data[...] = normal(layer.flat.size)
        if accumulates:
            check_gradients(layer.forward, layer.backward, normal(3, 4), parameters=layer.parameters)
        else:
            text = message_of(layer.forward, layer.backward, normal(3, 4), parameters=layer.parameters)
            assert "the gradient of linear.weight is wrong" in text
