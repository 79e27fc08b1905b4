"""The learning rate over a run: a linear warm-up, then half a cosine down to a floor, as in nanoGPT."""

import math


def learning_rate(step: int, peak: float, warmup_iters: int, decay_iters: int, min_lr: float) -> float:
    """The rate of update number `step`, counted from 0.

        step < warmup_iters     peak (step + 1)/(warmup_iters + 1)
        … up to decay_iters     min_lr + ½ (1 + cos(π r)) (peak − min_lr)      r from 0 to 1
        beyond                  min_lr
    """
    if step < warmup_iters:
        return peak * (step + 1) / (warmup_iters + 1)
    if step >= decay_iters:
        return min_lr
    r = (step - warmup_iters) / (decay_iters - warmup_iters)
    return min_lr + 0.5 * (1 + math.cos(math.pi * r)) * (peak - min_lr)
