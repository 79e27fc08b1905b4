#include "common.cuh"

/* What all weights have in common.  bias1, bias2: 1 − β₁ᵗ and 1 − β₂ᵗ */
struct Settings { double lr, beta1, beta2, eps, weight_decay, bias1, bias2; };

/* One weight's step, in place; returns the new weight. */
template <typename A>
__device__ A adamw_step(A& w, A gradient, A& m, A& v, const Settings& s) {
    const A mean   = A(s.beta1) * m + A(1 - s.beta1) * gradient;
    const A square = A(s.beta2) * v + A(1 - s.beta2) * (gradient * gradient);
    const A step   = A(s.lr / s.bias1) * mean / (sqrt(square * A(1 / s.bias2)) + A(s.eps));
    m = mean;
    v = square;
    return w = A(1 - s.lr * s.weight_decay) * w - step;
}

/* w, g, m, v: (size,), w, m and v in place.  grad_scale: one number, where it was computed */
template <typename T>
__global__ void adamw(T* w, const T* g, T* m, T* v, const T* grad_scale, long long size, double lr, double beta1,
                      double beta2, double eps, double weight_decay, double bias1, double bias2) {
    const Settings settings = {lr, beta1, beta2, eps, weight_decay, bias1, bias2};
    const long long first = first_number<T>(), left = size - first;
    Pack<T> weights = load(w + first, left), means = load(m + first, left), squares = load(v + first, left);
    const Pack<T> gradients = load(g + first, left);
    const T scale = *grad_scale;
    #pragma unroll
    for (int n = 0; n < Pack<T>::SIZE; n++)
        adamw_step(weights.number[n], scale * gradients.number[n], means.number[n], squares.number[n],
                   settings);
    store(w + first, weights, left);
    store(m + first, means, left);
    store(v + first, squares, left);
}

/* Where `bits` are random, to one of the two neighbours (npgpt/ops/stochastic_rounding.py); else the nearest. */
__device__ inline bfloat16 rounded(float x, unsigned bits, bfloat16) {
    bfloat16 y;
    y.bits = (__float_as_uint(x) + bits) >> 16;
    return y;
}
template <typename T> __device__ T rounded(float x, unsigned, T) { return T(x); }

/* The same for weights of 16 bits, narrow, that follow w. A block takes the numbers that npgpt/tensor/random.py
   has in one tile, counted from the first of all; a thread 16 of them, with one block of Philox.
   offset: of narrow[0] in the first tile, whose number is `tile` */
template <typename T>
__global__ void adamw_narrow(T* __restrict__ narrow, float* __restrict__ w, const float* __restrict__ g,
                             float* __restrict__ m, float* __restrict__ v, const float* __restrict__ grad_scale,
                             long long size, long long tile, long long offset, long long seed,
                             long long stream, long long step, double lr, double beta1, double beta2,
                             double eps, double weight_decay, double bias1, double bias2) {
    const Settings settings = {lr, beta1, beta2, eps, weight_decay, bias1, bias2};
    unsigned long long word[4] = {(tile + blockIdx.x) * 256ull + threadIdx.x + 1, (unsigned long long)step, 0, 0};
    philox(seed, stream, word);
    const long long first = blockIdx.x * 4096ll + threadIdx.x - offset;
    #pragma unroll
    for (int each = 0; each < 16; each++) {                        /* unrolled, `word` stays in registers */
        const long long n = first + each * 256;
        if (n < 0 || n >= size) continue;
        const float next = adamw_step(w[n], *grad_scale * g[n], m[n], v[n], settings);
        narrow[n] = rounded(next, word[each / 4] >> 16 * (each % 4) & 0xffff, T());
    }
}
