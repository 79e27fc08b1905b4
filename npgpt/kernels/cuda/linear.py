"""The linear map: of 16 bits, a bias is added in its product (biased_product.py), else in a launch more; its
gradient is summed in two (columns.py). Other products are CuPy's, but for the weights' gradient of 16 bits,
which stays in float32 (products.py).
"""

import numpy as np

from npgpt.kernels.cuda import columns
from npgpt.kernels.cuda import launch as cuda
from npgpt.kernels.cuda.biased_product import multiply_and_shift
from npgpt.kernels.cuda.products import multiply
from npgpt.ops import linear as formula
from npgpt.tensor import array_module
from npgpt.tensor.precision import accumulator, is_narrow


def linear_forward(x, weight, bias=None):
    if bias is None or not cuda.covers(bias) or x.dtype != bias.dtype or x.size == 0:
        return NotImplemented
    if is_narrow(x.dtype) and cuda.covers(x, weight, bias):
        y = array_module(x).empty((*x.shape[:-1], bias.size), x.dtype)
        if multiply_and_shift(x.reshape(-1, x.shape[-1]), weight, bias, y.reshape(-1, bias.size)):
            return y, (x, weight, True)
    y, _ = formula.linear_forward.reference(x, weight)
    groups, shares = _blocks(y)
    cuda.launch("linear.cu", "add_bias", groups * shares, y, bias, y.size // bias.size, bias.size, groups)
    return y, (x, weight, True)


def linear_backward(dy, saved, out=None, learned=(True, True)):
    x, weight, has_bias = saved
    if not (has_bias and learned[1]) or not cuda.covers(dy):
        return NotImplemented
    dx, dweight, _ = formula.linear_backward.reference(dy, (x, weight, False), out, learned)
    D = dy.shape[-1]
    groups, shares = _blocks(dy)
    partial = array_module(dy).empty((shares, D), accumulator(dy.dtype))
    cuda.launch("linear.cu", "column_sums", groups * shares, dy, partial, dy.size // D, D, groups,
                shared=cuda.bytes_of(cuda.THREADS * cuda.PACK // dy.dtype.itemsize, dy.dtype))
    return dx, dweight, columns.add_up(partial)


def _blocks(x):
    """Into how many groups of columns and shares of rows blocks divide x (..., C): a pack for each lane of a
    warp, and four rows at least for each warp.
    """
    C      = x.shape[-1]
    groups = -(-C * x.dtype.itemsize // (32 * cuda.PACK))
    return groups, max(1, min(cuda.BLOCKS // groups, x.size // C // (4 * cuda.THREADS // 32)))


def weight_gradient(x, dy, out=None):
    """Of 16 bits: in float32, in `out` where that is given and is float32."""
    if not is_narrow(x.dtype) or not cuda.covers(x, dy, sums=() if out is None else (out,)):
        return NotImplemented
    if out is None:
        out = array_module(x).empty((x.shape[1], dy.shape[1]), np.float32)
    multiply(x.T, dy, out)
    return out
