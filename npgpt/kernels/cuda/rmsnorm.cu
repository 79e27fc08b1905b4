#include "common.cuh"
#include "columns.cuh"

/* One warp a row, of x or of x + h (layernorm.cu). */
template <typename T>
__global__ void rmsnorm_forward(const T* x, const T* h, const T* gamma, T* sum, T* y, Sum<T>* rstd,
                                long long rows, long long C, long long has_h, double eps) {
    typedef Sum<T> A;
    const long long row = (blockIdx.x * (long long)blockDim.x + threadIdx.x) / 32;
    const int first = threadIdx.x % 32 * Pack<T>::SIZE, step = 32 * Pack<T>::SIZE;
    if (row >= rows) return;                                       /* the whole warp */
    x += row * C;
    y += row * C;
    A squares = 0;
    for (long long c = first; c < C; c += step) {
        Pack<T> values = load(x + c, C - c);
        if (has_h) {
            const Pack<T> others = load(h + row * C + c, C - c);
            #pragma unroll
            for (int n = 0; n < Pack<T>::SIZE; n++)
                values.number[n] = T(A(values.number[n]) + A(others.number[n]));
            store(sum + row * C + c, values, C - c);
        }
        #pragma unroll
        for (int n = 0; n < Pack<T>::SIZE; n++) squares += A(values.number[n]) * A(values.number[n]);
    }
    if (has_h) x = sum + row * C;
    const A r = A(1) / sqrt(warp_sum(squares) / A(C) + A(eps));
    for (long long c = first; c < C; c += step) {
        Pack<T> values = load(x + c, C - c);
        const Pack<T> gains = load(gamma + c, C - c);
        #pragma unroll
        for (int n = 0; n < Pack<T>::SIZE; n++)
            values.number[n] = T(A(gains.number[n]) * (A(values.number[n]) * r));
        store(y + c, values, C - c);
    }
    if (first == 0) rstd[row] = r;
}

/* Rows are shared out, and columns added up, as in layernorm.cu. partial: (blocks, C) */
template <typename T>
__global__ void rmsnorm_backward(const T* dy, const T* x, const T* gamma, const Sum<T>* rstd, const T* ds,
                                 T* dx, Sum<T>* partial, long long rows, long long C, long long has_ds) {
    typedef Sum<T> A;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
    const int first = lane * Pack<T>::SIZE, step = 32 * Pack<T>::SIZE;
    const long long apart = gridDim.x * (long long)warps;
    const ColumnSums<T, 1> sums(C);
    for (long long row = blockIdx.x * (long long)warps + warp; row < rows; row += apart) {
        const T* x_  = x + row * C;
        const T* dy_ = dy + row * C;
        const A r = rstd[row];
        A product = 0;
        for (long long c = first; c < C; c += step) {
            const Pack<T> values = load(x_ + c, C - c), gradients = load(dy_ + c, C - c);
            const Pack<T> gains = load(gamma + c, C - c);
            #pragma unroll
            for (int n = 0; n < Pack<T>::SIZE; n++) {
                const A change = A(gradients.number[n]) * (A(values.number[n]) * r);
                product += change * A(gains.number[n]);
                sums.of(0, c, n) += change;
            }
        }
        product = warp_sum(product) / A(C);
        for (long long c = first; c < C; c += step) {
            Pack<T> values = load(x_ + c, C - c), others = {};
            const Pack<T> gradients = load(dy_ + c, C - c), gains = load(gamma + c, C - c);
            if (has_ds) others = load(ds + row * C + c, C - c);
            #pragma unroll
            for (int n = 0; n < Pack<T>::SIZE; n++) {
                const A dx_hat = A(gradients.number[n]) * A(gains.number[n]);
                const A own = r * (dx_hat - A(values.number[n]) * r * product);
                values.number[n] = T(has_ds ? A(others.number[n]) + own : own);
            }
            store(dx + row * C + c, values, C - c);
        }
    }
    sums.store(partial + blockIdx.x * C);
}
