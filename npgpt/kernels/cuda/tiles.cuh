/* Tiles of 16-bit numbers in shared memory, and their products by a block of 4 warps. A tile has D columns; its
   rows lie D + 8 apart, so that the 8 that are loaded at once are in different banks.

   Each warp owns 16 or 32 rows. What it loads of another tile it multiplies by all of them: with 32, half as much
   is loaded. Of its products a thread has, for every 8 columns, 4 sums of every 16 rows (tensor_cores.cuh): E in all,
   sums[n][e], two each of E / 2 rows. */

enum { WARPS = 4 };

/* Those 4 sums of the rows from 16 m on. */
template <int E> __device__ float (&sums_of(float (&sums)[E], int m))[4] {
    return reinterpret_cast<float (&)[4]>(sums[4 * m]);
}

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

/* out += rows othersᵀ, of the warp's rows of a tile and 8 N of another. */
template <int D, int N, int E, typename T>
__device__ void multiply_rows(float (&out)[N][E], const T* rows, const T* others) {
    const int lane = threadIdx.x % 32;
    rows   += lane % 16 * (D + 8) + lane / 16 * 8;
    others += (lane % 8 + lane / 16 * 8) * (D + 8) + lane / 8 % 2 * 8;
    #pragma unroll
    for (int d = 0; d < D; d += 16) {
        unsigned a[E / 4][4], b[4];
        #pragma unroll
        for (int m = 0; m < E / 4; m++) load_matrices(a[m], rows + 16 * m * (D + 8) + d);
        #pragma unroll
        for (int n = 0; n < N; n += 2) {
            load_matrices(b, others + 8 * n * (D + 8) + d);
            #pragma unroll
            for (int m = 0; m < E / 4; m++) {
                multiply(sums_of(out[n], m), a[m], b[0], b[1], T());
                multiply(sums_of(out[n + 1], m), a[m], b[2], b[3], T());
            }
        }
    }
}

/* out += weights tile, of the warp's rows of 8 N weights and a tile of 8 N rows. */
template <int D, int N, int E, typename T>
__device__ void add_weighted(float (&out)[D / 8][E], const float (&weights)[N][E], const T* tile) {
    const int lane = threadIdx.x % 32;
    tile += lane % 16 * (D + 8) + lane / 16 * 8;
    #pragma unroll
    for (int n = 0; n < N; n += 2) {
        unsigned a[E / 4][4], b[4];
        #pragma unroll
        for (int e = 0; e < E; e += 2) {
            a[e / 4][e / 2 % 2]     = pair(weights[n][e], weights[n][e + 1], T());
            a[e / 4][e / 2 % 2 + 2] = pair(weights[n + 1][e], weights[n + 1][e + 1], T());
        }
        #pragma unroll
        for (int d = 0; d < D; d += 16) {
            load_matrices_transposed(b, tile + 8 * n * (D + 8) + d);
            #pragma unroll
            for (int m = 0; m < E / 4; m++) {
                multiply(sums_of(out[d / 8], m), a[m], b[0], b[1], T());
                multiply(sums_of(out[d / 8 + 1], m), a[m], b[2], b[3], T());
            }
        }
    }
}

template <int N, int E> __device__ void clear(float (&sums)[N][E]) {
    #pragma unroll
    for (int n = 0; n < N; n++)
        #pragma unroll
        for (int e = 0; e < E; e++) sums[n][e] = 0;
}

/* Which row and column of the warp's sums a thread's sums[n][e] is. */
__device__ inline int row_of(int e) { return threadIdx.x % 32 / 4 + 8 * (e / 2); }
__device__ inline int column_of(int n, int e) { return 8 * n + 2 * (threadIdx.x % 4) + e % 2; }

/* The warp's rows of a tile, scaled, to where they belong: row `first` of (rows, width), `stride` apart. */
template <int D, int E, typename T>
__device__ void store(T* head, long long stride, const float (&sums)[D / 8][E], float scale, long long first,
                      long long rows, int width) {
    const bool paired = ((unsigned long long)head | 2 * stride | 2 * width) % 4 == 0;
    #pragma unroll
    for (int n = 0; n < D / 8; n++)
        #pragma unroll
        for (int e = 0; e < E; e += 2) {
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
