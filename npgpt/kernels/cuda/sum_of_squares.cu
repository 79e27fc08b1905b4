#include "common.cuh"

/* Each block's share of Σ x².  x: (size,)  partial: (blocks,) */
template <typename T>
__global__ void sum_of_squares(const T* x, Sum<T>* partial, long long size) {
    typedef Sum<T> A;
    const long long step = gridDim.x * (long long)blockDim.x * Pack<T>::SIZE;
    A sum = 0;
    for (long long first = first_number<T>(); first < size; first += step) {
        const Pack<T> values = load(x + first, size - first);
        #pragma unroll
        for (int n = 0; n < Pack<T>::SIZE; n++) sum += A(values.number[n]) * A(values.number[n]);
    }
    sum = block_sum(sum, reinterpret_cast<A*>(shared_memory));
    if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}
