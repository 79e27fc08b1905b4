/* CUDA's built-ins for a C++ compiler, so that a kernel runs on a CPU, and strictly.

Each thread of a block is a fiber: it runs until it waits for others, at __syncthreads or in a shuffle. A warp
runs as far as it can before the next one does: where a barrier is missing, it is far ahead. The blocks run one
after the other. What a GPU would do silently is an error here: a thread that ends while others wait at a barrier,
a shuffle among less than a whole warp, a write beyond the shared memory that was asked for, an address beside an
array; and what it would stop at, an address that is not aligned. Shared memory holds NaN when a block begins.
Nothing but the order of threads and blocks differs from run to run, and that is the caller's to choose: a kernel
whose result depends on it has a race. */

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <functional>
#include <limits>
#include <memory>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>
#include <setjmp.h>
#include <signal.h>
#include <ucontext.h>

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
static dim3 gridDim, blockDim, blockIdx, threadIdx;

static const size_t SHARED_BYTES = 227 << 10, GUARD = 256, STACK_BYTES = 64 << 10;    // 227 KiB: sm_90's most
extern unsigned char shared_memory[];
static size_t shared_bytes;                               // that were asked for

namespace fibers {

enum State { READY, AT_BARRIER, IN_SHUFFLE, DONE };
struct Fiber {
    ucontext_t begin;                                     // where it begins
    jmp_buf place;                                        // where it goes on: a jump costs no system call
    bool begun;
    State state;
    dim3 index;
    std::unique_ptr<char[]> stack;
    std::vector<std::function<void()>> copies;            // that are under way
};

static std::vector<Fiber> all;
static std::vector<uint64_t> slots;                       // what each thread shows its warp
static jmp_buf scheduler;
static Fiber* current;
static std::function<void()> body;
static const char* error;
static bool copies_are_late;

static void wait(State state) {
    Fiber* self = current;
    self->state = state;
    if (!_setjmp(self->place)) _longjmp(scheduler, 1);
}

static void enter() {
    body();
    if (!current->copies.empty()) error = "a thread ends while copies are under way";
    current->state = DONE;
    _longjmp(scheduler, 1);
}

static void resume(Fiber& fiber) {
    current   = &fiber;
    threadIdx = fiber.index;
    if (_setjmp(scheduler)) return;
    if (fiber.begun) _longjmp(fiber.place, 1);
    fiber.begun = true;
    setcontext(&fiber.begin);
}

/* The threads first to first + count go on, if all of them wait in this state. */
static bool release(size_t first, size_t count, State state) {
    for (size_t n = first; n < first + count; n++)
        if (all[n].state != state) return false;
    for (size_t n = first; n < first + count; n++) all[n].state = READY;
    return true;
}

/* As far as a warp comes before all of it is done or waits for other warps. How many are done. */
static size_t run_warp(size_t first, size_t size, bool reversed) {
    size_t done;
    do {
        done = 0;
        for (size_t n = 0; n < size; n++) {
            Fiber& fiber = all[first + (reversed ? size - 1 - n : n)];
            if (fiber.state == READY) resume(fiber);
            done += fiber.state == DONE;
        }
    } while (size == 32 && release(first, size, IN_SHUFFLE));
    return done;
}

static void run_block(bool reversed) {
    const size_t count = all.size();
    for (size_t n = 0; n < count; n++) {
        Fiber& fiber = all[n];
        fiber.state = READY;
        fiber.begun = false;
        fiber.copies.clear();
        fiber.index = {unsigned(n % blockDim.x), unsigned(n / blockDim.x % blockDim.y),
                       unsigned(n / blockDim.x / blockDim.y)};
        getcontext(&fiber.begin);
        fiber.begin.uc_stack.ss_sp = fiber.stack.get();
        fiber.begin.uc_stack.ss_size = STACK_BYTES;
        makecontext(&fiber.begin, enter, 0);
    }
    const size_t warps = (count + 31) / 32;
    for (size_t done = 0; done < count && !error;) {
        done = 0;
        for (size_t n = 0; n < warps; n++) {
            const size_t first = 32 * (reversed ? warps - 1 - n : n), size = min(count - first, size_t(32));
            done += run_warp(first, size, reversed);
        }
        if (done < count && !release(0, count, AT_BARRIER) && !error)
            error = "some threads wait at a barrier or in a shuffle that others never reach";
    }
}

static size_t lane_of(const Fiber* fiber) { return size_t(fiber - all.data()); }

}  // namespace fibers

/* What -fsanitize=alignment calls where an address is no multiple of what its type wants. The thread ends there. */
extern "C" void __ubsan_handle_type_mismatch_v1(void*, void*) {
    fibers::error = "an address that is not aligned";
    fibers::wait(fibers::AT_BARRIER);
}

/* An address where nothing may be touched: beside an array (__init__.py), or nowhere. The thread ends there, too. */
static void no_memory(int) {
    fibers::error = "an address that is in no array";
    fibers::wait(fibers::AT_BARRIER);
}

static void __syncthreads() { fibers::wait(fibers::AT_BARRIER); }
static void __syncwarp(unsigned = ~0u) { fibers::wait(fibers::IN_SHUFFLE); }

template <typename V> static V shuffle(unsigned mask, V value, int (*source)(int, int), int by) {
    static_assert(sizeof(V) <= 8, "a shuffle moves at most 8 bytes");
    if (mask != ~0u) fibers::error = "a shuffle among less than a whole warp";
    size_t thread = fibers::lane_of(fibers::current);
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

/* Tensor cores, as npgpt/kernels/cuda/tensor_cores.cuh has them: what each thread of a warp brings. */
struct Fragment {
    float a[8], b[4];
    const char* row;
};
static std::vector<Fragment> fragments;

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
    const size_t thread = fibers::lane_of(fibers::current), lane = thread % 32;
    const Fragment* warp = &fragments[thread - lane];
    for (int n = 0; n < 8; n++) fragments[thread].a[n] = half_of<T>(a[n / 2], n % 2);
    for (int n = 0; n < 4; n++) fragments[thread].b[n] = half_of<T>(n < 2 ? b0 : b1, n % 2);
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
    const size_t thread = fibers::lane_of(fibers::current), lane = thread % 32;
    const Fragment* warp = &fragments[thread - lane];
    for (int n = 0; n < 4; n++) fragments[thread].a[n] = half_of<T>(n < 2 ? a0 : a1, n % 2);
    for (int n = 0; n < 2; n++) fragments[thread].b[n] = half_of<T>(b, n);
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
    const size_t thread = fibers::lane_of(fibers::current), lane = thread % 32;
    const char* place = static_cast<const char*>(row);
    if (size_t(place - (const char*)shared_memory) + 16 > shared_bytes || uintptr_t(place) % 16)
        fibers::error = "a matrix whose row is not 16 aligned bytes of shared memory";
    fragments[thread].row = place;
    fibers::wait(fibers::IN_SHUFFLE);
    const Fragment* warp = &fragments[thread - lane];
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
    if (size_t((char*)to - (char*)shared_memory) + BYTES > shared_bytes || uintptr_t(to) % BYTES
        || (there && uintptr_t(from) % BYTES))
        fibers::error = "a copy whose places are not aligned, or not to shared memory";
    const auto arrive = [=] { there ? memcpy(to, from, BYTES) : memset(to, 0, BYTES); };
    if (fibers::copies_are_late) fibers::current->copies.push_back(arrive);
    else arrive();
}
static void copy_16_bytes(void* to, const void* from, bool there) { copy<16>(to, from, there); }
static void copy_4_bytes(void* to, const void* from, bool there) { copy<4>(to, from, there); }
static void wait_for_copies() {
    for (const auto& arrive : fibers::current->copies) arrive();
    fibers::current->copies.clear();
}

static uint64_t __umul64hi(uint64_t a, uint64_t b) { return (unsigned __int128)a * b >> 64; }

/* A kernel's parameters, as the caller checks them: a letter and a size each; those of NumPy's types. */
struct bfloat16;
struct float16;
template <typename P> std::string parameter() {
    if (std::is_pointer<P>::value) {
        typedef typename std::remove_cv<typename std::remove_pointer<P>::type>::type element;
        return (std::is_same<element, bfloat16>::value ? "V"
                : std::is_floating_point<element>::value || std::is_same<element, float16>::value ? "f"
                : std::is_same<element, bool>::value ? "b"
                : std::is_signed<element>::value ? "i" : "u") + std::to_string(sizeof(element)) + "* ";
    }
    return (std::is_floating_point<P>::value ? "f" : "i") + std::to_string(sizeof(P)) + " ";
}
template <typename... P> std::string parameters_of(void (*)(P...)) {
    std::string all;
    for (const std::string& one : {parameter<P>()...}) all += one;
    return all;
}
template <typename... P, size_t... N>
void call(void (*kernel)(P...), void** arguments, std::index_sequence<N...>) {
    kernel(*static_cast<typename std::remove_const<P>::type*>(arguments[N])...);
}
template <typename... P> void call(void (*kernel)(P...), void** arguments) {
    call(kernel, arguments, std::index_sequence_for<P...>());
}

template <typename Kernel>
const char* run(Kernel kernel, void** arguments, const unsigned* grid, const unsigned* block, size_t shared,
                bool reversed, size_t most) {
    using namespace fibers;
    gridDim  = {grid[0], grid[1], grid[2]};
    blockDim = {block[0], block[1], block[2]};
    size_t threads = size_t(block[0]) * block[1] * block[2], blocks = size_t(grid[0]) * grid[1] * grid[2];
    shared_bytes = shared;
    error = nullptr;
    copies_are_late = reversed;
    struct sigaction here = {}, before;
    here.sa_handler = no_memory;
    here.sa_flags = SA_NODEFER;                           // for the handler does not return
    sigaction(SIGSEGV, &here, &before);
    body  = [&] { call(kernel, arguments); };
    slots.resize(threads);
    fragments.resize(threads);
    if (all.size() != threads) {
        all = std::vector<Fiber>(threads);
        for (Fiber& fiber : all) fiber.stack.reset(new char[STACK_BYTES]);
    }
    const size_t first = blocks - min(blocks, most);
    for (size_t n = first; n < blocks && !error; n++) {
        size_t number = reversed ? first + blocks - 1 - n : n;
        blockIdx = {unsigned(number % grid[0]), unsigned(number / grid[0] % grid[1]),
                    unsigned(number / grid[0] / grid[1])};
        memset(shared_memory, 0xff, SHARED_BYTES + GUARD);
        run_block(reversed);
        for (size_t place = shared; place < min(shared + (64 << 10), SHARED_BYTES + GUARD) && !error; place++)
            if (shared_memory[place] != 0xff) error = "a write beyond the shared memory that was asked for";
    }
    sigaction(SIGSEGV, &before, nullptr);
    return error;
}
