#include "common.cuh"

/* The sums that blocks have left, added up in the order of these.  partial: (shares, C)  total: (C)
   A block takes 32 columns, a lane each; its warps take every so-many-th share. */
template <typename T>
__global__ void add_up(const T* partial, T* total, long long shares, long long C) {
    typedef Sum<T> A;
    A* slots = reinterpret_cast<A*>(shared_memory);                /* (warps, 32) */
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
    const long long c = blockIdx.x * 32ll + lane;
    A sum = 0;
    if (c < C)
        for (long long share = warp; share < shares; share += warps) sum += A(partial[share * C + c]);
    slots[threadIdx.x] = sum;
    __syncthreads();
    if (warp > 0 || c >= C) return;
    for (int other = 1; other < warps; other++) sum += slots[32 * other + lane];
    total[c] = T(sum);
}
