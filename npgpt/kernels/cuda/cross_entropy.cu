#include "common.cuh"

/* A row of logits by packs: the first begins where 16 bytes do, at or before the row, whose length need not be
   a multiple of a pack's. Numbers beyond either end are none of the row's, and read as −∞, to which e^z is 0. */
template <typename T> struct Row {
    T* z;
    long long V;

    __device__ long long first() const {                           /* a thread's, which go on `step` apart */
        return (long long)(threadIdx.x * Pack<T>::SIZE) - (unsigned long long)z % 16 / sizeof(T);
    }
    __device__ long long step() const { return blockDim.x * Pack<T>::SIZE; }
    __device__ bool has(long long v) const { return v >= 0 && v < V; }
    __device__ bool whole(long long v) const {
        return v >= 0 && v + Pack<T>::SIZE <= V && (unsigned long long)(z + v) % 16 == 0;
    }
    __device__ Pack<T> load(long long v) const {
        if (whole(v)) return *reinterpret_cast<const Pack<T>*>(z + v);
        Pack<T> pack;
        #pragma unroll
        for (int n = 0; n < Pack<T>::SIZE; n++) pack.number[n] = has(v + n) ? z[v + n] : T(-INFINITY);
        return pack;
    }
    __device__ void store(long long v, const Pack<T>& pack) const {
        if (whole(v)) {
            *reinterpret_cast<Pack<T>*>(z + v) = pack;
            return;
        }
        #pragma unroll
        for (int n = 0; n < Pack<T>::SIZE; n++)
            if (has(v + n)) z[v + n] = pack.number[n];
    }
};

/* A row's m and Z of npgpt/ops/cross_entropy.py: ℓ = m + log Z. */
template <typename A> struct Sums { A top, total; };

/* By a block. Each thread keeps its largest z and Σ e^(z − largest) of what it has seen: one look at the row. */
template <typename T, typename A> __device__ Sums<A> sums_of(const Row<T>& row, A* slots) {
    A top = A(-1e38), sum = 0;                                     /* no -∞: -∞ + ∞ is no number */
    for (long long v = row.first(); v < row.V; v += row.step()) {
        const Pack<T> z = row.load(v);
        A larger = top;
        #pragma unroll
        for (int n = 0; n < Pack<T>::SIZE; n++) larger = max(larger, A(z.number[n]));
        sum *= exponential(top - larger);
        #pragma unroll
        for (int n = 0; n < Pack<T>::SIZE; n++) sum += exponential(A(z.number[n]) - larger);
        top = larger;
    }
    const A largest = block_max(top, slots);
    return {largest, block_sum(sum * exponential(top - largest), slots)};
}

/* A row's sums, for all threads of its block; one of them writes them, and the loss ℓ − z[target], 0 if
   ignored. */
template <typename T, typename A>
__device__ Sums<A> row_loss(const Row<T>& row, long long target, A* top, A* total, A* loss,
                            long long ignore_index) {
    const Sums<A> sums = sums_of(row, reinterpret_cast<A*>(shared_memory));
    if (threadIdx.x == 0) {
        *top   = sums.top;
        *total = sums.total;
        *loss  = target == ignore_index ? A(0) : log(sums.total) - (A(row.z[target]) - sums.top);
    }
    return sums;
}

/* dz = (e^(z − m)/Z − [v = target]) scale, from one row to another or to the same. */
template <typename T, typename A>
__device__ void gradients(const Row<T>& from, const Row<T>& to, long long target, Sums<A> sums, A scale) {
    const A share = 1 / sums.total;
    for (long long v = from.first(); v < from.V; v += from.step()) {
        Pack<T> z = from.load(v);
        #pragma unroll
        for (int n = 0; n < Pack<T>::SIZE; n++)
            z.number[n] = T((exponential(A(z.number[n]) - sums.top) * share
                             - (v + n == target ? A(1) : A(0))) * scale);
        to.store(v, z);
    }
}

/* One block a row.  z: (rows, V), of rows `apart`  targets: (rows,)  top, total, loss: (rows,), loss 0 where
   the target is ignored */
template <typename T>
__global__ void cross_entropy_forward(T* z, const long long* targets, Sum<T>* top, Sum<T>* total, Sum<T>* loss,
                                      long long V, long long apart, long long ignore_index) {
    const long long row = blockIdx.x;
    row_loss(Row<T>{z + row * apart, V}, targets[row], top + row, total + row, loss + row, ignore_index);
}

/* dz: as z, or z itself  factor: one number, dloss/N */
template <typename T>
__global__ void cross_entropy_backward(T* z, const long long* targets, const Sum<T>* top, const Sum<T>* total,
                                       const Sum<T>* factor, T* dz, long long V, long long apart,
                                       long long ignore_index) {
    typedef Sum<T> A;
    const long long row = blockIdx.x, target = targets[row];
    gradients(Row<T>{z + row * apart, V}, Row<T>{dz + row * apart, V}, target, Sums<A>{top[row], total[row]},
              target == ignore_index ? A(0) : *factor);
}

/* Both at once: the logits become dz where they are, for dloss = N. */
template <typename T>
__global__ void cross_entropy_in_place(T* z, const long long* targets, Sum<T>* top, Sum<T>* total, Sum<T>* loss,
                                       long long V, long long apart, long long ignore_index) {
    typedef Sum<T> A;
    const long long row = blockIdx.x, target = targets[row];
    const Row<T> logits = {z + row * apart, V};
    const Sums<A> sums = row_loss(logits, target, top + row, total + row, loss + row, ignore_index);
    __syncthreads();                                               /* z[target] is read: now it may change */
    gradients(logits, logits, target, sums, target == ignore_index ? A(0) : A(1));
}
