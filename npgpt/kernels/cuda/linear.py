"""The linear map: matrix products as in the formula, and a bias added in one launch. Its gradient comes in
two stages, shares of the rows first and then their sums, both in a fixed order.
"""

from npgpt.kernels.cuda import launch as cuda
from npgpt.ops import linear as formula
from npgpt.tensor import array_module
from npgpt.tensor.precision import accumulator


def linear_forward(x, weight, bias=None):
    if bias is None or not cuda.covers(bias) or x.dtype != bias.dtype or x.size == 0:
        return NotImplemented
    y, _ = formula.linear_forward.reference(x, weight)
    cuda.launch("linear.cu", "add_bias", cuda.blocks_of_packs(y), y, bias, y.size, bias.size)
    return y, (x, weight, True)


def linear_backward(dy, saved, out=None, learned=(True, True)):
    x, weight, has_bias = saved
    if not (has_bias and learned[1]) or not cuda.covers(dy):
        return NotImplemented
    dx, dweight, _ = formula.linear_backward.reference(dy, (x, weight, False), out, learned)
    D      = dy.shape[-1]
    rows   = dy.size // D
    width  = 32 * cuda.PACK // dy.dtype.itemsize                              # a pack for each lane of a warp
    groups = -(-D // width)
    shares = max(1, min(cuda.BLOCKS // groups, rows // (4 * cuda.THREADS // 32)))
    partial = array_module(dy).empty((shares, D), accumulator(dy.dtype))
    cuda.launch("linear.cu", "column_sums", shares * groups, dy, partial, rows, D, groups,
                shared=cuda.bytes_of(cuda.THREADS // 32 * width, dy.dtype))
    return dx, dweight, partial.sum(0).astype(dy.dtype, copy=False)
