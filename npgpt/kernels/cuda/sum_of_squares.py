"""The sum of squares in two launches: CuPy's product of a vector with itself writes all squares to memory."""

from npgpt.kernels.cuda import columns
from npgpt.kernels.cuda import launch as cuda
from npgpt.tensor import array_module
from npgpt.tensor.precision import accumulator

SLOTS = 32                             # numbers of shared memory that a block's sum needs


def sum_of_squares(x):
    if x.ndim != 1 or not cuda.covers(x):
        return NotImplemented
    blocks  = min(cuda.BLOCKS, cuda.blocks_of_packs(x))
    partial = array_module(x).empty((blocks, 1), accumulator(x.dtype))
    cuda.launch("sum_of_squares.cu", "sum_of_squares", blocks, x, partial, x.size,
                shared=cuda.bytes_of(SLOTS, x.dtype))
    return columns.add_up(partial).reshape(())
