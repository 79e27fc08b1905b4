#include "common.cuh"

/* One block a place in the order of the tokens, (rows,). The block at the first place of a token adds up all
   its rows of dy, in that order, and no other writes to dweight[token]: without atomics, two runs are equal. */
template <typename T>
__global__ void embedding_backward(const T* dy, const long long* tokens, const long long* order,
                                   Sum<T>* dweight, long long rows, long long C) {
    typedef Sum<T> A;
    const long long first = blockIdx.x, token = tokens[order[first]];
    if (first > 0 && tokens[order[first - 1]] == token) return;    /* the whole block */
    long long end = first + 1;
    while (end < rows && tokens[order[end]] == token) end++;
    for (long long c = threadIdx.x; c < C; c += blockDim.x) {
        A sum = dweight[token * C + c];
        for (long long place = first; place < end; place++) sum += A(dy[order[place] * C + c]);
        dweight[token * C + c] = sum;
    }
}
