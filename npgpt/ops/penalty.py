"""The L1 and L2 penalties (Tibshirani 1996; Hoerl & Kennard 1970): large weights cost something, added to the
loss.

    y = λ₁ Σ |w| + λ₂ Σ w²

Backward.  ∂y/∂w of each w is λ₁ sign(w) + 2 λ₂ w; at 0, where |w| has no derivative, sign(0) = 0 is taken:
    dw = (λ₁ sign(w) + 2 λ₂ w) dy
In words: L1 pulls every weight towards 0 with the same force, so that small ones come to within a step of it,
and then jump to and fro; L2 pulls in proportion, ever less. Unlike AdamW's weight decay (adamw.py) these go
through the gradient, and so through Adam's scaling.
"""

from npgpt.tensor import accelerated, array_module


@accelerated
def penalty_forward(w, l1, l2):
    """w: (...)  l1, l2: the factors λ₁, λ₂ ≥ 0  →  y: 0-d"""
    return l1 * abs(w).sum() + l2 * (w * w).sum(), (w, l1, l2)


@accelerated
def penalty_backward(dy, saved):
    """dy: 0-d  →  dw: (...)"""
    w, l1, l2 = saved
    return (l1 * array_module(w).sign(w) + 2 * l2 * w) * dy
