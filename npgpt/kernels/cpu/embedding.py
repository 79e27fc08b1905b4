"""Embedding, backward: the rows sorted by token, so that each token's rows are summed in one reduction."""

import numpy as np


def embedding_backward(dy, saved, add_to=None):
    tokens, shape = saved
    dweight = np.zeros(shape, dy.dtype) if add_to is None else add_to
    flat = tokens.reshape(-1)
    if flat.size:
        order = np.argsort(flat, kind="stable")
        used, starts = np.unique(flat[order], return_index=True)
        dweight[used] += np.add.reduceat(dy.reshape(-1, shape[1])[order], starts, axis=0)
    return dweight
