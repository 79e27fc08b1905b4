#include "common.cuh"

/* One warp a row. x and y cross the bus once: the second and the third look at a row find it in the cache. */
template <typename T>
__global__ void layernorm_forward(const T* x, const T* gamma, const T* beta, T* y, Sum<T>* mean, Sum<T>* rstd,
                                  long long rows, long long C, long long has_beta, double eps) {
    typedef Sum<T> A;
    const long long row = (blockIdx.x * (long long)blockDim.x + threadIdx.x) / 32;
    const int lane = threadIdx.x % 32;
    if (row >= rows) return;                                       /* the whole warp */
    x += row * C;
    y += row * C;
    A sum = 0, squares = 0;
    for (long long c = lane; c < C; c += 32) sum += A(x[c]);
    const A m = warp_sum(sum) / A(C);
    for (long long c = lane; c < C; c += 32) squares += (A(x[c]) - m) * (A(x[c]) - m);
    const A r = A(1) / sqrt(warp_sum(squares) / A(C) + A(eps));
    for (long long c = lane; c < C; c += 32) {
        const A scaled = (A(x[c]) - m) * r * A(gamma[c]);
        y[c] = T(has_beta ? scaled + A(beta[c]) : scaled);
    }
    if (lane == 0) mean[row] = m, rstd[row] = r;
}

/* A block takes every gridDim.x-th row, a thread every blockDim.x-th column of it, of which it also keeps the
   sums for dgamma and dbeta, in shared memory. partial: (blocks, 2, C), for each block these sums. */
template <typename T>
__global__ void layernorm_backward(const T* dy, const T* x, const T* gamma, const Sum<T>* mean,
                                   const Sum<T>* rstd, T* dx, Sum<T>* partial, long long rows, long long C) {
    typedef Sum<T> A;
    A* slots  = reinterpret_cast<A*>(shared_memory);
    A* dgamma = slots + 32;
    A* dbeta  = dgamma + C;
    for (long long c = threadIdx.x; c < C; c += blockDim.x) dgamma[c] = dbeta[c] = 0;
    for (long long row = blockIdx.x; row < rows; row += gridDim.x) {
        const T* x_  = x + row * C;
        const T* dy_ = dy + row * C;
        const A m = mean[row], r = rstd[row];
        A sum = 0, product = 0;
        for (long long c = threadIdx.x; c < C; c += blockDim.x) {
            const A x_hat = (A(x_[c]) - m) * r, dx_hat = A(dy_[c]) * A(gamma[c]);
            sum       += dx_hat;
            product   += dx_hat * x_hat;
            dgamma[c] += A(dy_[c]) * x_hat;
            dbeta[c]  += A(dy_[c]);
        }
        sum     = block_sum(sum, slots) / A(C);
        product = block_sum(product, slots) / A(C);
        for (long long c = threadIdx.x; c < C; c += blockDim.x) {
            const A x_hat = (A(x_[c]) - m) * r, dx_hat = A(dy_[c]) * A(gamma[c]);
            dx[row * C + c] = T(r * (dx_hat - sum - x_hat * product));
        }
    }
    partial += blockIdx.x * 2 * C;
    for (long long c = threadIdx.x; c < C; c += blockDim.x) partial[c] = dgamma[c], partial[C + c] = dbeta[c];
}
