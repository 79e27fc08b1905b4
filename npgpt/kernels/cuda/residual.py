"""The residual sum in one launch, 16 bytes at once a thread."""

from npgpt.kernels.cuda import launch as cuda
from npgpt.tensor import array_module


def residual_forward(x, h):
    if not cuda.covers(x, h) or x.shape != h.shape:
        return NotImplemented
    y = array_module(x).empty(x.shape, x.dtype)
    cuda.launch("residual.cu", "residual_forward", cuda.blocks_of_packs(x), x, h, y, x.size)
    return y, ()
