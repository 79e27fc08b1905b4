"""Dropout from the same bits as NumPy's, made where they are used: the formula uploads a mask."""

from npgpt.kernels.cuda import launch as cuda
from npgpt.tensor import array_module


def dropout_forward(x, p, key):
    y = _drop(x, p, key)
    return NotImplemented if y is NotImplemented else (y, (p, key))


def dropout_backward(dy, saved):
    return _drop(dy, *saved)


def _drop(x, p, key):
    if not cuda.covers(x) or x.ndim == 0:
        return NotImplemented
    threshold = max(round((1 - p) * 65536), 1)
    y         = array_module(x).empty(x.shape, x.dtype)
    each      = x.size // x.shape[0]
    tiles     = -(-each // (16 * cuda.THREADS))
    words     = (cuda.signed(word) for word in (key.seed, key.stream, key.step, key.example, key.site))
    cuda.launch("dropout.cu", "dropout", x.shape[0] * tiles, x, y, each, tiles, *words, threshold,
                65536 / threshold)
    return y
