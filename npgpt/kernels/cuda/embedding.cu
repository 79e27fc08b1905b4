#include "common.cuh"

/* One block a place in the order of the tokens, (rows,). The block at the first place of a token adds up all
   its rows of dy, in that order, and no other writes to dweight[token]: without atomics, two runs are equal. */
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
    for (long long c = threadIdx.x * Pack<T>::SIZE; c < C; c += blockDim.x * Pack<T>::SIZE) {
        A sum[Pack<T>::SIZE];
        #pragma unroll
        for (int n = 0; n < Pack<T>::SIZE; n++) sum[n] = c + n < C ? dweight[token * C + c + n] : A(0);
        for (long long place = first; place <= last; place++) {
            const Pack<T> gradients = load(dy + order[place] * C + c, C - c);
            #pragma unroll
            for (int n = 0; n < Pack<T>::SIZE; n++) sum[n] += A(gradients.number[n]);
        }
        #pragma unroll
        for (int n = 0; n < Pack<T>::SIZE; n++)
            if (c + n < C) dweight[token * C + c + n] = sum[n];
    }
}
