/* Runs a kernel's threads as fibers.

A fiber runs until it waits for others, at __syncthreads or in a shuffle. A warp runs as far as it can before the
next one does: where a barrier is missing, it is far ahead. The blocks run one after the other. What a GPU would do
silently is an error here: a thread that ends while others wait at a barrier, a shuffle among less than a whole
warp, a write beyond the shared memory that was asked for, an address beside an array; and what it would stop at,
an address that is not aligned. Shared memory holds NaN when a block begins. Nothing but the order of threads and
blocks differs from run to run, and that is the caller's to choose: a kernel whose result depends on it has a race. */

#include "cuda.h"

#include <memory>
#include <string>
#include <vector>
#include <signal.h>
#include <ucontext.h>

static const size_t THREADS = 1024, GUARD = 256, STACK_BYTES = 64 << 10;
static const size_t SHARED_BYTES = 227 << 10;             // 227 KiB: sm_90's most

dim3 gridDim, blockDim, blockIdx, threadIdx;
__align__(16) unsigned char shared_memory[SHARED_BYTES + GUARD];

namespace fibers {

size_t thread, shared_bytes;
uint64_t slots[THREADS];
Fragment fragments[THREADS];
const char* error;
bool copies_are_late;

struct Fiber {
    ucontext_t begin;                                     // where it begins
    void* place[5];                                       // where it goes on, for __builtin_longjmp: no system call
    bool begun;
    State state;
    dim3 index;
    std::unique_ptr<char[]> stack;
    std::vector<std::function<void()>> copies;            // that are under way
};

static Fiber all[THREADS];                               // of a block; their stacks stay
static void* scheduler[5];
static Fiber* current;
static std::function<void()> body;

void wait(State state) {
    Fiber* self = current;
    self->state = state;
    if (!__builtin_setjmp(self->place)) __builtin_longjmp(scheduler, 1);
}

static void enter() {
    for (;;) {                                            // of every block its thread
        body();
        if (!current->copies.empty()) error = "a thread ends while copies are under way";
        wait(DONE);
    }
}

static void resume(Fiber& fiber) {
    current   = &fiber;
    thread    = size_t(current - all);
    threadIdx = fiber.index;
    if (__builtin_setjmp(scheduler)) return;
    if (fiber.begun) __builtin_longjmp(fiber.place, 1);
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

static void run_block(size_t count, bool reversed) {
    for (size_t n = 0; n < count; n++) {
        Fiber& fiber = all[n];
        if (fiber.state != DONE) {                        // with an earlier block, and waits for the next one
            if (!fiber.stack) fiber.stack.reset(new char[STACK_BYTES]);
            fiber.begun = false;
            getcontext(&fiber.begin);
            fiber.begin.uc_stack.ss_sp = fiber.stack.get();
            fiber.begin.uc_stack.ss_size = STACK_BYTES;
            makecontext(&fiber.begin, enter, 0);
        }
        fiber.state = READY;
        fiber.copies.clear();
        fiber.index = {unsigned(n % blockDim.x), unsigned(n / blockDim.x % blockDim.y),
                       unsigned(n / blockDim.x / blockDim.y)};
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

void later(std::function<void()> copy) { current->copies.push_back(copy); }
void wait_for_copies() {
    for (const auto& arrive : current->copies) arrive();
    current->copies.clear();
}

/* What -fsanitize=alignment calls where an address is no multiple of what its type wants. The thread ends there. */
extern "C" void __ubsan_handle_type_mismatch_v1(void*, void*) {
    error = "an address that is not aligned";
    wait(AT_BARRIER);
}

/* An address where nothing may be touched: beside an array (__init__.py), or nowhere. The thread ends there, too. */
static void no_memory(int) {
    error = "an address that is in no array";
    wait(AT_BARRIER);
}

const char* names(const Parameter* parameters, size_t count) {
    static std::string all;
    all.clear();
    for (const Parameter* one = parameters; one < parameters + count; one++)
        all += one->letter + std::to_string(one->size) + (one->pointer ? "* " : " ");
    return all.c_str();
}

const char* run(std::function<void()> kernel, const unsigned* grid, const unsigned* block, size_t shared,
                bool reversed, size_t most) {
    gridDim  = {grid[0], grid[1], grid[2]};
    blockDim = {block[0], block[1], block[2]};
    const size_t threads = size_t(block[0]) * block[1] * block[2], blocks = size_t(grid[0]) * grid[1] * grid[2];
    shared_bytes = shared;
    error = nullptr;
    copies_are_late = reversed;
    struct sigaction here = {}, before;
    here.sa_handler = no_memory;
    here.sa_flags = SA_NODEFER;                           // for the handler does not return
    sigaction(SIGSEGV, &here, &before);
    body = kernel;
    const unsigned char* beyond = shared_memory + shared;
    const size_t size_beyond = min(size_t(64 << 10), SHARED_BYTES + GUARD - shared);
    memset(shared_memory, 0xff, SHARED_BYTES + GUARD);
    const size_t first = blocks - min(blocks, most);
    for (size_t n = first; n < blocks && !error; n++) {
        size_t number = reversed ? first + blocks - 1 - n : n;
        blockIdx = {unsigned(number % grid[0]), unsigned(number / grid[0] % grid[1]),
                    unsigned(number / grid[0] / grid[1])};
        memset(shared_memory, 0xff, shared);
        run_block(threads, reversed);
        if (!error && (*beyond != 0xff || memcmp(beyond, beyond + 1, size_beyond - 1)))
            error = "a write beyond the shared memory that was asked for";
    }
    sigaction(SIGSEGV, &before, nullptr);
    return error;
}

}  // namespace fibers
