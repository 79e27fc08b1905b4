"""Stochastic rounding (Forsythe 1950; Gupta et al. 2015): a number between two neighbours becomes the one
further from 0 with the chance of how far it is on its way there.

    y = lower + ulp [u < (x − lower)/ulp]        u uniform on [0, 1)
    E[y] = lower + ulp (x − lower)/ulp = x       lower: the neighbour nearer to 0   ulp: from it to the other

bfloat16 is the first half of a float32: the second half, as a number below 2¹⁶, is how far it is. Adding 16
random bits to it carries into the first half just as often as it should: where it is n, for n of the 2¹⁶
numbers that they may be. Then the second half is cut off.
NaN stays NaN: to the bits of a GPU's, 0x7fffffff, a carry would make it −0.

In words: rounded to nearest, a weight never moves by steps of less than half the gap between its neighbours;
rounded so, it moves as far on average. There is no backward: this happens after the step.
"""

from npgpt.tensor import array_module
from npgpt.tensor.random import rounding_bits


def stochastic_rounding(x, key, first=0):
    """x: float32 (n,)  →  y: float32 (n,), each a number of bfloat16

    key: npgpt.tensor.Key.  first: the number of x[0] among all that are rounded under that key, so that what
    a number becomes does not depend on how many are rounded in one call.
    """
    xp   = array_module(x)
    bits = x.view("uint32") + xp.asarray(rounding_bits(key, first, x.size))
    return xp.where(x == x, (bits & 0xffff0000).view("float32"), xp.nan)
