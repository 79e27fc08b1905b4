"""The gradient check itself: it accepts right gradients, true zeros too, and tells misuse; what it catches is
in test_planted_bugs.py.
"""

import numpy as np
import pytest

from npgpt import GradientError, NpgptError, check_gradients, ops
from npgpt.inspection.gradient_check import TOLERANCE
from npgpt.layers import Linear
from npgpt.layers.module import Module, Parameter
from npgpt.ops.layernorm import layernorm_backward, layernorm_forward


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def message_of(*arguments, **options):
    with pytest.raises(GradientError) as caught:
        check_gradients(*arguments, **options)
    return str(caught.value)


def scaled(backward, place, factor):
    """The backward with one of its gradients off by a factor."""
    def wrong(dy, saved):
        gradients = list(backward(dy, saved))
        gradients[place] = gradients[place] * factor
        return tuple(gradients)
    return wrong


# ---- right gradients ----

def test_right_gradients_are_accepted_and_the_errors_returned_by_name():
    errors = check_gradients(ops.linear_forward, ops.linear_backward, normal(2, 3), normal(3, 4), normal(4))
    assert list(errors) == ["x", "weight", "bias"]
    assert all(0 <= error <= TOLERANCE for error in errors.values())


def test_the_true_gradient_zero_of_the_keys_bias_is_accepted():
    """A softmax does not see what is added to a whole row, so one bias on all keys does nothing."""
    q, k, v = (normal(2, 3, 5, 4, seed=n) for n in range(3))

    def forward(bias):
        return ops.attention_forward(q, k + bias, v)

    def backward(dy, saved):
        return ops.attention_backward(dy, saved)[1].sum((0, 1, 2))

    check_gradients(forward, backward, normal(4))


def test_a_function_that_ignores_an_input_has_gradient_zero():
    def backward(dy, saved):
        return 2 * dy, np.zeros(4)
    check_gradients(lambda x, unused: (x * 2, None), backward, normal(3), normal(4))


def test_zeros_are_accepted_where_everything_is_zero():
    check_gradients(lambda x: (x * x, x), lambda dy, x: 2 * x * dy, np.zeros(3))


@pytest.mark.parametrize("size", [1e-6, 1.0, 1e6])
def test_the_scale_of_the_input_does_not_matter(size):
    x = size * normal(3, 4)
    check_gradients(ops.softmax_forward, ops.softmax_backward, x if size <= 1 else normal(3, 4))
    check_gradients(ops.linear_forward, ops.linear_backward, x, normal(4, 2))
    with pytest.raises(GradientError):
        check_gradients(ops.linear_forward, scaled(ops.linear_backward, 0, 1.0001), x, normal(4, 2))


@pytest.mark.parametrize("seed", range(5))
def test_where_forward_bends_within_the_step_a_smaller_one_tells(seed):
    """h goes by the size of x, 300, and not by what x is a LayerNorm or softmax of: differences of 1."""
    x, gamma, beta = 300 + normal(3, 8, seed=seed), normal(8, seed=10 + seed), normal(8, seed=20 + seed)
    check_gradients(layernorm_forward, layernorm_backward, x, gamma, beta, seed=seed)
    check_gradients(ops.softmax_forward, ops.softmax_backward, x, seed=seed)
    message_of(layernorm_forward, scaled(layernorm_backward, 0, 1.0001), x, gamma, beta, seed=seed)


def test_whole_numbers_and_settings_have_no_gradient():
    errors = check_gradients(ops.embedding_forward, ops.embedding_backward, np.array([1, 0, 1]), normal(3, 2))
    assert list(errors) == ["weight"]


def test_inputs_come_back_unchanged_bit_by_bit():
    x, weight = normal(2, 3), normal(3, 4)
    copies = x.copy(), weight.copy()
    check_gradients(ops.linear_forward, ops.linear_backward, x, weight)
    message_of(ops.linear_forward, scaled(ops.linear_backward, 1, 2), x, weight)
    assert np.array_equal(x, copies[0]) and np.array_equal(weight, copies[1])


def test_parameters_are_checked_by_their_names():
    linear = Linear(3, 2).initialise(dtype="float64")
    errors = check_gradients(linear.forward, linear.backward, normal(2, 3), parameters=linear.parameters)
    assert list(errors) == ["x", "weight", "bias"]


def test_the_parameters_of_the_layer_whose_forward_is_given_are_checked():
    class Forgetful(Linear):
        def backward(self, dy, saved):
            return dy @ self.weight.data.T

    layer = Forgetful(3, 2).initialise(dtype="float64")
    assert "the gradient of weight is wrong" in message_of(layer.forward, layer.backward, normal(4, 3))
    assert list(check_gradients(layer.forward, layer.backward, normal(4, 3), parameters={})) == ["x"]


class Named(Module):
    """Has a parameter of the name of its input."""

    def __init__(self):
        self.x, self.kept = Parameter(4, constant=2.0), Parameter(4, constant=3.0)

    def forward(self, x):
        return x * self.x.data * self.kept.data, x

    def backward(self, dy, x):
        self.x.add_grad((dy * x).sum(0) * self.kept.data)
        self.kept.add_grad((dy * x).sum(0) * self.x.data)
        return dy * self.x.data * self.kept.data


def test_a_parameter_may_be_called_like_an_input_and_frozen_ones_are_passed_over():
    layer = Named().initialise(dtype="float64")
    errors = check_gradients(layer.forward, layer.backward, normal(3, 4), parameters=layer.parameters)
    assert list(errors) == ["input 0", "x", "kept"]
    layer.freeze(lambda name: name == "x")
    errors = check_gradients(layer.forward, layer.backward, normal(3, 4), parameters=layer.parameters)
    assert list(errors) == ["input 0", "x"]


def test_parameters_that_are_none_are_told():
    layer = Named().initialise(dtype="float64")
    assert "and not a Named" in message_of(layer.forward, layer.backward, normal(3, 4), parameters=layer)
    with pytest.raises(NpgptError, match="no array yet"):
        check_gradients(layer.forward, layer.backward, normal(3, 4), parameters=Named().parameters)


def test_a_layer_in_the_place_of_its_two_functions_is_told():
    layer = Linear(3, 2).initialise(dtype="float64")
    with pytest.raises(GradientError, match="forward must be a function, as layer.forward is, and not a Lin"):
        check_gradients(layer, np.ones((4, 3)))
    with pytest.raises(GradientError, match="backward must be a function, .* and not a ndarray"):
        check_gradients(layer.forward, np.ones((4, 3)))


def test_a_forward_that_is_random_is_told_so():
    random = np.random.default_rng(0)
    text = message_of(lambda x: (x * (random.random(x.shape) < 0.5), x), lambda dy, x: dy, normal(3, 4))
    assert text.startswith("forward gives another y each time")


def test_the_check_is_the_same_every_time():
    arguments = ops.softmax_forward, ops.softmax_backward, normal(3, 4)
    assert check_gradients(*arguments) == check_gradients(*arguments) != check_gradients(*arguments, seed=1)


# ---- misuse of the arrays ----

def relu_in_place(x):
    positive = x > 0
    x *= positive
    return x.copy(), (positive,)


def test_a_forward_that_modifies_its_input_is_caught():
    assert "modified x" in message_of(relu_in_place, ops.relu_backward, normal(3, 4))


def test_a_forward_that_modifies_its_input_is_not_taken_for_one_that_is_random():
    def forward(x):
        x *= 0.5
        return x + 1, ()
    assert message_of(forward, lambda dy, saved: dy / 2, normal(3)) \
        == "forward modified x, which it was only given to read"


def test_a_backward_that_modifies_its_input_is_caught():
    def backward(dy, saved):
        _, weight, _ = saved
        dx, dweight, _ = ops.linear_backward(dy, saved)
        weight *= 2
        return dx, dweight
    assert "modified weight" in message_of(ops.linear_forward, backward, normal(2, 3), normal(3, 4))


@pytest.mark.parametrize("factor", [1, 2])
def test_a_backward_that_modifies_dy_is_caught_whether_its_gradient_is_right_or_wrong(factor):
    """Measured by the changed dy it would be the right one that looks wrong."""
    def backward(dy, saved):
        dy *= saved * factor
        return dy * 2
    text = message_of(lambda x: (x * x, x), backward, normal(3, 4))
    assert text == "backward modified dy, which it was only given to read"


def test_whole_numbers_that_are_modified_are_noticed():
    def forward(x, tokens):
        tokens += 1
        return x * 2, ()
    text = message_of(forward, lambda dy, saved: dy * 2, normal(3), np.array([1, 2]))
    assert "modified input 1" in text


def test_one_array_may_be_several_inputs_and_need_not_be_writable():
    x = normal(2, 2, 3, 4)
    errors = check_gradients(ops.attention_forward, ops.attention_backward, x, x, x[...])
    assert list(errors) == ["q", "k", "v"]
    fixed = np.broadcast_to(normal(4), (3, 4))
    check_gradients(ops.linear_forward, ops.linear_backward, fixed, normal(4, 2))


def test_a_place_that_is_not_looked_at_may_be_nan():
    x, seen = normal(4), np.array([1.0, 0, 1, 1])
    x[1] = np.nan
    check_gradients(lambda x, seen: (np.where(seen > 0, x, 0) ** 2, (x, seen)), lambda dy, saved:
                    (np.where(saved[1] > 0, 2 * saved[0] * dy, 0), 0 * saved[1]), np.nan_to_num(x), seen)
    text = message_of(lambda x: (np.nan_to_num(x), ()), lambda dy, saved: dy, x)
    assert "modified" not in text


def test_arrays_of_another_library_are_refused():
    class Tensor:
        dtype, shape, requires_grad = "float64", (3,), False
    assert "input 0 is a Tensor of" in message_of(ops.relu_forward, ops.relu_backward, Tensor())


def test_a_gradient_may_be_a_plain_number():
    check_gradients(lambda x: (2 * x.sum(), ()), lambda dy, saved: float(dy) * 2, np.array(3.0))
    assert "has shape" in message_of(lambda x: (2 * x, ()), lambda dy, saved: 2.0, normal(3))


def test_an_input_may_be_a_number_of_numpys():
    assert list(check_gradients(lambda x: (x * x, x), lambda dy, x: 2 * x * dy, np.float64(3.0))) == ["x"]


def test_without_a_direction_nothing_would_be_checked():
    assert message_of(ops.relu_forward, lambda dy, saved: 3 * dy, 1 + abs(normal(3)), directions=0) \
        == "directions must be a whole number, at least 1, not 0"
    assert "at least 1, not 2.5" in message_of(ops.relu_forward, ops.relu_backward, normal(3), directions=2.5)
    assert "name → Parameter, a module's .parameters, and not a ndarray" in message_of(
        ops.relu_forward, ops.relu_backward, normal(3), parameters={"x": normal(3)})


def test_a_backward_that_takes_dy_for_contiguous_is_caught():
    def backward(dy, saved):
        return (dy.ravel(order="K") * saved[0].ravel()).reshape(saved[0].shape)
    text = message_of(ops.relu_forward, backward, 1 + abs(normal(3, 4)))
    assert "the gradient of x is wrong" in text


def test_float32_is_refused():
    text = message_of(ops.relu_forward, ops.relu_backward, normal(3).astype("float32"))
    assert text == "x is float32, too coarse for differences: pass float64"


def test_a_float32_parameter_is_refused():
    linear = Linear(3, 2).initialise()
    assert "weight is float32" in message_of(linear.forward, linear.backward, normal(2, 3),
                                             parameters=linear.parameters)


def test_a_y_that_is_coarser_or_is_several_arrays_is_told():
    text = message_of(lambda x: (x.astype("float32"), ()), lambda dy, saved: dy, normal(3))
    assert text.startswith("forward gives float32 for y, which must be one array of float64")
    text = message_of(lambda x: ((x, x.sum()), ()), lambda dy, saved: dy, normal(3))
    assert text.startswith("forward gives tuple for y") and "join several outputs by concatenate" in text


def test_a_wrong_number_of_gradients_is_refused():
    text = message_of(ops.linear_forward, lambda dy, saved: ops.linear_backward(dy, saved)[0], normal(2, 3),
                      normal(3, 4))
    assert "backward returns 1 gradients for 2 inputs (x, weight)" in text


def test_a_gradient_of_another_shape_is_refused():
    text = message_of(ops.relu_forward, lambda dy, saved: dy.sum(0), normal(2, 3))
    assert "the gradient of x has shape (3,), not (2, 3)" in text


def test_an_output_that_is_not_finite_is_refused():
    with np.errstate(divide="ignore"):
        text = message_of(lambda x: (1 / x, x), lambda dy, x: -dy / x ** 2, np.array([1.0, 0.0]))
    assert "NaN or Inf" in text


def test_inputs_of_a_function_without_names_are_numbered():
    text = message_of(lambda *args: (args[0] * args[1], args), lambda dy, args: (dy * args[1], dy), normal(3),
                      normal(3, seed=1))
    assert "the gradient of input 1 is wrong" in text


def test_its_error_is_the_projects():
    assert issubclass(GradientError, NpgptError)


def test_a_forward_that_returns_no_saved_is_told_so():
    with pytest.raises(GradientError, match="forward must return two things"):
        check_gradients(lambda x: x * 2, lambda dy, saved: dy * 2, np.ones((2, 3)))


def test_y_may_be_a_plain_number():
    errors = check_gradients(lambda x: (float((x * x).sum()), (x,)), lambda dy, saved: 2 * saved[0] * dy,
                             np.arange(3.0))
    assert errors["x"] < 1e-9
