#include "common.cuh"

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

/* One block of Philox a thread, which is 16 elements.  x, y: (examples, each), tiles blocks an example
   An element is kept if its 16 bits are below `threshold`, as npgpt/tensor/random.py has it. */
template <typename T>
__global__ void dropout(const T* x, T* y, long long each, long long tiles, long long seed, long long stream,
                        long long step, long long example, long long site, long long threshold,
                        double scale) {
    typedef typename Accumulator<T>::type A;
    const long long b = blockIdx.x / tiles, number = blockIdx.x % tiles * blockDim.x + threadIdx.x;
    const long long first = 16 * number;
    if (first >= each) return;
    x += b * each + first;
    y += b * each + first;
    unsigned long long word[4] = {(unsigned long long)number + 1, (unsigned long long)step,
                                  (unsigned long long)(example + b), (unsigned long long)site};
    philox(seed, stream, word);
    #pragma unroll
    for (int n = 0; n < 16; n++) {                                 /* unrolled, `word` stays in registers */
        const int bits = word[n / 4] >> 16 * (n % 4) & 0xffff;
        if (first + n < each) y[n] = bits < threshold ? T(A(x[n]) * A(scale)) : T(0);
    }
}
