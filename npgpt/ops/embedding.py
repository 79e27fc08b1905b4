"""Embedding: each token takes its row of a table.

    y = W[token]           the same as y = E W, E = onehot(token), without the product by zeros

E is (N, V): for each of the N places a row of zeros, with a 1 in the column of its token.

Backward.  From y = E W (linear.py):   dW = Eᵀ dy, dW[v] = Σₙ E[n, v] dyₙ
that is                                dW[v] = Σ dyₙ over all places n whose token is v
In words: a row of the table gathers the gradients of every place it was used, and rows not used get nothing.
Tokens are whole numbers and have no gradient.
"""

from npgpt.tensor import accelerated, array_module


@accelerated(takes_16_bits=True)
def embedding_forward(tokens, weight):
    """tokens: integers (...)  weight: (V, C)  →  y: (..., C)

    Tokens must lie in [0, V): check them on the host. NumPy takes −1 for the last row, a GPU any number for
    some row.
    """
    return weight[tokens], (tokens, weight.shape)


@accelerated
def embedding_backward(dy, saved, add_to=None):
    """dy: (..., C)  →  dweight: (V, C), added to `add_to` if given, which is then returned"""
    tokens, shape = saved
    xp = array_module(dy)
    dweight = xp.zeros(shape, dy.dtype) if add_to is None else add_to
    xp.add.at(dweight, tokens, dy)            # unlike dweight[tokens] += dy, counts every repeat
    return dweight
