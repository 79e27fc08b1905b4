/* What the kernels share. */

#ifndef INFINITY                                                   /* NVRTC has none of C's headers */
#define INFINITY __int_as_float(0x7f800000)
#endif

/* What sums are kept in. */
template <typename T> struct Accumulator { typedef T type; };

extern __shared__ __align__(16) unsigned char shared_memory[];     /* as much as the launch asks for */

/* Elementwise kernels give every thread this many elements, a block's width apart: enough of them are then on
   their way from memory at once. */
enum { EACH = 4 };

/* The sum over a warp, the same bits in all its threads. */
template <typename A> __device__ A warp_sum(A value) {
    for (int offset = 16; offset > 0; offset /= 2) value += __shfl_xor_sync(~0u, value, offset);
    return value;
}

template <typename A> __device__ A warp_max(A value) {
    for (int offset = 16; offset > 0; offset /= 2) value = max(value, __shfl_xor_sync(~0u, value, offset));
    return value;
}

/* The number of each warp, in order, for all threads.  slots: 32 numbers of shared memory */
template <typename A> __device__ void share_among_warps(A value, A* slots) {
    __syncthreads();                                               /* the slots may still be read */
    if (threadIdx.x % 32 == 0) slots[threadIdx.x / 32] = value;
    __syncthreads();
}

/* The sum over a block, the same bits in all its threads; and the largest. */
template <typename A> __device__ A block_sum(A value, A* slots) {
    share_among_warps(warp_sum(value), slots);
    A sum = 0;
    for (unsigned warp = 0; warp < blockDim.x / 32; warp++) sum += slots[warp];
    return sum;
}

template <typename A> __device__ A block_max(A value, A* slots) {
    share_among_warps(warp_max(value), slots);
    value = slots[0];
    for (unsigned warp = 1; warp < blockDim.x / 32; warp++) value = max(value, slots[warp]);
    return value;
}
