/* What the kernels share. */

#ifndef INFINITY                                                   /* NVRTC has none of C's headers */
#define INFINITY __int_as_float(0x7f800000)
#endif

#ifdef __CUDACC_RTC__                                             /* tests/cuda_on_cpu/cuda.h does it on a CPU */
__device__ inline unsigned short to_bfloat16(float x) {
    unsigned short bits;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(x));
    return bits;
}
__device__ inline unsigned short to_float16(float x) {
    unsigned short bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(x));
    return bits;
}
__device__ inline float from_float16(unsigned short bits) {
    float x;
    asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(bits));
    return x;
}
#endif

/* Numbers of 16 bits, which are kept so and computed with as float. */
struct bfloat16 {
    unsigned short bits;
    bfloat16() = default;
    __device__ bfloat16(float x) : bits(to_bfloat16(x)) {}
    __device__ operator float() const { return __uint_as_float(unsigned(bits) << 16); }
};
struct float16 {
    unsigned short bits;
    float16() = default;
    __device__ float16(float x) : bits(to_float16(x)) {}
    __device__ operator float() const { return from_float16(bits); }
};

/* What sums and statistics of these are kept in. */
template <typename T> struct Accumulator { typedef T type; };
template <> struct Accumulator<bfloat16> { typedef float type; };
template <> struct Accumulator<float16>  { typedef float type; };
template <typename T> using Sum = typename Accumulator<T>::type;

extern __shared__ __align__(16) unsigned char shared_memory[];     /* as much as the launch asks for */

/* What a thread reads or writes at once, 16 bytes: then enough is on its way from memory to keep it busy. */
template <typename T> struct __align__(16) Pack {
    enum { SIZE = 16 / sizeof(T) };
    T number[SIZE];
};

/* The pack at `from`, where `left` numbers are: 0 for what is missing. */
template <typename T> __device__ Pack<T> load(const T* from, long long left) {
    Pack<T> pack;
    if (left >= Pack<T>::SIZE && (unsigned long long)from % 16 == 0)
        return *reinterpret_cast<const Pack<T>*>(from);
    #pragma unroll
    for (int n = 0; n < Pack<T>::SIZE; n++) pack.number[n] = n < left ? from[n] : T(0);
    return pack;
}

/* As much of the pack as there is room for, `left` numbers. */
template <typename T> __device__ void store(T* to, const Pack<T>& pack, long long left) {
    if (left >= Pack<T>::SIZE && (unsigned long long)to % 16 == 0) {
        *reinterpret_cast<Pack<T>*>(to) = pack;
        return;
    }
    #pragma unroll
    for (int n = 0; n < Pack<T>::SIZE; n++)
        if (n < left) to[n] = pack.number[n];
}

/* Where the pack of a thread begins, in a kernel that gives each one. */
template <typename T> __device__ long long first_number() {
    return (blockIdx.x * (long long)blockDim.x + threadIdx.x) * Pack<T>::SIZE;
}

/* The hardware has powers of 2, of float: e^x = 2^(x log₂ e). */
#define LOG2_E 1.4426950408889634
__device__ inline float exponential(float x) { return exp2(float(LOG2_E) * x); }
__device__ inline double exponential(double x) { return exp(x); }
template <typename A> __device__ A sigmoid(A x) { return 1 / (1 + exponential(-x)); }

/* The sum over a warp, the same bits in all its threads. */
template <typename A> __device__ A warp_sum(A value) {
    for (int offset = 16; offset > 0; offset /= 2) value += __shfl_xor_sync(~0u, value, offset);
    return value;
}

template <typename A> __device__ A warp_max(A value) {
    for (int offset = 16; offset > 0; offset /= 2) value = max(value, __shfl_xor_sync(~0u, value, offset));
    return value;
}

/* The number of each warp, in order, for all threads.  slots: 32 numbers of shared memory */
template <typename A> __device__ void share_among_warps(A value, A* slots) {
    __syncthreads();                                               /* the slots may still be read */
    if (threadIdx.x % 32 == 0) slots[threadIdx.x / 32] = value;
    __syncthreads();
}

/* The sum over a block, the same bits in all its threads; and the largest. */
template <typename A> __device__ A block_sum(A value, A* slots) {
    share_among_warps(warp_sum(value), slots);
    A sum = 0;
    for (unsigned warp = 0; warp < blockDim.x / 32; warp++) sum += slots[warp];
    return sum;
}

template <typename A> __device__ A block_max(A value, A* slots) {
    share_among_warps(warp_max(value), slots);
    value = slots[0];
    for (unsigned warp = 1; warp < blockDim.x / 32; warp++) value = max(value, slots[warp]);
    return value;
}

/* Philox 4×64-10 (Salmon et al. 2011), whose four words are numbers `block` of its sequence in NumPy, which
   counts up before it enciphers. */
__device__ void philox(unsigned long long key0, unsigned long long key1, unsigned long long word[4]) {
    for (int round = 0; round < 10; round++) {
        const unsigned long long m0 = 0xD2E7470EE14C6C93ull, m1 = 0xCA5A826395121157ull;
        const unsigned long long high0 = __umul64hi(m0, word[0]), low0 = m0 * word[0];
        const unsigned long long high1 = __umul64hi(m1, word[2]), low1 = m1 * word[2];
        word[0] = high1 ^ word[1] ^ key0;
        word[1] = low1;
        word[2] = high0 ^ word[3] ^ key1;
        word[3] = low0;
        key0 += 0x9E3779B97F4A7C15ull;
        key1 += 0xBB67AE8584CAA73Bull;
    }
}
