#include "common.cuh"

/* One block a row.  x: (rows, 2F), the gate g and then u  y, s: (rows, F) */
template <typename T>
__global__ void swiglu_forward(const T* x, T* y, T* s, long long F) {
    typedef Sum<T> A;
    const long long row = blockIdx.x;
    const T* g = x + row * 2 * F;
    const T* u = g + F;
    for (long long f = threadIdx.x * Pack<T>::SIZE; f < F; f += blockDim.x * Pack<T>::SIZE) {
        Pack<T> gates = load(g + f, F - f), values = load(u + f, F - f);
        #pragma unroll
        for (int n = 0; n < Pack<T>::SIZE; n++) {
            const A gate = A(gates.number[n]), sigma = sigmoid(gate);
            values.number[n] = T(gate * sigma * A(values.number[n]));
            gates.number[n]  = T(sigma);
        }
        store(s + row * F + f, gates, F - f);
        store(y + row * F + f, values, F - f);
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
    for (long long f = threadIdx.x * Pack<T>::SIZE; f < F; f += blockDim.x * Pack<T>::SIZE) {
        Pack<T> gates = load(g + f, F - f), values = load(u + f, F - f);
        const Pack<T> gradients = load(dy + row * F + f, F - f), sigmas = load(s + row * F + f, F - f);
        #pragma unroll
        for (int n = 0; n < Pack<T>::SIZE; n++) {
            const A d = A(gradients.number[n]), sigma = A(sigmas.number[n]), gate = A(gates.number[n]);
            gates.number[n]  = T(d * A(values.number[n]) * sigma * (1 + gate * (1 - sigma)));
            values.number[n] = T(d * gate * sigma);
        }
        store(dg + f, gates, F - f);
        store(du + f, values, F - f);
    }
}
