#include "common.cuh"

/* One block a row.  x: (rows, 2F), the gate g and then u  y, s: (rows, F) */
template <typename T>
__global__ void swiglu_forward(const T* x, T* y, T* s, long long F) {
    typedef Sum<T> A;
    const long long row = blockIdx.x;
    const T* g = x + row * 2 * F;
    const T* u = g + F;
    for (long long f = threadIdx.x; f < F; f += blockDim.x) {
        const A sigma = A(0.5) * (1 + tanh(A(0.5) * A(g[f])));
        s[row * F + f] = T(sigma);
        y[row * F + f] = T(A(g[f]) * sigma * A(u[f]));
    }
}

/* dy, s: (rows, F)  x, dx: (rows, 2F) */
template <typename T>
__global__ void swiglu_backward(const T* dy, const T* x, const T* s, T* dx, long long F) {
    typedef Sum<T> A;
    const long long row = blockIdx.x;
    const T* g = x + row * 2 * F;
    const T* u = g + F;
    T* dg = dx + row * 2 * F;
    T* du = dg + F;
    for (long long f = threadIdx.x; f < F; f += blockDim.x) {
        const A d = A(dy[row * F + f]), sigma = A(s[row * F + f]), gate = A(g[f]);
        dg[f] = T(d * A(u[f]) * sigma * (1 + gate * (1 - sigma)));
        du[f] = T(d * gate * sigma);
    }
}
