/* CUDA's built-ins for a C++ compiler, so that a kernel runs on a CPU, and strictly: each thread of a block is a
fiber (fibers.cpp). */

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <type_traits>
#include <utility>

#define __global__
#define __device__
#define __forceinline__ inline
#define __shared__
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __launch_bounds__(...)

using std::exp;
using std::exp2;
using std::log;
using std::max;
using std::min;
using std::sqrt;
using std::tanh;

struct dim3 { unsigned x, y, z; };
extern dim3 gridDim, blockDim, blockIdx, threadIdx;
extern unsigned char shared_memory[];

namespace fibers {

enum State { READY, AT_BARRIER, IN_SHUFFLE, DONE };
struct Fragment {                                         // what a thread of a warp brings to a tensor core
    float a[8], b[4];
    const char* row;
};

extern size_t thread;                                     // of its block, that runs now
extern size_t shared_bytes;                               // that were asked for
extern uint64_t slots[];                                  // what each thread shows its warp
extern Fragment fragments[];
extern const char* error;
extern bool copies_are_late;

void wait(State state);                                   // until the others of its warp or block are there
void later(std::function<void()> copy);                   // when the thread waits for its copies
void wait_for_copies();

struct Parameter {                                        // of a kernel: the letter of NumPy's kind, and bytes
    char letter;
    int size;
    bool pointer;
};
const char* names(const Parameter* parameters, size_t count);                // as "f4* i8 "
const char* run(std::function<void()> body, const unsigned* grid, const unsigned* block, size_t shared,
                bool reversed, size_t most);              // what went wrong, or none

}  // namespace fibers

static void __syncthreads() { fibers::wait(fibers::AT_BARRIER); }
static void __syncwarp(unsigned = ~0u) { fibers::wait(fibers::IN_SHUFFLE); }

template <typename V> static V shuffle(unsigned mask, V value, int (*source)(int, int), int by) {
    static_assert(sizeof(V) <= 8, "a shuffle moves at most 8 bytes");
    if (mask != ~0u) fibers::error = "a shuffle among less than a whole warp";
    const size_t thread = fibers::thread;
    memcpy(&fibers::slots[thread], &value, sizeof(V));
    fibers::wait(fibers::IN_SHUFFLE);
    memcpy(&value, &fibers::slots[thread / 32 * 32 + (source(thread % 32, by) & 31)], sizeof(V));
    fibers::wait(fibers::IN_SHUFFLE);
    return value;
}
template <typename V> V __shfl_xor_sync(unsigned mask, V value, int by) {
    return shuffle(mask, value, [](int lane, int by) { return lane ^ by; }, by);
}
template <typename V> V __shfl_sync(unsigned mask, V value, int from) {
    return shuffle(mask, value, [](int, int from) { return from; }, from);
}

static float __uint_as_float(unsigned bits) {
    float x;
    memcpy(&x, &bits, 4);
    return x;
}
static unsigned __float_as_uint(float x) {
    unsigned bits;
    memcpy(&bits, &x, 4);
    return bits;
}

/* What common.cuh does in one instruction each: to the nearest, to even halfway between two. */
static unsigned short to_bfloat16(float x) {
    const unsigned bits = __float_as_uint(x);
    return x != x ? 0x7fff : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}
static unsigned short to_float16(float x) {
    const _Float16 y = x;
    unsigned short bits;
    memcpy(&bits, &y, 2);
    return bits;
}
static float from_float16(unsigned short bits) {
    _Float16 y;
    memcpy(&y, &bits, 2);
    return y;
}

/* Tensor cores, as npgpt/kernels/cuda/tensor_cores.cuh has them. */
template <typename T> static float half_of(unsigned bits, int half) {
    T number;
    number.bits = bits >> 16 * half;
    return number;
}
template <typename T> static unsigned pair(float first, float second, T) {
    return T(first).bits | unsigned(T(second).bits) << 16;
}
template <typename T>
static void multiply(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1, T) {
    const size_t thread = fibers::thread, lane = thread % 32;
    const fibers::Fragment* warp = &fibers::fragments[thread - lane];
    for (int n = 0; n < 8; n++) fibers::fragments[thread].a[n] = half_of<T>(a[n / 2], n % 2);
    for (int n = 0; n < 4; n++) fibers::fragments[thread].b[n] = half_of<T>(n < 2 ? b0 : b1, n % 2);
    fibers::wait(fibers::IN_SHUFFLE);
    for (int e = 0; e < 4; e++)
        for (int k = 0; k < 16; k++) {
            const int half = k % 2, quad = k % 8 / 2, column = 2 * (lane % 4) + e % 2;
            c[e] += warp[lane / 4 * 4 + quad].a[4 * (k / 8) + 2 * (e / 2) + half]
                  * warp[column * 4 + quad].b[2 * (k / 8) + half];
        }
    fibers::wait(fibers::IN_SHUFFLE);
}

template <typename T> static void multiply_half(float (&c)[4], unsigned a0, unsigned a1, unsigned b, T) {
    const size_t thread = fibers::thread, lane = thread % 32;
    const fibers::Fragment* warp = &fibers::fragments[thread - lane];
    for (int n = 0; n < 4; n++) fibers::fragments[thread].a[n] = half_of<T>(n < 2 ? a0 : a1, n % 2);
    for (int n = 0; n < 2; n++) fibers::fragments[thread].b[n] = half_of<T>(b, n);
    fibers::wait(fibers::IN_SHUFFLE);
    for (int e = 0; e < 4; e++)
        for (int k = 0; k < 8; k++) {
            const int column = 2 * (lane % 4) + e % 2;
            c[e] += warp[lane / 4 * 4 + k / 2].a[2 * (e / 2) + k % 2] * warp[column * 4 + k / 2].b[k % 2];
        }
    fibers::wait(fibers::IN_SHUFFLE);
}

/* number(j, row, column) of matrix j, 8 × 8, of whose rows the threads named one each. */
template <typename Number> static void exchange_rows(const void* row, Number number) {
    const size_t thread = fibers::thread, lane = thread % 32;
    const char* place = static_cast<const char*>(row);
    if (size_t(place - (const char*)shared_memory) + 16 > fibers::shared_bytes || uintptr_t(place) % 16)
        fibers::error = "a matrix whose row is not 16 aligned bytes of shared memory";
    fibers::fragments[thread].row = place;
    fibers::wait(fibers::IN_SHUFFLE);
    const fibers::Fragment* warp = &fibers::fragments[thread - lane];
    number([warp](int j, int r, int column) {
        unsigned short bits;
        memcpy(&bits, warp[8 * j + r].row + 2 * column, 2);
        return unsigned(bits);
    }, int(lane));
    fibers::wait(fibers::IN_SHUFFLE);
}
static void load_matrices(unsigned (&m)[4], const void* row) {
    exchange_rows(row, [&m](auto number, int lane) {
        for (int j = 0; j < 4; j++)
            m[j] = number(j, lane / 4, 2 * (lane % 4)) | number(j, lane / 4, 2 * (lane % 4) + 1) << 16;
    });
}
static void load_matrices_transposed(unsigned (&m)[4], const void* row) {
    exchange_rows(row, [&m](auto number, int lane) {
        for (int j = 0; j < 4; j++)
            m[j] = number(j, 2 * (lane % 4), lane / 4) | number(j, 2 * (lane % 4) + 1, lane / 4) << 16;
    });
}

/* Copies to shared memory that a thread does not wait for: they arrive at once when blocks run in order, and as
   late as they may, when it waits for them, if reversed. */
template <size_t BYTES> static void copy(void* to, const void* from, bool there) {
    if (size_t((char*)to - (char*)shared_memory) + BYTES > fibers::shared_bytes || uintptr_t(to) % BYTES
        || (there && uintptr_t(from) % BYTES))
        fibers::error = "a copy whose places are not aligned, or not to shared memory";
    const auto arrive = [=] { there ? memcpy(to, from, BYTES) : memset(to, 0, BYTES); };
    if (fibers::copies_are_late) fibers::later(arrive);
    else arrive();
}
static void copy_16_bytes(void* to, const void* from, bool there) { copy<16>(to, from, there); }
static void copy_4_bytes(void* to, const void* from, bool there) { copy<4>(to, from, there); }
static void wait_for_copies() { fibers::wait_for_copies(); }

static uint64_t __umul64hi(uint64_t a, uint64_t b) { return (unsigned __int128)a * b >> 64; }

/* A kernel's parameters, as the caller checks them: a letter and a size each; those of NumPy's types. */
struct bfloat16;
struct float16;
template <typename P> fibers::Parameter parameter() {
    if (std::is_pointer<P>::value) {
        typedef typename std::remove_cv<typename std::remove_pointer<P>::type>::type element;
        return {std::is_same<element, bfloat16>::value ? 'V'
                : std::is_floating_point<element>::value || std::is_same<element, float16>::value ? 'f'
                : std::is_same<element, bool>::value ? 'b'
                : std::is_signed<element>::value ? 'i' : 'u', sizeof(element), true};
    }
    return {std::is_floating_point<P>::value ? 'f' : 'i', sizeof(P), false};
}
template <typename... P> const char* parameters_of(void (*)(P...)) {
    const fibers::Parameter all[] = {parameter<P>()...};
    return fibers::names(all, sizeof...(P));
}
template <typename... P, size_t... N>
void call(void (*kernel)(P...), void** arguments, std::index_sequence<N...>) {
    kernel(*static_cast<typename std::remove_const<P>::type*>(arguments[N])...);
}
template <typename... P> void call(void (*kernel)(P...), void** arguments) {
    call(kernel, arguments, std::index_sequence_for<P...>());
}
