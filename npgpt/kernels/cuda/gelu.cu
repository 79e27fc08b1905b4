#include "common.cuh"

/* x, y: (size,)  dy_dx: the derivative, which backward multiplies by. One read and two writes. */
template <typename T>
__global__ void gelu_tanh_forward(const T* x, T* y, T* dy_dx, long long size) {
    typedef Sum<T> A;
    const A a = A(0.044715), k = A(0.7978845608028654);            /* √(2/π) */
    const long long first = first_number<T>(), left = size - first;
    Pack<T> values = load(x + first, left), slopes;
    #pragma unroll
    for (int n = 0; n < Pack<T>::SIZE; n++) {
        const A v = A(values.number[n]), t = tanh(k * (v + a * (v * v * v)));
        values.number[n] = T(A(0.5) * v * (1 + t));
        slopes.number[n] = T(A(0.5) * (1 + t) + A(0.5) * v * (1 - t * t) * (k * (1 + 3 * a * (v * v))));
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
