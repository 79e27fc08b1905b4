"""Where attention's twins write the gradients of queries, keys and values."""

from npgpt.tensor import array_module


def side_by_side(q, k, v):
    """Arrays in the shapes of q: (B, H, T, D) and k, v: (B, G, S, D), their values undefined. Where T = S
    they are neighbouring columns of one array, as in the projection that these came from: merging is free.
    """
    xp, H, G = array_module(q), q.shape[1], k.shape[1]
    if q.shape[2] != k.shape[2]:
        return tuple(xp.empty(array.swapaxes(1, 2).shape, array.dtype).swapaxes(1, 2) for array in (q, k, v))
    B, _, T, D = q.shape
    whole = xp.empty((B, T, H + 2 * G, D), q.dtype).swapaxes(1, 2)
    return whole[:, :H], whole[:, H:H + G], whole[:, H + G:]
