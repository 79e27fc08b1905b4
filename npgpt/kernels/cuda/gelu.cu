#include "common.cuh"

/* x, y: (size,)  dy_dx: the derivative, which backward multiplies by. One read and two writes. */
template <typename T>
__global__ void gelu_tanh_forward(const T* __restrict__ x, T* __restrict__ y, T* __restrict__ dy_dx,
                                  long long size) {
    typedef Sum<T> A;
    const A a = A(0.044715), k = A(0.7978845608028654);            /* √(2/π) */
    const long long first = blockIdx.x * (long long)(EACH * blockDim.x) + threadIdx.x;
    A values[EACH];
    #pragma unroll
    for (int each = 0; each < EACH; each++) {
        const long long n = first + each * blockDim.x;
        values[each] = n < size ? A(x[n]) : A(0);
    }
    #pragma unroll
    for (int each = 0; each < EACH; each++) {
        const long long n = first + each * blockDim.x;
        const A v = values[each], t = tanh(k * (v + a * (v * v * v)));
        if (n < size) {
            y[n]     = T(A(0.5) * v * (1 + t));
            dy_dx[n] = T(A(0.5) * (1 + t) + A(0.5) * v * (1 - t * t) * (k * (1 + 3 * a * (v * v))));
        }
    }
}
