#include "common.cuh"
#include "tensor_cores.cuh"
#include "tiles.cuh"
#include "attention.cuh"

/* Attention of numbers of 16 bits, by tiles as in attention.cu, on tensor cores (FlashAttention-2, Dao 2023).
   Scores, probabilities and sums are float and never leave the registers. For the products that follow,
   probabilities are rounded to 16 bits: a warp's sums lie in its threads as the next product takes its factor.

   A block owns a tile of ROWS rows, OWN a warp, and goes through tiles of COUNT others. While one is multiplied, the
   next is on its way, to a place that all warps are done with. A warp leaves out tiles that none of its rows sees, or
   is seen from. */

/* Over the 4 threads of a row. */
__device__ inline float row_sum(float value) {
    value += __shfl_xor_sync(~0u, value, 1);
    return value + __shfl_xor_sync(~0u, value, 2);
}
__device__ inline float row_max(float value) {
    value = max(value, __shfl_xor_sync(~0u, value, 1));
    return max(value, __shfl_xor_sync(~0u, value, 2));
}

/* Scores that do not count become -∞: of the warp's queries, from `query` on, and keys from `key` on. */
template <int N, int E>
__device__ void hide_keys(float (&scores)[N][E], const Mask& mask, long long query, long long key) {
    int end[E / 2];                                                /* of the keys that are seen */
    #pragma unroll
    for (int r = 0; r < E / 2; r++) end[r] = mask.end_of_keys(query + row_of(2 * r)) - key;
    #pragma unroll
    for (int n = 0; n < N; n++)
        #pragma unroll
        for (int e = 0; e < E; e++)
            if (column_of(n, e) >= end[e / 2]) scores[n][e] = -INFINITY;
    if (!mask.selects()) return;
    unsigned long long seen = 0;                                   /* one by one: all at once take too many registers */
    #pragma unroll 1
    for (int i = 0; i < N * E; i++)
        seen |= (unsigned long long)mask.selected(query + row_of(i % E), key + column_of(i / E, i % E)) << i;
    #pragma unroll
    for (int i = 0; i < N * E; i++)
        if (!(seen >> i & 1)) scores[i / E][i % E] = -INFINITY;
}

/* The same of the warp's keys and queries from `query` on. */
template <int N, int E>
__device__ void hide_queries(float (&scores)[N][E], const Mask& mask, long long query, long long key) {
    int start[E / 2];                                              /* of the queries that see a key */
    #pragma unroll
    for (int r = 0; r < E / 2; r++) start[r] = mask.first_query(key + row_of(2 * r)) - query;
    #pragma unroll
    for (int n = 0; n < N; n++)
        #pragma unroll
        for (int e = 0; e < E; e++)
            if (column_of(n, e) < start[e / 2]) scores[n][e] = -INFINITY;
    if (!mask.selects()) return;
    unsigned long long seen = 0;
    #pragma unroll 1
    for (int i = 0; i < N * E; i++)
        seen |= (unsigned long long)mask.selected(query + column_of(i / E, i % E), key + row_of(i % E)) << i;
    #pragma unroll
    for (int i = 0; i < N * E; i++)
        if (!(seen >> i & 1)) scores[i / E][i % E] = -INFINITY;
}

/* Which of the COUNT keys from `key` on dropout keeps, of the thread's queries: bit 8 n + e % 2 of kept[e / 2] is of
   scores[n][e]. */
template <int COUNT, int R>
__device__ void keep_keys(unsigned long long (&kept)[R], const Mask& mask, long long h, long long query,
                          long long key) {
    #pragma unroll
    for (int r = 0; r < R; r++)
        kept[r] = mask.keeps_keys<COUNT>(h, query + row_of(2 * r), key) >> column_of(0, 0);
}
template <int R> __device__ bool keeps(const unsigned long long (&kept)[R], int n, int e) {
    return kept[e / 2] >> (8 * n + e % 2) & 1;
}

/* One block for each example, head and tile of queries.  q: (B, H, T, width)  k, v: (B, G, S, width), with the
   strides of examples, heads and rows  kept: bits of P (B, words)  y: the same as q  lse: (B, H, T) */
template <typename T, int D, int COUNT, int OWN, int DROPOUT>
__global__ void attention_forward_16(
        const T* q, long long q_b, long long q_h, long long q_t, const T* k, long long k_b, long long k_h,
        long long k_t, const T* v, long long v_b, long long v_h, long long v_t, const bool* key_mask,
        const long long* segments, const unsigned short* kept, T* y, long long y_b, long long y_h,
        long long y_t, float* lse, long long H, long long G, long long length, long long S, long long width,
        long long causal, long long has_key_mask, long long has_segments, double scale, double grown) {
    enum { ROWS = WARPS * OWN, E = OWN / 4 };
    const long long tiles = (length + ROWS - 1) / ROWS;
    const long long first = (tiles - 1 - blockIdx.x % tiles) * ROWS;   /* the last first: it sees the most keys */
    const long long h = blockIdx.x / tiles % H, b = blockIdx.x / tiles / H, g = h / (H / G);
    const Mask mask(b, H, length, S, causal, has_key_mask ? key_mask : nullptr,
                    has_segments ? segments : nullptr, kept);
    T* queries = reinterpret_cast<T*>(shared_memory);              /* ROWS × D */
    T* keys    = queries + ROWS * (D + 8);                         /* COUNT × D */
    T* values  = keys + COUNT * (D + 8);
    const int own = threadIdx.x / 32 * OWN;                        /* the warp's first row */

    float sum[D / 8][E], top[E / 2], total[E / 2] = {};
    clear(sum);
    #pragma unroll
    for (int r = 0; r < E / 2; r++) top[r] = -1e38f;   /* no -∞: -∞ + ∞ is no number */
    k += b * k_b + g * k_h;
    v += b * v_b + g * v_h;
    const float unit = scale * LOG2_E;                             /* e^(scale score) = 2^(unit score) */
    const long long end = mask.end_of_keys(min(first + ROWS, length) - 1);
    const long long own_end = first + own < length ? mask.end_of_keys(min(first + own + OWN, length) - 1) : 0;
    if (end) {
        fetch<D, ROWS>(queries, q + b * q_b + h * q_h, q_t, first, length, width);
        fetch<D, COUNT>(keys, k, k_t, 0, S, width);
    }
    for (long long key = 0; key < end; key += COUNT) {
        arrive();                                                  /* keys; the last values are done with */
        fetch<D, COUNT>(values, v, v_t, key, S, width);
        const bool seen = key < own_end;                           /* by any of the warp's queries */
        float p[COUNT / 8][E];
        clear(p);
        if (seen) {
            unsigned long long kept[E / 2];
            if (DROPOUT) keep_keys<COUNT>(kept, mask, h, first + own, key);
            float larger[E / 2], added[E / 2] = {};
            multiply_rows<D>(p, queries + own * (D + 8), keys);
            if (!mask.allows_all(first + own, key + COUNT)) hide_keys(p, mask, first + own, key);
            #pragma unroll
            for (int r = 0; r < E / 2; r++) larger[r] = top[r];
            #pragma unroll
            for (int n = 0; n < COUNT / 8; n++)
                #pragma unroll
                for (int e = 0; e < E; e++) larger[e / 2] = max(larger[e / 2], p[n][e]);
            #pragma unroll
            for (int r = 0; r < E / 2; r++) {
                larger[r] = row_max(larger[r]);
                const float shrunk = exp2((top[r] - larger[r]) * unit);      /* sums were relative to top */
                total[r] *= shrunk;
                top[r]    = larger[r];
                #pragma unroll
                for (int n = 0; n < D / 8; n++) sum[n][2 * r] *= shrunk, sum[n][2 * r + 1] *= shrunk;
            }
            #pragma unroll
            for (int n = 0; n < COUNT / 8; n++)
                #pragma unroll
                for (int e = 0; e < E; e++) {
                    p[n][e] = exp2(p[n][e] * unit - top[e / 2] * unit);
                    added[e / 2] += p[n][e];
                    if (DROPOUT && !keeps(kept, n, e)) p[n][e] = 0;
                }
            #pragma unroll
            for (int r = 0; r < E / 2; r++) total[r] += row_sum(added[r]);
        }
        arrive();                                                  /* values; keys are done with */
        if (key + COUNT < end) fetch<D, COUNT>(keys, k, k_t, key + COUNT, S, width);
        if (seen) add_weighted<D>(sum, p, values);
    }
    #pragma unroll
    for (int r = 0; r < E / 2; r++) {
        const long long t = first + own + row_of(2 * r);
        const bool blind = total[r] == 0;                       /* may look at nothing */
        if (threadIdx.x % 4 == 0 && t < length)
            lse[(b * H + h) * length + t] = blind ? INFINITY : top[r] * float(scale) + log(total[r]);
        const float share = blind ? 0 : float(grown) / total[r];
        #pragma unroll
        for (int n = 0; n < D / 8; n++) sum[n][2 * r] *= share, sum[n][2 * r + 1] *= share;
    }
    store<D>(y + b * y_b + h * y_h, y_t, sum, 1, first + own, length, width);
}

/* One block for each example, head and tile of queries.  dy: as q  lse, product: (B, H, T)  dq: as q */
template <typename T, int D, int COUNT, int OWN, int DROPOUT>
__global__ void attention_backward_q_16(
        const T* q, long long q_b, long long q_h, long long q_t, const T* k, long long k_b, long long k_h,
        long long k_t, const T* v, long long v_b, long long v_h, long long v_t, const T* dy, long long dy_b,
        long long dy_h, long long dy_t, const bool* key_mask, const long long* segments,
        const unsigned short* kept, const float* lse, const float* product, T* dq, long long dq_b,
        long long dq_h, long long dq_t, long long H, long long G, long long length, long long S,
        long long width, long long causal, long long has_key_mask, long long has_segments, double scale,
        double grown) {
    enum { ROWS = WARPS * OWN, E = OWN / 4 };
    const long long tiles = (length + ROWS - 1) / ROWS;
    const long long first = (tiles - 1 - blockIdx.x % tiles) * ROWS;   /* the last first, as in forward */
    const long long h = blockIdx.x / tiles % H, b = blockIdx.x / tiles / H, g = h / (H / G);
    const Mask mask(b, H, length, S, causal, has_key_mask ? key_mask : nullptr,
                    has_segments ? segments : nullptr, kept);
    T* queries   = reinterpret_cast<T*>(shared_memory);            /* ROWS × D */
    T* gradients = queries + ROWS * (D + 8);                       /* the same, of dy */
    T* keys      = gradients + ROWS * (D + 8);                     /* COUNT × D, of this turn and of the next */
    T* values    = keys + 2 * COUNT * (D + 8);                     /* COUNT × D */
    const int own = threadIdx.x / 32 * OWN;
    k       += b * k_b + g * k_h;
    v       += b * v_b + g * v_h;
    lse     += (b * H + h) * length;
    product += (b * H + h) * length;

    float sum[D / 8][E], log_total[E / 2], mean[E / 2];
    clear(sum);
    #pragma unroll
    for (int r = 0; r < E / 2; r++) {
        const long long t = first + own + row_of(2 * r);
        log_total[r] = t < length ? lse[t] * float(LOG2_E) : INFINITY;
        mean[r]      = t < length ? product[t] : 0;
    }
    const float unit = scale * LOG2_E;
    const long long end = mask.end_of_keys(min(first + ROWS, length) - 1);
    const long long own_end = first + own < length ? mask.end_of_keys(min(first + own + OWN, length) - 1) : 0;
    if (end) {
        fetch<D, ROWS>(queries, q + b * q_b + h * q_h, q_t, first, length, width);
        fetch<D, ROWS>(gradients, dy + b * dy_b + h * dy_h, dy_t, first, length, width);
        fetch<D, COUNT>(keys, k, k_t, 0, S, width);
        fetch<D, COUNT>(values, v, v_t, 0, S, width);
    }
    const int size = COUNT * (D + 8);
    int turn = 0;
    for (long long key = 0; key < end; key += COUNT, turn ^= 1) {
        const bool more = key + COUNT < end;
        arrive();                                                  /* both; the last keys are done with */
        if (more) fetch<D, COUNT>(keys + (turn ^ 1) * size, k, k_t, key + COUNT, S, width);
        const bool seen = key < own_end;                           /* by any of the warp's queries */
        float p[COUNT / 8][E], da[COUNT / 8][E];
        clear(p);
        clear(da);
        if (seen) {
            multiply_rows<D>(p, queries + own * (D + 8), keys + turn * size);
            multiply_rows<D>(da, gradients + own * (D + 8), values);
        }
        __syncthreads();                                           /* values are done with */
        if (more) fetch<D, COUNT>(values, v, v_t, key + COUNT, S, width);
        if (!seen) continue;
        unsigned long long kept[E / 2];
        if (DROPOUT) keep_keys<COUNT>(kept, mask, h, first + own, key);
        if (!mask.allows_all(first + own, key + COUNT)) hide_keys(p, mask, first + own, key);
        #pragma unroll
        for (int n = 0; n < COUNT / 8; n++)
            #pragma unroll
            for (int e = 0; e < E; e++) {
                const float weight = exp2(p[n][e] * unit - log_total[e / 2]);
                if (DROPOUT) da[n][e] *= keeps(kept, n, e) ? float(grown) : 0;         /* P̃ / P */
                da[n][e] = weight * (da[n][e] - mean[e / 2]);
            }
        add_weighted<D>(sum, da, keys + turn * size);
    }
    store<D>(dq + b * dq_b + h * dq_h, dq_t, sum, scale, first + own, length, width);
}

/* One block for each example, key head and tile of keys, which sums over the queries of all heads of the group: no
   other adds to its rows of dk and dv.  dk, dv: as k and v */
template <typename T, int D, int COUNT, int OWN, int DROPOUT>
__global__ void __launch_bounds__(32 * WARPS, 2) attention_backward_kv_16(
        const T* q, long long q_b, long long q_h, long long q_t, const T* k, long long k_b, long long k_h,
        long long k_t, const T* v, long long v_b, long long v_h, long long v_t, const T* dy, long long dy_b,
        long long dy_h, long long dy_t, const bool* key_mask, const long long* segments,
        const unsigned short* kept, const float* lse, const float* product, T* dk, long long dk_b,
        long long dk_h, long long dk_t, T* dv, long long dv_b, long long dv_h, long long dv_t, long long H,
        long long G, long long length, long long S, long long width, long long causal,
        long long has_key_mask, long long has_segments, double scale, double grown) {
    enum { ROWS = WARPS * OWN, E = OWN / 4 };
    const int tiles = (S + ROWS - 1) / ROWS, first = blockIdx.x % tiles * ROWS;
    const int g = blockIdx.x / tiles % G, b = blockIdx.x / tiles / G;
    const Mask mask(b, H, length, S, causal, has_key_mask ? key_mask : nullptr,
                    has_segments ? segments : nullptr, kept);
    T* keys      = reinterpret_cast<T*>(shared_memory);            /* ROWS × D */
    T* values    = keys + ROWS * (D + 8);
    T* gradients = values + ROWS * (D + 8);                        /* COUNT × D, of dy */
    /* Of this turn and of the next: COUNT × D queries, COUNT lse and products, and which keys dropout keeps, 32 in a
       word, ROWS / 32 × COUNT. */
    T* both             = gradients + COUNT * (D + 8);
    float* both_numbers = reinterpret_cast<float*>(both + 2 * COUNT * (D + 8));
    unsigned* both_bits = reinterpret_cast<unsigned*>(both_numbers + 4 * COUNT);
    const int own = threadIdx.x / 32 * OWN;

    float sum_k[D / 8][E], sum_v[D / 8][E];
    clear(sum_k);
    clear(sum_v);
    const float unit = scale * LOG2_E;
    const int start = mask.first_query(first), end_of_heads = (g + 1) * (H / G);
    const int own_start = mask.first_query(first + own);           /* of the queries that see any of the warp's keys */
    const auto fetch_queries = [&](int turn, int h, int query) {
        fetch<D, COUNT>(both + turn * COUNT * (D + 8), q + b * q_b + h * q_h, q_t, query, length, width);
        const int one = threadIdx.x % COUNT, part = threadIdx.x / COUNT, t = query + one;
        if (DROPOUT && part < ROWS / 64) {
            const unsigned long long kept = mask.keeps_keys<64>(h, t, first + 64 * part);
            unsigned* bits = both_bits + (turn * ROWS / 32 + 2 * part) * COUNT + one;
            bits[0]     = kept;
            bits[COUNT] = kept >> 32;
        }
        if (part) return;
        float* numbers = both_numbers + turn * 2 * COUNT;
        copy_4_bytes(numbers + one, lse + (b * H + h) * length + t, t < length);
        copy_4_bytes(numbers + COUNT + one, product + (b * H + h) * length + t, t < length);
    };
    const auto fetch_gradients = [&](int h, int query) {           /* 0 where there is no query */
        fetch<D, COUNT>(gradients, dy + b * dy_b + h * dy_h, dy_t, query, length, width);
    };
    int turn = 0, h = g * (H / G), query = start;                  /* one at least sees the key */
    fetch<D, ROWS>(keys, k + b * k_b + g * k_h, k_t, first, S, width);
    fetch<D, ROWS>(values, v + b * v_b + g * v_h, v_t, first, S, width);
    fetch_queries(turn, h, query);
    fetch_gradients(h, query);
    while (h < end_of_heads) {
        const bool last      = query + COUNT >= length;            /* of this head */
        const int next_query = last ? start : query + COUNT, next_h = h + last;
        arrive();                                                  /* both; the last queries are done with */
        if (next_h < end_of_heads) fetch_queries(turn ^ 1, next_h, next_query);
        const T* queries     = both + turn * COUNT * (D + 8);
        const float* numbers = both_numbers + turn * 2 * COUNT;
        const unsigned* bits = both_bits + (turn * ROWS + own) / 32 * COUNT;
        const bool seen = query + COUNT > own_start;               /* by any of these queries */
        float p[COUNT / 8][E], da[COUNT / 8][E];                   /* of its keys, by rows, and these queries */
        clear(p);
        clear(da);
        if (seen) {
            multiply_rows<D>(p, keys + own * (D + 8), queries);
            multiply_rows<D>(da, values + own * (D + 8), gradients);
            if (!mask.allows_all(query, first + ROWS)) hide_queries(p, mask, query, first + own);
            #pragma unroll
            for (int n = 0; n < COUNT / 8; n++)
                #pragma unroll
                for (int e = 0; e < E; e++) {
                    const int t = column_of(n, e);
                    const float weight = exp2(p[n][e] * unit - numbers[t] * float(LOG2_E));
                    const bool kept    = !DROPOUT || bits[t] >> (own % 32 + row_of(e)) & 1;
                    const float factor = kept ? float(DROPOUT ? grown : 1) : 0;
                    da[n][e] = weight * (da[n][e] * factor - numbers[COUNT + t]);      /* factor: P̃ / P */
                    p[n][e]  = weight * factor;
                }
            add_weighted<D>(sum_v, p, gradients);
        }
        __syncthreads();                                           /* gradients are done with */
        if (next_h < end_of_heads) fetch_gradients(next_h, next_query);
        if (seen) add_weighted<D>(sum_k, da, queries);
        turn ^= 1;
        h     = next_h;
        query = next_query;
    }
    store<D>(dk + b * dk_b + g * dk_h, dk_t, sum_k, scale, first + own, S, width);
    store<D>(dv + b * dv_b + g * dv_h, dv_t, sum_v, 1, first + own, S, width);
}
