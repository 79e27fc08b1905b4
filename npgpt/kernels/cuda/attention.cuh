/* What queries may look at, and what dropout keeps of it. */
struct Mask {
    long long T, S, causal;
    const bool* keys;                                              /* of the example, or null */
    const long long* segments;                                     /* the same */
    const unsigned short* kept;                                    /* a bit for each of its (H, T, S) */

    __device__ Mask(long long b, long long H, long long T, long long S, long long causal, const bool* keys,
                    const long long* segments, const unsigned short* kept)
        : T(T), S(S), causal(causal), keys(keys ? keys + b * S : nullptr),
          segments(segments ? segments + b * S : nullptr), kept(kept + b * ((H * T * S + 15) / 16)) {}

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
    __device__ long long end_of_keys(long long last_query) const {
        return causal ? max(0LL, min(S, last_query + S - T + 1)) : S;
    }
    __device__ long long first_query(long long first_key) const {
        return causal ? max(0LL, first_key - (S - T)) : 0;
    }
};
