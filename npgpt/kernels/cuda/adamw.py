"""AdamW in place, in one launch: w, g, m and v cross the memory bus once, with the weights of 16 bits."""

from npgpt.kernels.cuda import launch as cuda
from npgpt.tensor import array_module
from npgpt.tensor.precision import is_narrow
from npgpt.tensor.random import ROUNDED_TOGETHER


def adamw(w, g, m, v, t, lr, beta1=0.9, beta2=0.95, eps=1e-8, weight_decay=0.1, grad_scale=1.0, out=None,
          narrow=None, key=None, first=0):
    if out is None or any(new is not old for new, old in zip(out, (w, m, v), strict=True)):
        return NotImplemented
    if not cuda.covers(w, g, m, v) or is_narrow(w.dtype):
        return NotImplemented
    settings = tuple(map(float, (1 - lr * weight_decay, lr / (1 - beta1 ** t), beta1, beta2,
                                 1 / (1 - beta2 ** t), eps)))
    scale    = cuda.number(array_module(w), grad_scale, w.dtype)
    if narrow is None:
        cuda.launch("adamw.cu", "adamw", cuda.blocks_of_packs(w), w, g, m, v, scale, w.size,
                    *settings)
        return out
    if not is_narrow(narrow.dtype) or not cuda.covers(narrow, sums=(w,)):
        return NotImplemented
    tile, offset = divmod(first, ROUNDED_TOGETHER)
    seed, stream, step = (cuda.signed(word) for word in (key.seed, key.stream, key.step))
    cuda.launch("adamw.cu", "adamw_narrow", -(-(offset + w.size) // ROUNDED_TOGETHER), narrow, w, g, m, v,
                scale, w.size, tile, offset, seed, stream, step, *settings)
    return out
