"""AdamW in place, in one launch: w, g, m and v cross the memory bus once."""

from npgpt.kernels.cuda import launch as cuda
from npgpt.tensor import array_module


def adamw(w, g, m, v, t, lr, beta1=0.9, beta2=0.95, eps=1e-8, weight_decay=0.1, grad_scale=1.0, out=None):
    if out is None or any(new is not old for new, old in zip(out, (w, m, v), strict=True)):
        return NotImplemented
    if not cuda.covers(w, g, m, v):
        return NotImplemented
    xp    = array_module(w)
    scale = grad_scale if isinstance(grad_scale, xp.ndarray) else xp.full((), float(grad_scale), w.dtype)
    if scale.dtype != w.dtype:
        return NotImplemented
    cuda.launch("adamw.cu", "adamw", cuda.blocks_of_elements(w.size), w, g, m, v, scale, w.size, float(lr),
                float(beta1), float(beta2), float(eps), float(weight_decay), 1.0 - beta1 ** t,
                1.0 - beta2 ** t)
    return out
