#include "common.cuh"
#include "columns.cuh"

/* y += bias, y: (rows, D), in place; a thread a pack of y, whose numbers may be of two rows. */
template <typename T>
__global__ void add_bias(T* y, const T* bias, long long size, long long D) {
    typedef Sum<T> A;
    const long long first = first_number<T>(), left = size - first, d = first % D;
    if (left <= 0) return;
    Pack<T> values = load(y + first, left), shifts;
    if (d + Pack<T>::SIZE <= D) {
        shifts = load(bias + d, D - d);
    } else {
        #pragma unroll
        for (int n = 0; n < Pack<T>::SIZE; n++) shifts.number[n] = bias[(d + n) % D];
    }
    #pragma unroll
    for (int n = 0; n < Pack<T>::SIZE; n++) values.number[n] = T(A(values.number[n]) + A(shifts.number[n]));
    store(y + first, values, left);
}

/* The sums of columns.  x: (rows, C)  partial: (shares, C), of every so-many-th row each
   A block takes a share of the rows and 32 packs of columns, `groups` of which are a row. */
template <typename T>
__global__ void column_sums(const T* x, Sum<T>* partial, long long rows, long long C, long long groups) {
    typedef Sum<T> A;
    const int warps = blockDim.x / 32, step = 32 * Pack<T>::SIZE;
    const long long share = blockIdx.x / groups, shares = gridDim.x / groups, first = blockIdx.x % groups * step;
    const long long c = threadIdx.x % 32 * Pack<T>::SIZE, left = min((long long)step, C - first);
    A sum[Pack<T>::SIZE] = {};
    for (long long row = share * warps + threadIdx.x / 32; row < rows; row += shares * warps) {
        const Pack<T> values = load(x + row * C + first + c, left - c);
        #pragma unroll
        for (int n = 0; n < Pack<T>::SIZE; n++) sum[n] += A(values.number[n]);
    }
    const ColumnSums<T, 1> sums(left);
    #pragma unroll
    for (int n = 0; n < Pack<T>::SIZE; n++) sums.of(0, c, n) = sum[n];
    sums.store(partial + share * C + first);
}
