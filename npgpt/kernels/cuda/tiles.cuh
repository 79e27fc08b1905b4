/* Tiles of 16-bit numbers in shared memory, and their products by a block of 4 warps. A tile has D columns; its
   rows lie D + 8 apart, so that the 8 that are loaded at once are in different banks. Each warp owns 16 rows. */

enum { WARPS = 4, OWN = 16 * WARPS };

/* ROWS rows of one head from `first` on set out to become a tile, 0 where there are none and beyond the head's
   width. They are there after arrive(). */
template <int D, int ROWS, typename T>
__device__ void fetch(T* tile, const T* head, long long stride, long long first, int rows, int width) {
    const bool aligned = ((unsigned long long)head | 2 * stride | 2 * width) % 16 == 0;
    const int packs = ROWS * D / Pack<T>::SIZE, there = min((long long)ROWS, rows - first);
    head += first * stride;
    if (aligned) {
        #pragma unroll
        for (int n = 0; n < packs; n += 32 * WARPS) {
            const int row = (n + threadIdx.x) / (D / Pack<T>::SIZE), d = (n + threadIdx.x) * Pack<T>::SIZE % D;
            copy_16_bytes(tile + row * (D + 8) + d, head + row * stride + d, row < there && d < width);
        }
    } else {
        for (int n = threadIdx.x; n < packs; n += 32 * WARPS) {
            const int row = n / (D / Pack<T>::SIZE), d = n * Pack<T>::SIZE % D;
            *reinterpret_cast<Pack<T>*>(tile + row * (D + 8) + d) =
                load(head + row * stride + d, row < there ? width - d : 0);
        }
    }
}

/* What the block's threads have fetched is there, and what they read before may be overwritten. */
__device__ inline void arrive() {
    wait_for_copies();
    __syncthreads();
}

/* out += rows othersᵀ, of the warp's 16 rows of a tile and COUNT of another. */
template <int D, int COUNT, typename T>
__device__ void multiply_rows(float (&out)[COUNT / 8][4], const T* rows, const T* others) {
    const int lane = threadIdx.x % 32;
    rows   += lane % 16 * (D + 8) + lane / 16 * 8;
    others += (lane % 8 + lane / 16 * 8) * (D + 8) + lane / 8 % 2 * 8;
    #pragma unroll
    for (int d = 0; d < D; d += 16) {
        unsigned a[4], b[4];
        load_matrices(a, rows + d);
        #pragma unroll
        for (int n = 0; n < COUNT; n += 16) {
            load_matrices(b, others + n * (D + 8) + d);
            multiply(out[n / 8], a, b[0], b[1], T());
            multiply(out[n / 8 + 1], a, b[2], b[3], T());
        }
    }
}

/* out += weights tile, of the warp's 16 rows of COUNT weights and a tile of COUNT rows. */
template <int D, int COUNT, typename T>
__device__ void add_weighted(float (&out)[D / 8][4], const float (&weights)[COUNT / 8][4], const T* tile) {
    const int lane = threadIdx.x % 32;
    tile += lane % 16 * (D + 8) + lane / 16 * 8;
    #pragma unroll
    for (int n = 0; n < COUNT; n += 16) {
        const float (&left)[4] = weights[n / 8], (&right)[4] = weights[n / 8 + 1];
        const unsigned a[4] = {pair(left[0], left[1], T()), pair(left[2], left[3], T()),
                               pair(right[0], right[1], T()), pair(right[2], right[3], T())};
        #pragma unroll
        for (int d = 0; d < D; d += 16) {
            unsigned b[4];
            load_matrices_transposed(b, tile + n * (D + 8) + d);
            multiply(out[d / 8], a, b[0], b[1], T());
            multiply(out[d / 8 + 1], a, b[2], b[3], T());
        }
    }
}

template <typename P> __device__ void swap(P& one, P& other) {
    P kept = one;
    one    = other;
    other  = kept;
}

template <int N> __device__ void clear(float (&sums)[N][4]) {
    #pragma unroll
    for (int n = 0; n < N; n++)
        #pragma unroll
        for (int e = 0; e < 4; e++) sums[n][e] = 0;
}

/* Which row and column of the warp's 16 × 8 N sums a thread's sums[n][e] is. */
__device__ inline int row_of(int e) { return threadIdx.x % 32 / 4 + 8 * (e / 2); }
__device__ inline int column_of(int n, int e) { return 8 * n + 2 * (threadIdx.x % 4) + e % 2; }

/* The warp's 16 rows of a tile, scaled, to where they belong: row `first` of (rows, width), `stride` apart. */
template <int D, typename T>
__device__ void store(T* head, long long stride, const float (&sums)[D / 8][4], float scale, long long first,
                      long long rows, int width) {
    const bool paired = ((unsigned long long)head | 2 * stride | 2 * width) % 4 == 0;
    #pragma unroll
    for (int n = 0; n < D / 8; n++)
        #pragma unroll
        for (int e = 0; e < 4; e += 2) {
            const int column = column_of(n, e);
            if (first + row_of(e) >= rows || column >= width) continue;
            T* place = head + (first + row_of(e)) * stride + column;
            if (paired) {
                *reinterpret_cast<unsigned*>(place) = pair(sums[n][e] * scale, sums[n][e + 1] * scale, T());
            } else {
                place[0] = T(sums[n][e] * scale);
                if (column + 1 < width) place[1] = T(sums[n][e + 1] * scale);
            }
        }
}
