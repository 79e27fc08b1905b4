#include "common.cuh"

/* One block a place in the order of the tokens, (rows,). The block at the first place of a token adds up all
   its rows of dy, and no other writes to dweight[token]: without atomics, two runs are equal.
   Some tokens have thousands of places, most have one. So a token's places are shared out among as many warps as
   there are places, and the columns among what warps are left; a group of warps that share places has 32 packs of
   columns at a time, and adds its sums up in the order of warps.
   Shared memory: a pack of sums for each thread. */
template <typename T>
__global__ void embedding_backward(const T* dy, const long long* tokens, const long long* order,
                                   Sum<T>* dweight, long long rows, long long C) {
    typedef Sum<T> A;
    const long long first = blockIdx.x, token = tokens[order[first]];
    if (first > 0 && tokens[order[first - 1]] == token) return;    /* the whole block */
    long long last = first, beyond = rows;                         /* its last place, by halving what is left */
    while (beyond - last > 1) {
        const long long middle = (last + beyond) / 2;
        if (tokens[order[middle]] == token) last = middle; else beyond = middle;
    }
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
    int shares = 1;                                                /* of places: a power of 2 */
    while (2 * shares <= min((long long)warps, beyond - first)) shares *= 2;
    const int share = warp % shares, step = 32 * Pack<T>::SIZE;
    A* slots = reinterpret_cast<A*>(shared_memory) + warp * step + lane;
    for (long long begin = 0; begin < C; begin += warps / shares * step) {
        const long long c = begin + warp / shares * step + lane * Pack<T>::SIZE;
        A sum[Pack<T>::SIZE] = {};
        if (c < C) {
            #pragma unroll 4                                       /* so many rows are on their way */
            for (long long place = first + share; place < beyond; place += shares) {
                const Pack<T> gradients = load(dy + order[place] * C + c, C - c);
                #pragma unroll
                for (int n = 0; n < Pack<T>::SIZE; n++) sum[n] += A(gradients.number[n]);
            }
        }
        #pragma unroll
        for (int n = 0; n < Pack<T>::SIZE; n++) slots[32 * n] = sum[n];
        __syncthreads();
        if (share == 0 && c < C) {
            #pragma unroll
            for (int n = 0; n < Pack<T>::SIZE; n++) {
                for (int other = 1; other < shares; other++) sum[n] += slots[other * step + 32 * n];
                if (c + n < C) dweight[token * C + c + n] += sum[n];
            }
        }
        __syncthreads();                                           /* the slots may be written again */
    }
}
