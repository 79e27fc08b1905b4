#include "common.cuh"

/* What a thread has of a row of cosines or sines. */
template <typename A, int SIZE> __device__ void load_angles(A (&numbers)[SIZE], const A* from, long long left) {
    #pragma unroll
    for (int n = 0; n < SIZE; n += Pack<A>::SIZE) {
        const Pack<A> pack = load(from + n, left - n);
        #pragma unroll
        for (int i = 0; i < Pack<A>::SIZE; i++) numbers[n + i] = pack.number[i];
    }
}

/* A thread turns as many pairs of channels as there are numbers in a pack, which are two packs.
   x: (B, H, T, D), with the strides of examples, heads and places  y: (B, H, T, D)
   cos, sin: (T, D/2), cos_stride apart for each example  direction: −1 turns back
   pair i: channels i and i + D/2, or, INTERLEAVED, 2i and 2i + 1 */
template <typename T, int INTERLEAVED>
__global__ void rotary(const T* x, const Sum<T>* cos, const Sum<T>* sin, T* y, long long rows,
                       long long H, long long places, long long D, long long stride_b, long long stride_h,
                       long long stride_t, long long cos_stride, double direction) {
    typedef Sum<T> A;
    enum { SIZE = Pack<T>::SIZE };
    const long long half = D / 2, packs = (half + SIZE - 1) / SIZE;
    const long long index = blockIdx.x * (long long)blockDim.x + threadIdx.x;
    const long long row = index / packs, pair = index % packs * SIZE;
    if (row >= rows) return;
    const long long t = row % places, b = row / places / H, h = row / places % H;
    const long long one = INTERLEAVED ? 2 * pair : pair, two = INTERLEAVED ? one + SIZE : half + pair;
    const long long end = INTERLEAVED ? D : half;                  /* of the channels that the first pack is of */
    x += b * stride_b + h * stride_h + t * stride_t;
    y += row * D;
    Pack<T> u = load(x + one, end - one), v = load(x + two, D - two);
    A c[SIZE], s[SIZE];
    load_angles(c, cos + b * cos_stride + t * half + pair, half - pair);
    load_angles(s, sin + b * cos_stride + t * half + pair, half - pair);
    #pragma unroll
    for (int n = 0; n < SIZE; n++) {
        T& first  = !INTERLEAVED ? u.number[n] : n < SIZE / 2 ? u.number[2 * n] : v.number[2 * n - SIZE];
        T& second = !INTERLEAVED ? v.number[n] : n < SIZE / 2 ? u.number[2 * n + 1] : v.number[2 * n + 1 - SIZE];
        const A p = A(first), q = A(second), sine = A(direction) * s[n];
        first  = T(p * c[n] - q * sine);
        second = T(p * sine + q * c[n]);
    }
    store(y + one, u, end - one);
    store(y + two, v, D - two);
}
