#include "common.cuh"
#include "columns.cuh"

/* A block takes a share of the rows, one a warp at a time, and of these a group of 32 packs of columns; a row has
   `groups`. */
struct Share {
    long long first, apart, column;                                /* its warp's rows; where its columns begin */

    __device__ Share(long long groups, int size)
        : first(blockIdx.x / groups * (blockDim.x / 32) + threadIdx.x / 32),
          apart(gridDim.x / groups * (blockDim.x / 32)), column(blockIdx.x % groups * 32 * size) {}
};

/* y += bias, y: (rows, D), in place. */
template <typename T>
__global__ void add_bias(T* y, const T* bias, long long rows, long long D, long long groups) {
    typedef Sum<T> A;
    const Share share(groups, Pack<T>::SIZE);
    const long long d = share.column + threadIdx.x % 32 * Pack<T>::SIZE;
    const Pack<T> shifts = load(bias + d, D - d);
    for (long long row = share.first; row < rows; row += share.apart) {
        Pack<T> values = load(y + row * D + d, D - d);
        #pragma unroll
        for (int n = 0; n < Pack<T>::SIZE; n++)
            values.number[n] = T(A(values.number[n]) + A(shifts.number[n]));
        store(y + row * D + d, values, D - d);
    }
}

/* The sums of columns.  x: (rows, C)  partial: (shares, C), of every so-many-th row each */
template <typename T>
__global__ void column_sums(const T* x, Sum<T>* partial, long long rows, long long C, long long groups) {
    typedef Sum<T> A;
    const Share share(groups, Pack<T>::SIZE);
    const long long c = threadIdx.x % 32 * Pack<T>::SIZE;
    const long long left = min(32ll * Pack<T>::SIZE, C - share.column);
    A sum[Pack<T>::SIZE] = {};
    for (long long row = share.first; row < rows; row += share.apart) {
        const Pack<T> values = load(x + row * C + share.column + c, left - c);
        #pragma unroll
        for (int n = 0; n < Pack<T>::SIZE; n++) sum[n] += A(values.number[n]);
    }
    const ColumnSums<T, 1> sums(left);
    #pragma unroll
    for (int n = 0; n < Pack<T>::SIZE; n++) sums.of(0, c, n) = sum[n];
    sums.store(partial + blockIdx.x / groups * C + share.column);
}
