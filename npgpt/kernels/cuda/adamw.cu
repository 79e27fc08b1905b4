#include "common.cuh"

/* What all weights have in common.  kept: 1 − lr × weight_decay  rate: lr / (1 − β₁ᵗ)  unbias: 1 / (1 − β₂ᵗ) */
template <typename A> struct Settings {
    A kept, rate, beta1, rest1, beta2, rest2, unbias, eps;

    __device__ Settings(double kept, double rate, double beta1, double beta2, double unbias, double eps)
        : kept(kept), rate(rate), beta1(beta1), rest1(1 - beta1), beta2(beta2), rest2(1 - beta2), unbias(unbias),
          eps(eps) {}
};

/* One weight's step, in place; returns the new weight. */
template <typename A>
__device__ A adamw_step(A& w, A gradient, A& m, A& v, const Settings<A>& s) {
    m = s.beta1 * m + s.rest1 * gradient;
    v = s.beta2 * v + s.rest2 * (gradient * gradient);
    return w = s.kept * w - s.rate * m / (sqrt(v * s.unbias) + s.eps);
}

/* w, g, m, v: (size,), w, m and v in place.  grad_scale: one number, where it was computed */
template <typename T>
__global__ void adamw(T* w, const T* g, T* m, T* v, const T* grad_scale, long long size, double kept, double rate,
                      double beta1, double beta2, double unbias, double eps) {
    const Settings<T> settings(kept, rate, beta1, beta2, unbias, eps);
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
    if (x != x) return x;
    bfloat16 y;
    y.bits = (__float_as_uint(x) + bits) >> 16;
    return y;
}
template <typename T> __device__ T rounded(float x, unsigned, T) { return T(x); }

/* The same for weights of 16 bits, narrow, that follow w. A block takes the numbers that npgpt/tensor/random.py
   has in one tile, counted from the first of all; a thread 16 of them, with one block of Philox, four at a time:
   what they need is all on its way before the first is written.
   offset: of narrow[0] in the first tile, whose number is `tile` */
template <typename T>
__global__ void adamw_narrow(T* __restrict__ narrow, float* __restrict__ w, const float* __restrict__ g,
                             float* __restrict__ m, float* __restrict__ v, const float* __restrict__ grad_scale,
                             long long size, long long tile, long long offset, long long seed,
                             long long stream, long long step, double kept, double rate, double beta1,
                             double beta2, double unbias, double eps) {
    const Settings<float> settings(kept, rate, beta1, beta2, unbias, eps);
    unsigned long long word[4] = {(tile + blockIdx.x) * 256ull + threadIdx.x + 1, (unsigned long long)step, 0, 0};
    philox(seed, stream, word);
    const long long first = blockIdx.x * 4096ll + threadIdx.x - offset;
    const float scale = *grad_scale;
    #pragma unroll
    for (int four = 0; four < 4; four++) {                         /* unrolled, `word` stays in registers */
        float weight[4], gradient[4], mean[4], square[4];
        #pragma unroll
        for (int each = 0; each < 4; each++) {
            const long long n = first + (4 * four + each) * 256;
            if (n >= 0 && n < size)
                weight[each] = w[n], gradient[each] = g[n], mean[each] = m[n], square[each] = v[n];
        }
        #pragma unroll
        for (int each = 0; each < 4; each++) {
            const long long n = first + (4 * four + each) * 256;
            if (n < 0 || n >= size) continue;
            adamw_step(weight[each], scale * gradient[each], mean[each], square[each], settings);
            w[n] = weight[each], m[n] = mean[each], v[n] = square[each];
            narrow[n] = rounded(weight[each], word[four] >> 16 * each & 0xffff, T());
        }
    }
}
