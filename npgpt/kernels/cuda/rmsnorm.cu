#include "common.cuh"

/* One warp a row (layernorm.cu). */
template <typename T>
__global__ void rmsnorm_forward(const T* x, const T* gamma, T* y, Sum<T>* rstd, long long rows, long long C,
                                double eps) {
    typedef Sum<T> A;
    const long long row = (blockIdx.x * (long long)blockDim.x + threadIdx.x) / 32;
    const int lane = threadIdx.x % 32;
    if (row >= rows) return;                                       /* the whole warp */
    x += row * C;
    y += row * C;
    A squares = 0;
    for (long long c = lane; c < C; c += 32) squares += A(x[c]) * A(x[c]);
    const A r = A(1) / sqrt(warp_sum(squares) / A(C) + A(eps));
    for (long long c = lane; c < C; c += 32) y[c] = T(A(gamma[c]) * (A(x[c]) * r));
    if (lane == 0) rstd[row] = r;
}

/* Rows and columns are shared out as in layernorm.cu. partial: (blocks, C), for each block its sums. */
template <typename T>
__global__ void rmsnorm_backward(const T* dy, const T* x, const T* gamma, const Sum<T>* rstd, T* dx,
                                 Sum<T>* partial, long long rows, long long C) {
    typedef Sum<T> A;
    A* slots  = reinterpret_cast<A*>(shared_memory);
    A* dgamma = slots + 32;
    for (long long c = threadIdx.x; c < C; c += blockDim.x) dgamma[c] = 0;
    for (long long row = blockIdx.x; row < rows; row += gridDim.x) {
        const T* x_  = x + row * C;
        const T* dy_ = dy + row * C;
        const A r = rstd[row];
        A product = 0;
        for (long long c = threadIdx.x; c < C; c += blockDim.x) {
            const A x_hat = A(x_[c]) * r;
            product   += A(dy_[c]) * A(gamma[c]) * x_hat;
            dgamma[c] += A(dy_[c]) * x_hat;
        }
        product = block_sum(product, slots) / A(C);
        for (long long c = threadIdx.x; c < C; c += blockDim.x)
            dx[row * C + c] = T(r * (A(dy_[c]) * A(gamma[c]) - A(x_[c]) * r * product));
    }
    for (long long c = threadIdx.x; c < C; c += blockDim.x) partial[blockIdx.x * C + c] = dgamma[c];
}
