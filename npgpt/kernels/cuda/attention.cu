#include "common.cuh"
#include "attention.cuh"

/* Attention by tiles, as in FlashAttention (Dao et al. 2022): of the (T, S) scores a block keeps one tile of ROWS
   queries and KEYS keys in shared memory, and none leaves the chip. The names are those of npgpt/ops/attention.py.

   256 threads, as 16 × 16: thread (i, j) computes rows i, i + 16, … and columns j, j + 16, … of every tile. The 16
   threads of a row are half a warp. Rows of a tile lie D + 1 apart, so that neighbours are in different banks. */

enum { SIDE = 16 };

/* The rows of one head from `first` on become a tile, 0 where there are none and beyond the head's width. */
template <int D, int ROWS, typename T, typename A>
__device__ void load(A* tile, const T* head, long long stride, long long first, long long rows, int width) {
    for (int n = threadIdx.x; n < ROWS * D; n += blockDim.x) {
        const int row = n / D, d = n % D;
        tile[row * (D + 1) + d] = first + row < rows && d < width ? A(head[(first + row) * stride + d]) : A(0);
    }
}

/* out = left rightᵀ, of two tiles of rows. */
template <int D, typename A, int I, int J>
__device__ void multiply_rows(A (&out)[I][J], const A* left, const A* right) {
    const int row = threadIdx.x / SIDE, column = threadIdx.x % SIDE;
    #pragma unroll
    for (int i = 0; i < I; i++)
        #pragma unroll
        for (int j = 0; j < J; j++) out[i][j] = 0;
    for (int d = 0; d < D; d++) {
        A a[I], b[J];
        #pragma unroll
        for (int i = 0; i < I; i++) a[i] = left[(row + SIDE * i) * (D + 1) + d];
        #pragma unroll
        for (int j = 0; j < J; j++) b[j] = right[(column + SIDE * j) * (D + 1) + d];
        #pragma unroll
        for (int i = 0; i < I; i++)
            #pragma unroll
            for (int j = 0; j < J; j++) out[i][j] += a[i] * b[j];
    }
}

/* The threads' parts of a tile of ROWS × KEYS, into shared memory. */
template <int KEYS, typename A, int I, int J> __device__ void store(A* tile, const A (&part)[I][J]) {
    const int row = threadIdx.x / SIDE, column = threadIdx.x % SIDE;
    #pragma unroll
    for (int i = 0; i < I; i++)
        #pragma unroll
        for (int j = 0; j < J; j++) tile[(row + SIDE * i) * (KEYS + 1) + column + SIDE * j] = part[i][j];
}

/* What dropout does not keep of a tile of ROWS × KEYS becomes 0, each thread's part by itself. */
template <int ROWS, int KEYS, typename A>
__device__ void drop(A* tile, const Mask& mask, long long h, long long query, long long key) {
    for (int row = threadIdx.x / SIDE; row < ROWS; row += SIDE)
        for (int column = threadIdx.x % SIDE; column < KEYS; column += SIDE)
            if (!mask.keeps(h, query + row, key + column)) tile[row * (KEYS + 1) + column] = 0;
}

/* out += weights tile: of `count` rows of the tile, that many weights a row of out, `step` apart. */
template <int D, typename A, int I>
__device__ void add_weighted(A (&out)[I][D / SIDE], const A* weights, int row_step, int step, const A* tile,
                             int count) {
    const int row = threadIdx.x / SIDE, column = threadIdx.x % SIDE;
    for (int n = 0; n < count; n++) {
        A w[I];
        #pragma unroll
        for (int i = 0; i < I; i++) w[i] = weights[(row + SIDE * i) * row_step + n * step];
        #pragma unroll
        for (int c = 0; c < D / SIDE; c++) {
            const A value = tile[n * (D + 1) + column + SIDE * c];
            #pragma unroll
            for (int i = 0; i < I; i++) out[i][c] += w[i] * value;
        }
    }
}

/* Over the 16 threads of a row. */
template <typename A> __device__ A row_sum(A value) {
    for (int offset = SIDE / 2; offset > 0; offset /= 2) value += __shfl_xor_sync(~0u, value, offset);
    return value;
}
template <typename A> __device__ A row_max(A value) {
    for (int offset = SIDE / 2; offset > 0; offset /= 2)
        value = max(value, __shfl_xor_sync(~0u, value, offset));
    return value;
}

/* One block for each example, head and tile of queries.  q: (B, H, T, width)  k, v: (B, G, S, width), with the
   strides of examples, heads and rows  kept: bits of P (B, words)  y: the same as q  lse: (B, H, T) */
template <typename T, int D, int ROWS, int KEYS, int DROPOUT>
__global__ void attention_forward(
        const T* q, long long q_b, long long q_h, long long q_t, const T* k, long long k_b, long long k_h,
        long long k_t, const T* v, long long v_b, long long v_h, long long v_t, const bool* key_mask,
        const long long* segments, const unsigned short* kept, T* y, long long y_b, long long y_h,
        long long y_t, Sum<T>* lse, long long H, long long G, long long length, long long S, long long width,
        long long causal, long long has_key_mask, long long has_segments, double scale, double grown) {
    typedef Sum<T> A;
    const long long tiles = (length + ROWS - 1) / ROWS, first = blockIdx.x % tiles * ROWS;
    const long long h = blockIdx.x / tiles % H, b = blockIdx.x / tiles / H, g = h / (H / G);
    const Mask mask(b, H, length, S, causal, has_key_mask ? key_mask : nullptr,
                    has_segments ? segments : nullptr, kept);
    A* queries = reinterpret_cast<A*>(shared_memory);              /* ROWS × D */
    A* rows    = queries + ROWS * (D + 1);                         /* KEYS × D, of k and then of v */
    A* weights = rows + KEYS * (D + 1);                            /* ROWS × KEYS */
    const int row = threadIdx.x / SIDE, column = threadIdx.x % SIDE;

    A top[ROWS / SIDE], total[ROWS / SIDE], sum[ROWS / SIDE][D / SIDE];
    #pragma unroll
    for (int i = 0; i < ROWS / SIDE; i++) {
        top[i] = A(-1e38), total[i] = 0;                           /* no -∞: -∞ + ∞ is no number */
        #pragma unroll
        for (int c = 0; c < D / SIDE; c++) sum[i][c] = 0;
    }
    load<D, ROWS>(queries, q + b * q_b + h * q_h, q_t, first, length, width);
    const long long end = mask.end_of_keys(min(first + ROWS, length) - 1);
    for (long long key = 0; key < end; key += KEYS) {
        __syncthreads();                                           /* the last tile of v is done with */
        load<D, KEYS>(rows, k + b * k_b + g * k_h, k_t, key, S, width);
        __syncthreads();
        A p[ROWS / SIDE][KEYS / SIDE];
        multiply_rows<D>(p, queries, rows);
        #pragma unroll
        for (int i = 0; i < ROWS / SIDE; i++) {
            A larger = top[i], added = 0;
            #pragma unroll
            for (int j = 0; j < KEYS / SIDE; j++) {
                const bool seen = mask.allows(first + row + SIDE * i, key + column + SIDE * j);
                p[i][j] = seen ? p[i][j] * A(scale) : -A(INFINITY);
                larger  = max(larger, p[i][j]);
            }
            larger = row_max(larger);
            #pragma unroll
            for (int j = 0; j < KEYS / SIDE; j++) {
                p[i][j] = exponential(p[i][j] - larger);
                added  += p[i][j];
            }
            const A shrunk = exponential(top[i] - larger);         /* what was summed was relative to top */
            total[i] = total[i] * shrunk + row_sum(added);
            top[i]   = larger;
            #pragma unroll
            for (int c = 0; c < D / SIDE; c++) sum[i][c] *= shrunk;
        }
        store<KEYS>(weights, p);
        if (DROPOUT) drop<ROWS, KEYS>(weights, mask, h, first, key);
        __syncthreads();                                           /* the tile of k is done with */
        load<D, KEYS>(rows, v + b * v_b + g * v_h, v_t, key, S, width);
        __syncthreads();
        add_weighted<D>(sum, weights, KEYS + 1, 1, rows, KEYS);
    }
    #pragma unroll
    for (int i = 0; i < ROWS / SIDE; i++) {
        const long long t = first + row + SIDE * i;
        const bool blind = total[i] == 0;                          /* may look at nothing */
        if (t >= length) continue;
        if (column == 0) lse[(b * H + h) * length + t] = blind ? A(INFINITY) : top[i] + log(total[i]);
        #pragma unroll
        for (int c = 0; c < D / SIDE; c++)
            if (column + SIDE * c < width)
                y[b * y_b + h * y_h + t * y_t + column + SIDE * c]
                    = T(blind ? A(0) : sum[i][c] * A(grown) / total[i]);
    }
}

/* Σᵢ dyₜᵢ yₜᵢ, a pack of each for every thread: `lanes` of a warp are a row, a power of 2. There are fewer than 2³²
   rows, for more fit in no GPU.  dy, y: (B, H, T, width), with their strides  product: (B, H, T) */
template <typename T>
__global__ void attention_products(const T* dy, long long dy_b, long long dy_h, long long dy_t, const T* y,
                                   long long y_b, long long y_h, long long y_t, Sum<T>* product,
                                   long long rows, long long H, long long length, long long width,
                                   long long lanes) {
    typedef Sum<T> A;
    const unsigned lane = threadIdx.x % unsigned(lanes);
    const unsigned row  = blockIdx.x * (blockDim.x / unsigned(lanes)) + threadIdx.x / unsigned(lanes);
    A sum = 0;
    if (row < rows) {
        const unsigned head = row / unsigned(length), t = row % unsigned(length);
        const unsigned b = head / unsigned(H), h = head % unsigned(H), d = lane * Pack<T>::SIZE;
        const Pack<T> gradients = load(dy + b * dy_b + h * dy_h + t * dy_t + d, width - d);
        const Pack<T> values    = load(y + b * y_b + h * y_h + t * y_t + d, width - d);
        #pragma unroll
        for (int n = 0; n < Pack<T>::SIZE; n++) sum += A(gradients.number[n]) * A(values.number[n]);
    }
    for (int offset = lanes / 2; offset > 0; offset /= 2) sum += __shfl_xor_sync(~0u, sum, offset);
    if (row < rows && lane == 0) product[row] = sum;
}

/* A tile of P̃ and of dA = P (dP − Σ dP P), from those of q, k, v and dy. */
template <int D, int ROWS, int KEYS, int DROPOUT, typename A>
__device__ void weights_and_gradients(A (&p)[ROWS / SIDE][KEYS / SIDE], A (&da)[ROWS / SIDE][KEYS / SIDE],
                                      const A* queries, const A* keys, const A* values, const A* gradients,
                                      const A* lse, const A* product, const Mask& mask, long long h,
                                      long long query, long long key, A scale, A grown) {
    const int row = threadIdx.x / SIDE, column = threadIdx.x % SIDE;
    multiply_rows<D>(p, queries, keys);
    multiply_rows<D>(da, gradients, values);
    #pragma unroll
    for (int i = 0; i < ROWS / SIDE; i++)
        #pragma unroll
        for (int j = 0; j < KEYS / SIDE; j++) {
            const long long t = query + row + SIDE * i, s = key + column + SIDE * j;
            const bool seen = mask.allows(t, s);
            const A factor  = DROPOUT ? mask.keeps(h, t, s) * grown : A(1);        /* P̃ / P */
            p[i][j]  = seen ? exponential(p[i][j] * scale - lse[t]) : A(0);
            da[i][j] = seen ? p[i][j] * (da[i][j] * factor - product[t]) : A(0);
            p[i][j] *= factor;
        }
}

/* One block for each example, head and tile of queries, as in forward.  dq: as q */
template <typename T, int D, int ROWS, int KEYS, int DROPOUT>
__global__ void attention_backward_q(
        const T* q, long long q_b, long long q_h, long long q_t, const T* k, long long k_b, long long k_h,
        long long k_t, const T* v, long long v_b, long long v_h, long long v_t, const T* dy, long long dy_b,
        long long dy_h, long long dy_t, const bool* key_mask, const long long* segments,
        const unsigned short* kept, const Sum<T>* lse, const Sum<T>* product, T* dq, long long dq_b,
        long long dq_h, long long dq_t, long long H, long long G, long long length, long long S,
        long long width, long long causal, long long has_key_mask, long long has_segments, double scale,
        double grown) {
    typedef Sum<T> A;
    const long long tiles = (length + ROWS - 1) / ROWS, first = blockIdx.x % tiles * ROWS;
    const long long h = blockIdx.x / tiles % H, b = blockIdx.x / tiles / H, g = h / (H / G);
    const Mask mask(b, H, length, S, causal, has_key_mask ? key_mask : nullptr,
                    has_segments ? segments : nullptr, kept);
    A* queries   = reinterpret_cast<A*>(shared_memory);            /* ROWS × D */
    A* gradients = queries + ROWS * (D + 1);                       /* the same, of dy */
    A* keys      = gradients + ROWS * (D + 1);                     /* KEYS × D */
    A* values    = keys + KEYS * (D + 1);
    A* weights   = values + KEYS * (D + 1);                        /* ROWS × KEYS, of dA */
    const int row = threadIdx.x / SIDE, column = threadIdx.x % SIDE;
    lse     += (b * H + h) * length;
    product += (b * H + h) * length;

    A sum[ROWS / SIDE][D / SIDE];
    #pragma unroll
    for (int i = 0; i < ROWS / SIDE; i++)
        #pragma unroll
        for (int c = 0; c < D / SIDE; c++) sum[i][c] = 0;
    load<D, ROWS>(queries, q + b * q_b + h * q_h, q_t, first, length, width);
    load<D, ROWS>(gradients, dy + b * dy_b + h * dy_h, dy_t, first, length, width);
    const long long end = mask.end_of_keys(min(first + ROWS, length) - 1);
    for (long long key = 0; key < end; key += KEYS) {
        __syncthreads();                                           /* the last tiles are done with */
        load<D, KEYS>(keys, k + b * k_b + g * k_h, k_t, key, S, width);
        load<D, KEYS>(values, v + b * v_b + g * v_h, v_t, key, S, width);
        __syncthreads();
        A p[ROWS / SIDE][KEYS / SIDE], da[ROWS / SIDE][KEYS / SIDE];
        weights_and_gradients<D, ROWS, KEYS, DROPOUT>(p, da, queries, keys, values, gradients, lse, product,
                                                      mask, h, first, key, A(scale), A(grown));
        store<KEYS>(weights, da);
        __syncthreads();
        add_weighted<D>(sum, weights, KEYS + 1, 1, keys, KEYS);
    }
    #pragma unroll
    for (int i = 0; i < ROWS / SIDE; i++)
        #pragma unroll
        for (int c = 0; c < D / SIDE; c++) {
            const long long t = first + row + SIDE * i, d = column + SIDE * c;
            if (t < length && d < width) dq[b * dq_b + h * dq_h + t * dq_t + d] = T(sum[i][c] * A(scale));
        }
}

/* One block for each example, key head and tile of keys, which sums over the queries of all heads of the group: no
   other adds to its rows of dk and dv.  dk, dv: as k and v */
template <typename T, int D, int ROWS, int KEYS, int DROPOUT>
__global__ void attention_backward_kv(
        const T* q, long long q_b, long long q_h, long long q_t, const T* k, long long k_b, long long k_h,
        long long k_t, const T* v, long long v_b, long long v_h, long long v_t, const T* dy, long long dy_b,
        long long dy_h, long long dy_t, const bool* key_mask, const long long* segments,
        const unsigned short* kept, const Sum<T>* lse, const Sum<T>* product, T* dk, long long dk_b,
        long long dk_h, long long dk_t, T* dv, long long dv_b, long long dv_h, long long dv_t, long long H,
        long long G, long long length, long long S, long long width, long long causal,
        long long has_key_mask, long long has_segments, double scale, double grown) {
    typedef Sum<T> A;
    const long long tiles = (S + KEYS - 1) / KEYS, first = blockIdx.x % tiles * KEYS;
    const long long g = blockIdx.x / tiles % G, b = blockIdx.x / tiles / G;
    const Mask mask(b, H, length, S, causal, has_key_mask ? key_mask : nullptr,
                    has_segments ? segments : nullptr, kept);
    A* queries   = reinterpret_cast<A*>(shared_memory);            /* ROWS × D */
    A* gradients = queries + ROWS * (D + 1);                       /* the same, of dy */
    A* keys      = gradients + ROWS * (D + 1);                     /* KEYS × D */
    A* values    = keys + KEYS * (D + 1);
    A* weights   = values + KEYS * (D + 1);                        /* ROWS × KEYS, of P and then of dA */
    const int row = threadIdx.x / SIDE, column = threadIdx.x % SIDE;

    A sum_k[KEYS / SIDE][D / SIDE], sum_v[KEYS / SIDE][D / SIDE];
    #pragma unroll
    for (int i = 0; i < KEYS / SIDE; i++)
        #pragma unroll
        for (int c = 0; c < D / SIDE; c++) sum_k[i][c] = sum_v[i][c] = 0;
    load<D, KEYS>(keys, k + b * k_b + g * k_h, k_t, first, S, width);
    load<D, KEYS>(values, v + b * v_b + g * v_h, v_t, first, S, width);
    for (long long h = g * (H / G); h < (g + 1) * (H / G); h++) {
        const long long place = (b * H + h) * length;
        for (long long query = mask.first_query(first); query < length; query += ROWS) {
            __syncthreads();                                       /* the last tiles are done with */
            load<D, ROWS>(queries, q + b * q_b + h * q_h, q_t, query, length, width);
            load<D, ROWS>(gradients, dy + b * dy_b + h * dy_h, dy_t, query, length, width);
            __syncthreads();
            A p[ROWS / SIDE][KEYS / SIDE], da[ROWS / SIDE][KEYS / SIDE];
            weights_and_gradients<D, ROWS, KEYS, DROPOUT>(p, da, queries, keys, values, gradients, lse + place,
                                                          product + place, mask, h, query, first, A(scale),
                                                          A(grown));
            store<KEYS>(weights, p);
            __syncthreads();
            add_weighted<D>(sum_v, weights, 1, KEYS + 1, gradients, ROWS);
            __syncthreads();
            store<KEYS>(weights, da);
            __syncthreads();
            add_weighted<D>(sum_k, weights, 1, KEYS + 1, queries, ROWS);
        }
    }
    #pragma unroll
    for (int i = 0; i < KEYS / SIDE; i++)
        #pragma unroll
        for (int c = 0; c < D / SIDE; c++) {
            const long long s = first + row + SIDE * i, d = column + SIDE * c;
            if (s >= S || d >= width) continue;
            dk[b * dk_b + g * dk_h + s * dk_t + d] = T(sum_k[i][c] * A(scale));
            dv[b * dv_b + g * dv_h + s * dv_t + d] = T(sum_v[i][c]);
        }
}
