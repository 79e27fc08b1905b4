#include "common.cuh"

/* The random bits of 16 elements of an example, 16 each, are one block of Philox; an element is kept if its own are
   below `threshold`, as npgpt/tensor/random.py has it. */
struct Sixteen {
    unsigned long long word[4];

    __device__ Sixteen(long long number, long long seed, long long stream, long long step, long long example,
                       long long site)
        : word{(unsigned long long)number + 1, (unsigned long long)step, (unsigned long long)example,
               (unsigned long long)site} {
        philox(seed, stream, word);
    }
    __device__ bool keeps(int n, long long threshold) const {
        return (long long)(word[n / 4] >> 16 * (n % 4) & 0xffff) < threshold;
    }
};

/* 16 elements a thread.  x, y: (examples, each), tiles blocks an example */
template <typename T>
__global__ void dropout(const T* x, T* y, long long each, long long tiles, long long seed, long long stream,
                        long long step, long long example, long long site, long long threshold,
                        double scale) {
    typedef Sum<T> A;
    const long long b = blockIdx.x / tiles, number = blockIdx.x % tiles * blockDim.x + threadIdx.x;
    const long long first = 16 * number;
    if (first >= each) return;
    x += b * each + first;
    y += b * each + first;
    const Sixteen random(number, seed, stream, step, example + b, site);
    #pragma unroll
    for (int n = 0; n < 16; n += Pack<T>::SIZE) {              /* unrolled, the words stay in registers */
        Pack<T> values = load(x + n, each - first - n);
        #pragma unroll
        for (int k = 0; k < Pack<T>::SIZE; k++)
            values.number[k] = random.keeps(n + k, threshold) ? T(A(values.number[k]) * A(scale)) : T(0);
        store(y + n, values, each - first - n);
    }
}

/* Which elements are kept, as bits.  kept: (examples, words), of 16 elements each, one a thread */
__global__ void dropout_kept(unsigned short* kept, long long examples, long long words, long long seed,
                             long long stream, long long step, long long example, long long site,
                             long long threshold) {
    const long long place = blockIdx.x * (long long)blockDim.x + threadIdx.x;
    if (place >= examples * words) return;
    const Sixteen random(place % words, seed, stream, step, example + place / words, site);
    unsigned bits = 0;
    #pragma unroll
    for (int n = 0; n < 16; n++) bits |= unsigned(random.keeps(n, threshold)) << n;
    kept[place] = bits;
}
