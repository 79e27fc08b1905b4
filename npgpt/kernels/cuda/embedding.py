"""Embedding, backward: places sorted by token, so that each row of dweight is written by one block alone."""

from npgpt.kernels.cuda import launch as cuda
from npgpt.tensor import array_module


def embedding_backward(dy, saved, add_to=None):
    tokens, shape = saved
    xp = array_module(dy)
    if not cuda.covers(dy, dy if add_to is None else add_to) or tokens.dtype.name != "int64":
        return NotImplemented
    dweight = xp.zeros(shape, dy.dtype) if add_to is None else add_to
    flat    = tokens.reshape(-1)
    order   = xp.argsort(flat)                                                # stable, as all of CuPy's
    cuda.launch("embedding.cu", "embedding_backward", flat.size, dy, flat, order, dweight, flat.size,
                shape[1])
    return dweight
