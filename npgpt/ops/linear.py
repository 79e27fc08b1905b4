"""The linear map: every row of x is multiplied by one matrix and shifted.

    y = x W + b            yₙⱼ = Σᵢ xₙᵢ Wᵢⱼ + bⱼ            x: (N, C)   W: (C, D)   b: (D,)   y: (N, D)

Backward.  xₙᵢ goes into row n alone, and W and b into every row:
           ∂yₙⱼ/∂xₙᵢ = Wᵢⱼ, so       dxₙᵢ = Σⱼ dyₙⱼ Wᵢⱼ       that is   dx = dy Wᵀ      (N, C)
           ∂yₙⱼ/∂Wᵢⱼ = xₙᵢ, so       dWᵢⱼ = Σₙ xₙᵢ dyₙⱼ       that is   dW = xᵀ dy      (C, D)
           ∂yₙⱼ/∂bⱼ  = 1,   so       dbⱼ  = Σₙ dyₙⱼ                                     (D,)
In words: the gradient goes back through the same wires, and each wire is blamed by what went in times what
was wanted out, summed over all rows. Who forgets which factor is transposed finds it from the shapes: where
N, C and D differ, only one product fits.
"""

from npgpt.tensor import accelerated, array_module


@accelerated(takes_16_bits=True)
def linear_forward(x, weight, bias=None):
    """x: (..., C)  weight: (C, D)  bias: (D,) or None  →  y: (..., D)"""
    y = x.reshape(-1, x.shape[-1]) @ weight                                   # (N, D): one 2-D product
    if bias is not None:
        y += bias
    return y.reshape(*x.shape[:-1], weight.shape[1]), (x, weight, bias is not None)


@accelerated(takes_16_bits=True)
def linear_backward(dy, saved, out=None, learned=(True, True)):
    """dy: (..., D)  →  dx: (..., C)  dweight: (C, D), written into `out` if given  dbias: (D,) or None

    learned: whether weight and bias are; the gradient of what is not is None, and costs nothing.
    """
    x, weight, has_bias = saved
    rows_x  = x.reshape(-1, x.shape[-1])                                      # (N, C)
    rows_dy = dy.reshape(-1, dy.shape[-1])                                    # (N, D)
    dx      = (rows_dy @ weight.T).reshape(x.shape)
    dweight = weight_gradient(rows_x, rows_dy, out) if learned[0] else None
    return dx, dweight, rows_dy.sum(0) if has_bias and learned[1] else None


@accelerated(takes_16_bits=True)
def weight_gradient(x, dy, out=None):
    """x: (N, C)  dy: (N, D)  →  xᵀ dy: (C, D), written into `out` if given, which may be of a wider type

    Kernels give float32 for arrays of 16 bits, as npgpt/tensor/precision.py tells.
    """
    return array_module(x).matmul(x.T, dy, out=out)
