#include "common.cuh"

/* x, y: (size,)  dy_dx: the derivative, which backward multiplies by. One read and two writes. */
template <typename T>
__global__ void gelu_tanh_forward(const T* x, T* y, T* dy_dx, long long size) {
    typedef Sum<T> A;
    const A a = A(0.044715), k = A(2 * 0.7978845608028654);        /* 2 √(2/π) */
    const long long first = first_number<T>(), left = size - first;
    Pack<T> values = load(x + first, left), slopes;
    #pragma unroll
    for (int n = 0; n < Pack<T>::SIZE; n++) {
        const A v = A(values.number[n]), square = v * v;
        const A gate = sigmoid(k * v * (1 + a * square)), y = v * gate;        /* ½ (1 + tanh u) = σ(2u) */
        values.number[n] = T(y);
        slopes.number[n] = T(gate + y * (1 - gate) * (k + 3 * a * k * square));
    }
    store(y + first, values, left);
    store(dy_dx + first, slopes, left);
}

/* dx = dy × dy_dx, each (size,) */
template <typename T>
__global__ void gelu_tanh_backward(const T* dy, const T* dy_dx, T* dx, long long size) {
    typedef Sum<T> A;
    const long long first = first_number<T>(), left = size - first;
    Pack<T> values = load(dy + first, left);
    const Pack<T> slopes = load(dy_dx + first, left);
    #pragma unroll
    for (int n = 0; n < Pack<T>::SIZE; n++) values.number[n] = T(A(values.number[n]) * A(slopes.number[n]));
    store(dx + first, values, left);
}
