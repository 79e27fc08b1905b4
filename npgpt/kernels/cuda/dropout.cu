#include "common.cuh"

/* One block of Philox a thread, which is 16 elements.  x, y: (examples, each), tiles blocks an example
   An element is kept if its 16 bits are below `threshold`, as npgpt/tensor/random.py has it. */
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
    unsigned long long word[4] = {(unsigned long long)number + 1, (unsigned long long)step,
                                  (unsigned long long)(example + b), (unsigned long long)site};
    philox(seed, stream, word);
    #pragma unroll
    for (int n = 0; n < 16; n += Pack<T>::SIZE) {                  /* unrolled, `word` stays in registers */
        Pack<T> values = load(x + n, each - first - n);
        #pragma unroll
        for (int k = 0; k < Pack<T>::SIZE; k++) {
            const int bits = word[(n + k) / 4] >> 16 * ((n + k) % 4) & 0xffff;
            values.number[k] = bits < threshold ? T(A(values.number[k]) * A(scale)) : T(0);
        }
        store(y + n, values, each - first - n);
    }
}
