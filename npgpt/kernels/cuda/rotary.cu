#include "common.cuh"

/* One warp for each example, head and place.  x: (B, H, T, D), with the strides of examples, heads and places  y: (B, H, T, D)
   cos, sin: (T, D/2), cos_stride apart for each example  direction: −1 turns back
   pair i: channels i × step and i × step + other */
template <typename T>
__global__ void rotary(const T* x, const Sum<T>* cos, const Sum<T>* sin, T* y, long long rows,
                       long long H, long long places, long long D, long long stride_b, long long stride_h,
                       long long stride_t, long long cos_stride, long long step, long long other,
                       double direction) {
    typedef Sum<T> A;
    const long long row = (blockIdx.x * (long long)blockDim.x + threadIdx.x) / 32;
    if (row >= rows) return;
    const long long t = row % places, b = row / places / H, h = row / places % H;
    x   += b * stride_b + h * stride_h + t * stride_t;
    y   += row * D;
    cos += b * cos_stride + t * (D / 2);
    sin += b * cos_stride + t * (D / 2);
    for (long long i = threadIdx.x % 32; i < D / 2; i += 32) {
        const long long first = i * step, second = first + other;
        const A a = A(x[first]), b = A(x[second]);
        const A c = cos[i], s = A(direction) * sin[i];
        y[first]  = T(a * c - b * s);
        y[second] = T(a * s + b * c);
    }
}
