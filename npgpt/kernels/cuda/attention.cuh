/* What queries may look at. */
struct Mask {
    long long T, S, causal;
    const bool* keys;                                              /* of the example, or null */
    const long long* segments;                                     /* the same */

    __device__ bool allows(long long t, long long s) const {
        return t < T && s < S && (!causal || s <= t + S - T) && (!keys || keys[s])
            && (!segments || segments[S - T + t] == segments[s]);
    }
    /* Whether every query from this one on may look at every key before `end`. */
    __device__ bool allows_all(long long query, long long end) const {
        return end <= S && (!causal || end <= query + S - T + 1) && !keys && !segments;
    }
    __device__ long long end_of_keys(long long last_query) const {
        return causal ? max(0LL, min(S, last_query + S - T + 1)) : S;
    }
    __device__ long long first_query(long long first_key) const {
        return causal ? max(0LL, first_key - (S - T)) : 0;
    }
};
