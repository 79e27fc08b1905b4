/* Sums over rows, of KINDS of numbers for each of C columns, where each lane of a warp goes through packs of them:
   a sum for each warp, in shared memory, and in the end their sum for the block. In what order is fixed. */
template <typename T, int KINDS> struct ColumnSums {
    Sum<T>* slots;                                                 /* (warps, KINDS, width) */
    long long C, width;                                            /* whole rounds of packs */

    __device__ explicit ColumnSums(long long C) : C(C) {
        const int step = 32 * Pack<T>::SIZE;
        width = (C + step - 1) / step * step;
        slots = reinterpret_cast<Sum<T>*>(shared_memory);
        for (long long n = threadIdx.x; n < blockDim.x / 32 * KINDS * width; n += blockDim.x) slots[n] = 0;
        __syncthreads();
    }
    /* The warp's own, of number n of its lane's pack at column c. A pack's numbers lie 32 apart, so that those of
       the 32 lanes are in as many banks. */
    __device__ Sum<T>& of(int kind, long long c, int n) const {
        const int step = 32 * Pack<T>::SIZE;
        return slots[(threadIdx.x / 32 * KINDS + kind) * width + c / step * step + 32 * n + threadIdx.x % 32];
    }
    /* to: (KINDS, C) */
    __device__ void store(Sum<T>* to) const {
        const int step = 32 * Pack<T>::SIZE;
        __syncthreads();
        for (long long n = threadIdx.x; n < KINDS * width; n += blockDim.x) {
            const long long kind = n / width, slot = n % width, place = slot % step;
            const long long c = slot - place + place % 32 * Pack<T>::SIZE + place / 32;
            if (c >= C) continue;
            Sum<T> sum = 0;
            for (unsigned warp = 0; warp < blockDim.x / 32; warp++) sum += slots[warp * KINDS * width + n];
            to[kind * C + c] = sum;
        }
    }
};
