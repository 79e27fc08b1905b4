#include "common.cuh"

/* ℓ = log Σ eᶻ of a row, by a block. Each thread keeps its largest z and Σ e^(z − largest) of what it has seen:
   one look at the row. */
template <typename T, typename A> __device__ A log_sum_exp(const T* z, long long V, A* slots) {
    A top = A(-1e38), sum = 0;                                     /* no -∞: -∞ + ∞ is no number */
    for (long long v = threadIdx.x; v < V; v += blockDim.x) {
        const A larger = max(top, A(z[v]));
        sum = sum * exp(top - larger) + exp(A(z[v]) - larger);
        top = larger;
    }
    const A largest = block_max(top, slots);
    return largest + log(block_sum(sum * exp(top - largest), slots));
}

/* A row's ℓ, for all threads of its block; one of them writes it, and the loss ℓ − z[target], 0 if ignored. */
template <typename T, typename A>
__device__ A row_loss(const T* z, long long target, A* lse, A* loss, long long V, long long ignore_index) {
    const A l = log_sum_exp(z, V, reinterpret_cast<A*>(shared_memory));
    if (threadIdx.x == 0) {
        *lse  = l;
        *loss = target == ignore_index ? A(0) : l - A(z[target]);
    }
    return l;
}

/* One block a row.  z: (rows, V)  targets: (rows,)  lse, loss: (rows,), loss 0 where the target is ignored */
template <typename T>
__global__ void cross_entropy_forward(const T* z, const long long* targets, Sum<T>* lse, Sum<T>* loss,
                                      long long V, long long ignore_index) {
    typedef Sum<T> A;
    const long long row = blockIdx.x;
    row_loss<T, A>(z + row * V, targets[row], lse + row, loss + row, V, ignore_index);
}

/* dz: (rows, V)  factor: one number, dloss/N */
template <typename T>
__global__ void cross_entropy_backward(const T* z, const long long* targets, const Sum<T>* lse,
                                       const Sum<T>* factor, T* dz, long long V, long long ignore_index) {
    typedef Sum<T> A;
    const long long row = blockIdx.x, target = targets[row];
    const A l = lse[row], scale = target == ignore_index ? A(0) : *factor;
    for (long long v = threadIdx.x; v < V; v += blockDim.x)
        dz[row * V + v] = T((exp(A(z[row * V + v]) - l) - (v == target ? A(1) : A(0))) * scale);
}

/* Both at once: the logits become dz where they are, for dloss = N. */
template <typename T>
__global__ void cross_entropy_in_place(T* z, const long long* targets, Sum<T>* lse, Sum<T>* loss,
                                       long long V, long long ignore_index) {
    typedef Sum<T> A;
    const long long row = blockIdx.x, target = targets[row];
    z += row * V;
    const A l = row_loss<T, A>(z, target, lse + row, loss + row, V, ignore_index);
    __syncthreads();                                               /* z[target] is read: now it may change */
    const A scale = target == ignore_index ? A(0) : A(1);
    for (long long v = threadIdx.x; v < V; v += blockDim.x)
        z[v] = T((exp(A(z[v]) - l) - (v == target ? A(1) : A(0))) * scale);
}
