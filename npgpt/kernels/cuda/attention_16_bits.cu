#include "common.cuh"
#include "tensor_cores.cuh"
#include "attention.cuh"

/* Attention of numbers of 16 bits, by tiles as in attention.cu, on tensor cores (FlashAttention-2, Dao 2023).
   Scores, probabilities and sums are float and never leave the registers. For the products that follow,
   probabilities are rounded to 16 bits: a warp's sums lie in its threads as the next product takes its factor.

   A block of 4 warps owns a tile of 64 rows, 16 a warp, and goes through tiles of COUNT others. Rows of a tile
   lie D + 8 apart: the 8 rows that are loaded at once are in different banks. */

enum { WARPS = 4, OWN = 16 * WARPS };

/* ROWS rows of one head from `first` on become a tile, 0 where there are none and beyond the head's width. */
template <int D, int ROWS, typename T>
__device__ void load(T* tile, const T* head, long long stride, long long first, long long rows, int width) {
    #pragma unroll
    for (int n = Pack<T>::SIZE * threadIdx.x; n < ROWS * D; n += Pack<T>::SIZE * 32 * WARPS) {
        const int row = n / D, d = n % D;
        *reinterpret_cast<Pack<T>*>(tile + row * (D + 8) + d) =
            load(head + (first + row) * stride + d, first + row < rows ? width - d : 0);
    }
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

/* Over the 4 threads of a row. */
__device__ inline float row_sum(float value) {
    value += __shfl_xor_sync(~0u, value, 1);
    return value + __shfl_xor_sync(~0u, value, 2);
}
__device__ inline float row_max(float value) {
    value = max(value, __shfl_xor_sync(~0u, value, 1));
    return max(value, __shfl_xor_sync(~0u, value, 2));
}

/* Scores are kept as powers of 2, which the hardware has: e^x = 2^(x log₂ e). */
#define LOG2_E 1.4426950408889634

/* One block for each example, head and tile of queries.  q: (B, H, T, width)  k, v: (B, G, S, width), with the
   strides of examples, heads and rows  kept: bits of P (B, words)  y: the same as q  lse: (B, H, T) */
template <typename T, int D, int COUNT, int DROPOUT>
__global__ void attention_forward_16(
        const T* q, long long q_b, long long q_h, long long q_t, const T* k, long long k_b, long long k_h,
        long long k_t, const T* v, long long v_b, long long v_h, long long v_t, const bool* key_mask,
        const long long* segments, const unsigned short* kept, T* y, long long y_b, long long y_h,
        long long y_t, float* lse, long long H, long long G, long long length, long long S, long long width,
        long long causal, long long has_key_mask, long long has_segments, double scale, double grown) {
    const long long tiles = (length + OWN - 1) / OWN;
    const long long first = (tiles - 1 - blockIdx.x % tiles) * OWN;    /* the last first: it sees the most keys */
    const long long h = blockIdx.x / tiles % H, b = blockIdx.x / tiles / H, g = h / (H / G);
    const Mask mask(b, H, length, S, causal, has_key_mask ? key_mask : nullptr,
                    has_segments ? segments : nullptr, kept);
    T* queries = reinterpret_cast<T*>(shared_memory);              /* OWN × D */
    T* keys    = queries + OWN * (D + 8);                          /* COUNT × D */
    T* values  = keys + COUNT * (D + 8);
    const int own = threadIdx.x / 32 * 16;                         /* the warp's first row */

    float sum[D / 8][4], top[2] = {-1e38f, -1e38f}, total[2] = {};     /* no -∞: -∞ + ∞ is no number */
    clear(sum);
    load<D, OWN>(queries, q + b * q_b + h * q_h, q_t, first, length, width);
    const long long end = mask.end_of_keys(min(first + OWN, length) - 1);
    for (long long key = 0; key < end; key += COUNT) {
        __syncthreads();                                           /* the last tiles are done with */
        load<D, COUNT>(keys, k + b * k_b + g * k_h, k_t, key, S, width);
        load<D, COUNT>(values, v + b * v_b + g * v_h, v_t, key, S, width);
        __syncthreads();
        float p[COUNT / 8][4], larger[2] = {top[0], top[1]}, added[2] = {};
        clear(p);
        multiply_rows<D, COUNT>(p, queries + own * (D + 8), keys);
        const bool all = mask.allows_all(first, key + COUNT);
        #pragma unroll
        for (int n = 0; n < COUNT / 8; n++)
            #pragma unroll
            for (int e = 0; e < 4; e++) {
                const bool seen = all || mask.allows(first + own + row_of(e), key + column_of(n, e));
                p[n][e] = seen ? p[n][e] * float(scale * LOG2_E) : -INFINITY;
                larger[e / 2] = max(larger[e / 2], p[n][e]);
            }
        #pragma unroll
        for (int half = 0; half < 2; half++) {
            larger[half] = row_max(larger[half]);
            const float shrunk = exp2(top[half] - larger[half]);   /* what was summed was relative to top */
            total[half] *= shrunk;
            top[half]    = larger[half];
            #pragma unroll
            for (int n = 0; n < D / 8; n++) sum[n][2 * half] *= shrunk, sum[n][2 * half + 1] *= shrunk;
        }
        #pragma unroll
        for (int n = 0; n < COUNT / 8; n++)
            #pragma unroll
            for (int e = 0; e < 4; e++) {
                p[n][e] = exp2(p[n][e] - top[e / 2]);
                added[e / 2] += p[n][e];
                if (DROPOUT && !mask.keeps(h, first + own + row_of(e), key + column_of(n, e))) p[n][e] = 0;
            }
        #pragma unroll
        for (int half = 0; half < 2; half++) total[half] += row_sum(added[half]);
        add_weighted<D, COUNT>(sum, p, values);
    }
    #pragma unroll
    for (int half = 0; half < 2; half++) {
        const long long t = first + own + row_of(2 * half);
        const bool blind = total[half] == 0;                       /* may look at nothing */
        if (threadIdx.x % 4 == 0 && t < length)
            lse[(b * H + h) * length + t] = blind ? INFINITY : top[half] * float(1 / LOG2_E) + log(total[half]);
        const float share = blind ? 0 : float(grown) / total[half];
        #pragma unroll
        for (int n = 0; n < D / 8; n++) sum[n][2 * half] *= share, sum[n][2 * half + 1] *= share;
    }
    store<D>(y + b * y_b + h * y_h, y_t, sum, 1, first + own, length, width);
}

/* One block for each example, head and tile of queries.  dy: as q  lse, product: (B, H, T)  dq: as q */
template <typename T, int D, int COUNT, int DROPOUT>
__global__ void attention_backward_q_16(
        const T* q, long long q_b, long long q_h, long long q_t, const T* k, long long k_b, long long k_h,
        long long k_t, const T* v, long long v_b, long long v_h, long long v_t, const T* dy, long long dy_b,
        long long dy_h, long long dy_t, const bool* key_mask, const long long* segments,
        const unsigned short* kept, const float* lse, const float* product, T* dq, long long dq_b,
        long long dq_h, long long dq_t, long long H, long long G, long long length, long long S,
        long long width, long long causal, long long has_key_mask, long long has_segments, double scale,
        double grown) {
    const long long tiles = (length + OWN - 1) / OWN;
    const long long first = (tiles - 1 - blockIdx.x % tiles) * OWN;    /* the last first, as in forward */
    const long long h = blockIdx.x / tiles % H, b = blockIdx.x / tiles / H, g = h / (H / G);
    const Mask mask(b, H, length, S, causal, has_key_mask ? key_mask : nullptr,
                    has_segments ? segments : nullptr, kept);
    T* queries   = reinterpret_cast<T*>(shared_memory);            /* OWN × D */
    T* gradients = queries + OWN * (D + 8);                        /* the same, of dy */
    T* keys      = gradients + OWN * (D + 8);                      /* COUNT × D */
    T* values    = keys + COUNT * (D + 8);
    const int own = threadIdx.x / 32 * 16;
    lse     += (b * H + h) * length;
    product += (b * H + h) * length;

    float sum[D / 8][4], log_total[2], mean[2];
    clear(sum);
    #pragma unroll
    for (int half = 0; half < 2; half++) {
        const long long t = first + own + row_of(2 * half);
        log_total[half] = t < length ? lse[t] * float(LOG2_E) : INFINITY;
        mean[half]      = t < length ? product[t] : 0;
    }
    load<D, OWN>(queries, q + b * q_b + h * q_h, q_t, first, length, width);
    load<D, OWN>(gradients, dy + b * dy_b + h * dy_h, dy_t, first, length, width);
    const long long end = mask.end_of_keys(min(first + OWN, length) - 1);
    for (long long key = 0; key < end; key += COUNT) {
        __syncthreads();                                           /* the last tiles are done with */
        load<D, COUNT>(keys, k + b * k_b + g * k_h, k_t, key, S, width);
        load<D, COUNT>(values, v + b * v_b + g * v_h, v_t, key, S, width);
        __syncthreads();
        float p[COUNT / 8][4], da[COUNT / 8][4];
        clear(p);
        clear(da);
        multiply_rows<D, COUNT>(p, queries + own * (D + 8), keys);
        multiply_rows<D, COUNT>(da, gradients + own * (D + 8), values);
        const bool all = mask.allows_all(first, key + COUNT);
        #pragma unroll
        for (int n = 0; n < COUNT / 8; n++)
            #pragma unroll
            for (int e = 0; e < 4; e++) {
                const long long t = first + own + row_of(e), s = key + column_of(n, e);
                const bool seen    = all || mask.allows(t, s);
                const float weight = seen ? exp2(p[n][e] * float(scale * LOG2_E) - log_total[e / 2]) : 0;
                const float factor = DROPOUT ? mask.keeps(h, t, s) * float(grown) : 1;     /* P̃ / P */
                da[n][e] = weight * (da[n][e] * factor - mean[e / 2]);
            }
        add_weighted<D, COUNT>(sum, da, keys);
    }
    store<D>(dq + b * dq_b + h * dq_h, dq_t, sum, scale, first + own, length, width);
}

/* One block for each example, key head and tile of keys, which sums over the queries of all heads of the group: no
   other adds to its rows of dk and dv.  dk, dv: as k and v */
template <typename T, int D, int COUNT, int DROPOUT>
__global__ void attention_backward_kv_16(
        const T* q, long long q_b, long long q_h, long long q_t, const T* k, long long k_b, long long k_h,
        long long k_t, const T* v, long long v_b, long long v_h, long long v_t, const T* dy, long long dy_b,
        long long dy_h, long long dy_t, const bool* key_mask, const long long* segments,
        const unsigned short* kept, const float* lse, const float* product, T* dk, long long dk_b,
        long long dk_h, long long dk_t, T* dv, long long dv_b, long long dv_h, long long dv_t, long long H,
        long long G, long long length, long long S, long long width, long long causal,
        long long has_key_mask, long long has_segments, double scale, double grown) {
    const long long tiles = (S + OWN - 1) / OWN, first = blockIdx.x % tiles * OWN;
    const long long g = blockIdx.x / tiles % G, b = blockIdx.x / tiles / G;
    const Mask mask(b, H, length, S, causal, has_key_mask ? key_mask : nullptr,
                    has_segments ? segments : nullptr, kept);
    T* keys      = reinterpret_cast<T*>(shared_memory);            /* OWN × D */
    T* values    = keys + OWN * (D + 8);
    T* queries   = values + OWN * (D + 8);                         /* COUNT × D */
    T* gradients = queries + COUNT * (D + 8);                      /* the same, of dy */
    float* log_total = reinterpret_cast<float*>(gradients + COUNT * (D + 8));      /* COUNT, of the queries */
    float* mean      = log_total + COUNT;
    const int own = threadIdx.x / 32 * 16;

    float sum_k[D / 8][4], sum_v[D / 8][4];
    clear(sum_k);
    clear(sum_v);
    load<D, OWN>(keys, k + b * k_b + g * k_h, k_t, first, S, width);
    load<D, OWN>(values, v + b * v_b + g * v_h, v_t, first, S, width);
    for (long long h = g * (H / G); h < (g + 1) * (H / G); h++) {
        const long long place = (b * H + h) * length;
        for (long long query = mask.first_query(first); query < length; query += COUNT) {
            __syncthreads();                                       /* the last tiles are done with */
            load<D, COUNT>(queries, q + b * q_b + h * q_h, q_t, query, length, width);
            load<D, COUNT>(gradients, dy + b * dy_b + h * dy_h, dy_t, query, length, width);
            if (threadIdx.x < COUNT) {
                const bool there = query + threadIdx.x < length;
                log_total[threadIdx.x] = there ? lse[place + query + threadIdx.x] * float(LOG2_E) : INFINITY;
                mean[threadIdx.x]      = there ? product[place + query + threadIdx.x] : 0;
            }
            __syncthreads();
            float p[COUNT / 8][4], da[COUNT / 8][4];               /* of its keys, by rows, and these queries */
            clear(p);
            clear(da);
            multiply_rows<D, COUNT>(p, keys + own * (D + 8), queries);
            multiply_rows<D, COUNT>(da, values + own * (D + 8), gradients);
            const bool all = mask.allows_all(query, first + OWN);
            #pragma unroll
            for (int n = 0; n < COUNT / 8; n++)
                #pragma unroll
                for (int e = 0; e < 4; e++) {
                    const int t = column_of(n, e);
                    const long long s  = first + own + row_of(e);
                    const bool seen    = all || mask.allows(query + t, s);
                    const float weight = seen ? exp2(p[n][e] * float(scale * LOG2_E) - log_total[t]) : 0;
                    const float factor = DROPOUT ? mask.keeps(h, query + t, s) * float(grown) : 1;     /* P̃ / P */
                    da[n][e] = weight * (da[n][e] * factor - mean[t]);
                    p[n][e]  = weight * factor;
                }
            add_weighted<D, COUNT>(sum_v, p, gradients);
            add_weighted<D, COUNT>(sum_k, da, queries);
        }
    }
    store<D>(dk + b * dk_b + g * dk_h, dk_t, sum_k, scale, first + own, S, width);
    store<D>(dv + b * dv_b + g * dv_h, dv_t, sum_v, 1, first + own, S, width);
}
