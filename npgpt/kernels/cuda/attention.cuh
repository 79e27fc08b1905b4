/* What queries may look at, and what dropout keeps of it. */
struct Mask {
    long long T, S, causal, words;                                 /* words: of kept */
    const bool* keys;                                              /* of the example, or null */
    const long long* segments;                                     /* the same */
    const unsigned short* kept;                                    /* a bit for each of its (H, T, S) */

    __device__ Mask(long long b, long long H, long long T, long long S, long long causal, const bool* keys,
                    const long long* segments, const unsigned short* kept)
        : T(T), S(S), causal(causal), words((H * T * S + 15) / 16), keys(keys ? keys + b * S : nullptr),
          segments(segments ? segments + b * S : nullptr), kept(kept + b * words) {}

    __device__ bool allows(long long t, long long s) const {
        return t < T && s < S && (!causal || s <= t + S - T) && selected(t, s);
    }
    /* What key_mask and segments say; whether there are such. */
    __device__ bool selected(long long t, long long s) const {
        return t < T && s < S && (!keys || keys[s]) && (!segments || segments[S - T + t] == segments[s]);
    }
    __device__ bool selects() const { return keys || segments; }
    /* Whether every query from this one on may look at every key before `end`. */
    __device__ bool allows_all(long long query, long long end) const {
        return end <= S && (!causal || end <= query + S - T + 1) && !selects();
    }
    __device__ bool keeps(long long h, long long t, long long s) const {
        const unsigned long long place = (h * T + t) * S + s;
        return t < T && s < S && kept[place / 16] >> place % 16 & 1;
    }
    /* The same of COUNT keys from s on, up to 64: bit n is of key s + n. */
    template <int COUNT> __device__ unsigned long long keeps_keys(long long h, long long t, long long s) const {
        const unsigned long long place = (h * T + t) * S + s;
        const long long first = place / 16;
        const int shift = place % 16;
        unsigned long long bits = 0, more = 0;
        #pragma unroll
        for (int n = 0; n <= COUNT / 16; n++) {
            const unsigned long long word = t < T && first + n < words ? kept[first + n] : 0;
            if (n < 4) bits |= word << 16 * n; else more = word;
        }
        return bits >> shift | more << (63 - shift) << 1;
    }
    __device__ long long end_of_keys(long long last_query) const {
        return causal ? max(0LL, min(S, last_query + S - T + 1)) : S;
    }
    __device__ long long first_query(long long first_key) const {
        return causal ? max(0LL, first_key - (S - T)) : 0;
    }
};
