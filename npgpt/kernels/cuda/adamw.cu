#include "common.cuh"

/* w, g, m, v: (size,), w, m and v in place.  grad_scale: one number, where it was computed
   bias1, bias2: 1 − β₁ᵗ and 1 − β₂ᵗ */
template <typename T>
__global__ void adamw(T* __restrict__ w, const T* __restrict__ g, T* __restrict__ m, T* __restrict__ v,
                      const T* __restrict__ grad_scale, long long size, double lr, double beta1, double beta2,
                      double eps, double weight_decay, double bias1, double bias2) {
    typedef typename Accumulator<T>::type A;
    const A scale = A(*grad_scale);
    const long long first = blockIdx.x * (long long)(EACH * blockDim.x) + threadIdx.x;
    #pragma unroll
    for (int each = 0; each < EACH; each++) {
        const long long n = first + each * blockDim.x;
        if (n < size) {
            const A gradient = scale * A(g[n]);
            const A mean     = A(beta1) * A(m[n]) + A(1 - beta1) * gradient;
            const A square   = A(beta2) * A(v[n]) + A(1 - beta2) * (gradient * gradient);
            const A step     = A(lr / bias1) * mean / (sqrt(square * A(1 / bias2)) + A(eps));
            m[n] = T(mean);
            v[n] = T(square);
            w[n] = T(A(1 - lr * weight_decay) * A(w[n]) - step);
        }
    }
}
