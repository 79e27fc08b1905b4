"""Embedding, backward: places sorted by token, so that each row of dweight is written by one block alone."""

from npgpt.kernels.cuda import launch as cuda
from npgpt.tensor import array_module
from npgpt.tensor.precision import accumulator


def embedding_backward(dy, saved, add_to=None):
    tokens, shape = saved
    xp = array_module(dy)
    dweight = xp.zeros(shape, accumulator(dy.dtype)) if add_to is None else add_to
    if not cuda.covers(dy, sums=(dweight,)) or tokens.dtype != "int64":
        return NotImplemented
    flat    = tokens.reshape(-1)
    order   = xp.argsort(flat)                                                # stable, as all of CuPy's
    cuda.launch("embedding.cu", "embedding_backward", flat.size, dy, flat, order, dweight, flat.size,
                shape[1], shared=cuda.bytes_of(cuda.THREADS * cuda.PACK // dy.dtype.itemsize, dy.dtype))
    return dweight.astype(dy.dtype, copy=False) if add_to is None else dweight
