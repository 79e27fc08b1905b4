"""A linear map with a low-rank addition (LoRA, Hu et al. 2021): what a fine-tuning changes in a large matrix
is nearly of low rank, so the change alone is learned, as the product of two thin matrices, r ≪ C, D.

    y = x W + b + s (x A) B            x: (N, C)   W: (C, D)   A: (C, r)   B: (r, D)   s = α/r

α is chosen once: divided by r, it need not be chosen anew for another r.

Backward.  With h = x A, (N, r), the addition is two linear maps in a row; from linear.py
    dh = s dy Bᵀ                (N, r)
    dB = s hᵀ dy                (r, D)
    dA = xᵀ dh                  (C, r)
    dx = dy Wᵀ + dh Aᵀ          (N, C)          and where W and b are learned, too:  dW = xᵀ dy    db = Σₙ dyₙ
The order of the products is what makes it cheap: (x A) B costs N r (C + D) multiplications, x (A B) would
cost N C D like a second W. And dA = xᵀ (dy Bᵀ), not (xᵀ dy) Bᵀ: xᵀ dy is dW, C × D numbers, just what one
does not want to compute or keep.
In words: each row goes through a bottleneck of r numbers, and what was wanted out comes back through it.
"""

from npgpt.ops.linear import weight_gradient
from npgpt.tensor import accelerated, array_module


@accelerated(takes_16_bits=True)
def lora_forward(x, weight, bias, lora_A, lora_B, scale=1.0):
    """x: (..., C)  weight: (C, D)  bias: (D,) or None  lora_A: (C, r)  lora_B: (r, D)  →  y: (..., D)"""
    rows = x.reshape(-1, x.shape[-1])                                         # (N, C)
    s    = array_module(x).full((), scale, x.dtype)
    h    = rows @ lora_A                                                      # (N, r)
    y    = rows @ weight                                                      # (N, D)
    y   += (s * h) @ lora_B
    if bias is not None:
        y += bias
    return y.reshape(*x.shape[:-1], weight.shape[1]), (x, weight, bias is not None, lora_A, lora_B, scale, h)


@accelerated(takes_16_bits=True)
def lora_backward(dy, saved, out=None, learned=(True, True)):
    """dy: (..., D)  →  dx: (..., C)  dweight: (C, D)  dbias: (D,) or None  dlora_A: (C, r)  dlora_B: (r, D)

    out, learned: of weight and bias, as in linear_backward. lora_A and lora_B always are.
    """
    x, weight, has_bias, lora_A, lora_B, scale, h = saved
    rows_x  = x.reshape(-1, x.shape[-1])                                      # (N, C)
    rows_dy = dy.reshape(-1, dy.shape[-1])                                    # (N, D)
    s       = array_module(x).full((), scale, x.dtype)
    dh      = s * (rows_dy @ lora_B.T)                                        # (N, r)
    dx      = rows_dy @ weight.T
    dx     += dh @ lora_A.T
    dweight = weight_gradient(rows_x, rows_dy, out) if learned[0] else None
    dbias   = rows_dy.sum(0) if has_bias and learned[1] else None
    return dx.reshape(x.shape), dweight, dbias, weight_gradient(rows_x, dh), weight_gradient(s * h, rows_dy)
