#include "common.cuh"
#include "columns.cuh"

/* One warp a row. What it reads and writes crosses the bus once: the second and the third look at a row find it
   in the cache.  x, h, sum, y: (rows, C), sum = x + h where there is an h, and that is what is normalised */
template <typename T>
__global__ void layernorm_forward(const T* x, const T* h, const T* gamma, const T* beta, T* sum, T* y,
                                  Sum<T>* mean, Sum<T>* rstd, long long rows, long long C, long long has_h,
                                  long long has_beta, double eps) {
    typedef Sum<T> A;
    const long long row = (blockIdx.x * (long long)blockDim.x + threadIdx.x) / 32;
    const int first = threadIdx.x % 32 * Pack<T>::SIZE, step = 32 * Pack<T>::SIZE;
    if (row >= rows) return;                                       /* the whole warp */
    x += row * C;
    y += row * C;
    A total = 0, squares = 0;
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
        for (int n = 0; n < Pack<T>::SIZE; n++) total += A(values.number[n]);
    }
    if (has_h) x = sum + row * C;
    const A m = warp_sum(total) / A(C);
    for (long long c = first; c < C; c += step) {
        const Pack<T> values = load(x + c, C - c);
        #pragma unroll
        for (int n = 0; n < Pack<T>::SIZE; n++)
            if (c + n < C) squares += (A(values.number[n]) - m) * (A(values.number[n]) - m);
    }
    const A r = A(1) / sqrt(warp_sum(squares) / A(C) + A(eps));
    for (long long c = first; c < C; c += step) {
        Pack<T> values = load(x + c, C - c);
        const Pack<T> gains = load(gamma + c, C - c), shifts = load(beta + c, C - c);
        #pragma unroll
        for (int n = 0; n < Pack<T>::SIZE; n++) {
            const A scaled = (A(values.number[n]) - m) * r * A(gains.number[n]);
            values.number[n] = T(has_beta ? scaled + A(shifts.number[n]) : scaled);
        }
        store(y + c, values, C - c);
    }
    if (first == 0) mean[row] = m, rstd[row] = r;
}

/* A warp goes through every so-many-th row, and keeps in shared memory what its columns have added up to for
   dgamma and dbeta; in the end its block adds up what its warps have.
   ds: (rows, C), added to dx where it is given  partial: (blocks, 2, C), what each block has added up */
template <typename T>
__global__ void layernorm_backward(const T* dy, const T* x, const T* gamma, const Sum<T>* mean,
                                   const Sum<T>* rstd, const T* ds, T* dx, Sum<T>* partial, long long rows,
                                   long long C, long long has_ds) {
    typedef Sum<T> A;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
    const int first = lane * Pack<T>::SIZE, step = 32 * Pack<T>::SIZE;
    const long long apart = gridDim.x * (long long)warps;
    const ColumnSums<T, 2> sums(C);
    for (long long row = blockIdx.x * (long long)warps + warp; row < rows; row += apart) {
        const T* x_  = x + row * C;
        const T* dy_ = dy + row * C;
        const A m = mean[row], r = rstd[row];
        A sum = 0, product = 0;
        for (long long c = first; c < C; c += step) {
            const Pack<T> values = load(x_ + c, C - c), gradients = load(dy_ + c, C - c);
            const Pack<T> gains = load(gamma + c, C - c);
            #pragma unroll
            for (int n = 0; n < Pack<T>::SIZE; n++) {              /* beyond the row dy is 0, and so is the rest */
                const A d = A(gradients.number[n]), x_hat = (A(values.number[n]) - m) * r;
                sum     += d * A(gains.number[n]);
                product += d * A(gains.number[n]) * x_hat;
                sums.of(0, c, n) += d * x_hat;
                sums.of(1, c, n) += d;
            }
        }
        sum     = warp_sum(sum) / A(C);
        product = warp_sum(product) / A(C);
        for (long long c = first; c < C; c += step) {
            Pack<T> values = load(x_ + c, C - c), others = {};
            const Pack<T> gradients = load(dy_ + c, C - c), gains = load(gamma + c, C - c);
            if (has_ds) others = load(ds + row * C + c, C - c);
            #pragma unroll
            for (int n = 0; n < Pack<T>::SIZE; n++) {
                const A x_hat = (A(values.number[n]) - m) * r;
                const A dx_hat = A(gradients.number[n]) * A(gains.number[n]);
                const A own = r * (dx_hat - sum - x_hat * product);
                values.number[n] = T(has_ds ? A(others.number[n]) + own : own);
            }
            store(dx + row * C + c, values, C - c);
        }
    }
    sums.store(partial + blockIdx.x * 2 * C);
}
