"""Rotary position in one launch: the query and key of a head are read where the projection left them."""

from npgpt.kernels.cuda import launch as cuda
from npgpt.tensor import array_module
from npgpt.tensor.precision import accumulator


def rotary_forward(x, rotation, interleaved=False):
    y = _turned(x, rotation, interleaved, 1.0)
    return NotImplemented if y is NotImplemented else (y, (rotation, interleaved))


def rotary_backward(dy, saved):
    rotation, interleaved = saved
    return _turned(dy, rotation, interleaved, -1.0)


def _turned(x, rotation, interleaved, direction):
    cos, sin   = rotation
    B, H, T, D = x.shape
    if not cuda.covers(cos, sin) or not cuda.c_type(x.dtype) or x.size == 0:
        return NotImplemented
    if cos.dtype != accumulator(x.dtype) or x.strides[3] != x.dtype.itemsize:
        return NotImplemented
    if cos.shape not in ((T, D // 2), (B, 1, T, D // 2)) or sin.shape != cos.shape:
        return NotImplemented
    y           = array_module(x).empty(x.shape, x.dtype)
    strides     = (stride // x.dtype.itemsize for stride in x.strides[:3])
    cos_stride  = T * D // 2 if cos.ndim == 4 else 0
    packs       = -(-(D // 2) * x.dtype.itemsize // cuda.PACK)                # of a row's first half
    blocks      = -(-B * H * T * packs // cuda.THREADS)
    cuda.launch("rotary.cu", "rotary", blocks, x, cos, sin, y, B * H * T, H, T, D, *strides, cos_stride,
                direction, constants=(int(interleaved),))
    return y
