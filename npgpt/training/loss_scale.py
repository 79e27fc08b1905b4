"""Dynamic loss scaling (Micikevicius et al. 2018): float16's gradients, made large enough to be there at all.

float16 ends at 65504 above and at 2⁻²⁴ below, and most gradients of a network are nearer to the lower end.
They are all linear in the loss, so backward begins with dloss = s instead of 1, and the step divides by s, in
float32, before anything is made of their norm. Too large an s shows as an infinity among the gradients: that
step is not made, and is tried again with half of it. After GROWTH good steps in a row s is doubled.

bfloat16 has the range of float32, and needs none of this: s stays 1.
"""

INITIAL = 2.0 ** 16
GROWTH  = 2000


class LossScale:
    """value: s; good_steps: how many steps in a row went well with it.  dtype: of the model."""

    def __init__(self, dtype: str):
        self.dynamic    = dtype == "float16"
        self.value      = INITIAL if self.dynamic else 1.0
        self.good_steps = 0

    def succeeded(self) -> None:
        """The gradients were finite."""
        self.good_steps += 1
        if self.dynamic and self.good_steps >= GROWTH:
            self.value, self.good_steps = 2 * self.value, 0

    def overflowed(self) -> bool:
        """The gradients were not finite: whether there is a smaller scale to try. At 1 it is no fault of the
        scale's.
        """
        if not self.dynamic or self.value <= 1:
            return False
        self.value, self.good_steps = self.value / 2, 0
        return True
