// Runs CUDA kernels on the CPU: a block after the other, each thread of a block on a stack of its own, which is left
// where the thread waits for others (a barrier, a shuffle, a product of tensor cores) and gone back to when all are
// there. What is not emulated is what makes a GPU hard: threads that race. A barrier that some threads of a block do not
// reach is told as an error.

#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include <cmath>
#include <csetjmp>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#define EMULATED
#define KERNEL(name) static void kernel_##name
#define DYNAMIC_SHARED(name) float* name = static_cast<float*>(block_memory)
#define SHARED static thread_local
#define DEVICE static inline
#define CONSTANT static const
#define INFINITE std::numeric_limits<float>::infinity()
#define __syncthreads() wait_for_block()

namespace {

struct Dimensions {
    unsigned x, y, z;
};

struct alignas(16) float4 {
    float x, y, z, w;
};

struct alignas(8) ushort4 {
    unsigned short x, y, z, w;
};

thread_local Dimensions threadIdx, blockIdx, blockDim, gridDim;
thread_local void* block_memory;

constexpr size_t MOST_THREADS = 1024;
constexpr size_t STACK_BYTES = 128 << 10;
constexpr int LANES = 32;

enum class State { ready, waits_for_warp, waits_for_block, done };

// A thread of a block.
struct Fiber {
    ucontext_t beginning;
    jmp_buf place;
    State state;
    bool begun = false;
};

// What runs blocks on one thread of the machine. Its fibers begin once and take one block after the other.
struct Runner {
    std::vector<Fiber> fibers;
    char* stacks = nullptr;
    jmp_buf scheduler;
    size_t current = 0;
    void (*kernel)(void**) = nullptr;
    void** arguments = nullptr;

    ~Runner() {
        if (stacks) munmap(stacks, MOST_THREADS * STACK_BYTES);
    }
};

thread_local Runner runner;

// What a thread hands the others of its warp, 8 words, in two places by turns: what was handed before is overwritten when
// all have read it, for all have then come to the next time.
struct Handed {
    uint32_t words[2][8];
    unsigned turn;
};

thread_local Handed handed[MOST_THREADS];

// Leaves the current thread until the scheduler goes back to it.
__attribute__((noinline)) void leave(State state) {
    Runner& r = runner;
    Fiber& fiber = r.fibers[r.current];
    fiber.state = state;
    if (_setjmp(fiber.place) == 0) _longjmp(r.scheduler, 1);
}

void wait_for_block() { leave(State::waits_for_block); }
void wait_for_warp() { leave(State::waits_for_warp); }

// A fiber's life: its part of one block after the other.
void live() {
    for (;;) {
        runner.kernel(runner.arguments);
        leave(State::done);
    }
}

__attribute__((noinline)) void go_on(size_t thread) {
    Runner& r = runner;
    r.current = thread;
    threadIdx = {static_cast<unsigned>(thread), 0, 0};
    Fiber& fiber = r.fibers[thread];
    if (_setjmp(r.scheduler) != 0) return;
    if (fiber.begun) _longjmp(fiber.place, 1);
    fiber.begun = true;
    setcontext(&fiber.beginning);
}

// Runs one block; false where some threads wait for others that never come.
bool run_block(size_t threads) {
    Runner& r = runner;
    for (size_t t = 0; t < threads; t++) r.fibers[t].state = State::ready;
    for (;;) {
        for (size_t t = 0; t < threads; t++)
            if (r.fibers[t].state == State::ready) go_on(t);
        size_t done = 0, at_barrier = 0, released = 0;
        for (size_t t = 0; t < threads; t++) {
            done += r.fibers[t].state == State::done;
            at_barrier += r.fibers[t].state == State::waits_for_block;
        }
        if (done == threads) return true;
        for (size_t first = 0; first < threads; first += LANES) {
            size_t beyond = std::min(threads, first + LANES), waiting = 0;
            for (size_t t = first; t < beyond; t++) waiting += r.fibers[t].state == State::waits_for_warp;
            if (waiting != beyond - first) continue;
            for (size_t t = first; t < beyond; t++) r.fibers[t].state = State::ready;
            released += waiting;
        }
        if (done + at_barrier == threads) {
            for (size_t t = 0; t < threads; t++)
                if (r.fibers[t].state == State::waits_for_block) r.fibers[t].state = State::ready;
            released += at_barrier;
        }
        if (released == 0) return false;
    }
}

void prepare(size_t threads) {
    Runner& r = runner;
    if (!r.stacks) {
        void* memory = mmap(nullptr, MOST_THREADS * STACK_BYTES, PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        r.stacks = memory == MAP_FAILED ? nullptr : static_cast<char*>(memory);
        r.fibers.reserve(MOST_THREADS);
    }
    while (r.fibers.size() < threads) {
        r.fibers.emplace_back();
        Fiber& fiber = r.fibers.back();
        getcontext(&fiber.beginning);
        fiber.beginning.uc_stack.ss_sp = r.stacks + (r.fibers.size() - 1) * STACK_BYTES;
        fiber.beginning.uc_stack.ss_size = STACK_BYTES;
        fiber.beginning.uc_link = nullptr;
        makecontext(&fiber.beginning, live, 0);
    }
}

// The words of CUDA that C++ does not have.

float __uint_as_float(uint32_t bits) {
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

uint32_t __float_as_uint(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    return bits;
}

int min(int a, int b) { return a < b ? a : b; }
int max(int a, int b) { return a > b ? a : b; }

float __shfl_xor_sync(uint32_t, float value, int offset) {
    size_t thread = threadIdx.x;
    unsigned turn = handed[thread].turn++ % 2;
    handed[thread].words[turn][0] = __float_as_uint(value);
    wait_for_warp();
    return __uint_as_float(handed[thread ^ static_cast<size_t>(offset)].words[turn][0]);
}

void __syncwarp() { wait_for_warp(); }

// Tensor cores' product of 16 × 16 by 16 × 8, bf16 with sums in 32 bits, with each lane's part of the operands as PTX lays
// them out (PTX ISA, "Matrix Fragments for mma.m16n8k16 with floating point type").
void multiply_tiles(float* sums, const uint32_t* left, const uint32_t* right) {
    size_t thread = threadIdx.x, warp = thread / LANES * LANES, lane = thread % LANES;
    unsigned turn = handed[thread].turn++ % 2;
    for (int i = 0; i < 4; i++) handed[thread].words[turn][i] = left[i];
    for (int i = 0; i < 2; i++) handed[thread].words[turn][4 + i] = right[i];
    wait_for_warp();
    auto half = [](uint32_t pair, size_t which) { return __uint_as_float(which ? pair & 0xffff0000u : pair << 16); };
    auto left_at = [&](size_t row, size_t k) {
        return half(handed[warp + row % 8 * 4 + k % 8 / 2].words[turn][row / 8 + k / 8 * 2], k % 2);
    };
    auto right_at = [&](size_t k, size_t column) {
        return half(handed[warp + column * 4 + k % 8 / 2].words[turn][4 + k / 8], k % 2);
    };
    for (size_t i = 0; i < 4; i++) {
        size_t row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
        for (size_t k = 0; k < 16; k++) sums[i] += left_at(row, k) * right_at(k, column);
    }
}

#include "kernels.inc"

// Calls a kernel with its arguments behind pointers, as the driver takes them.
template <typename... A, size_t... I>
void call(void (*kernel)(A...), void** arguments, std::index_sequence<I...>) {
    kernel(*static_cast<std::remove_cv_t<A>*>(arguments[I])...);
}

template <typename... A>
void call(void (*kernel)(A...), void** arguments) {
    call(kernel, arguments, std::index_sequence_for<A...>());
}

struct Entry {
    const char* name;
    void (*run)(void**);
};

const Entry ENTRIES[] = {
#define ENTRY(name) {#name, [](void** arguments) { call(kernel_##name, arguments); }},
#include "entries.inc"
};

size_t page_bytes() { return static_cast<size_t>(sysconf(_SC_PAGESIZE)); }

// The pages that an allocation takes, those that nobody may touch left out.
size_t whole_pages(size_t bytes) { return (bytes + page_bytes() - 1) / page_bytes() * page_bytes(); }

// Where an allocation begins in its pages, so that it ends where they end.
size_t rounded(size_t bytes) { return (bytes + 15) / 16 * 16; }

}  // namespace

extern "C" {

// Memory between two pages that nobody may touch, ending where the second begins. It holds no numbers: all bits are set.
void* emulator_allocate(size_t bytes) {
    size_t used = rounded(bytes), whole = whole_pages(used), page = page_bytes();
    char* memory = static_cast<char*>(mmap(nullptr, whole + 2 * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    if (memory == MAP_FAILED) return nullptr;
    if (mprotect(memory + page, whole, PROT_READ | PROT_WRITE) != 0) {
        munmap(memory, whole + 2 * page);
        return nullptr;
    }
    char* begins = memory + page + whole - used;
    memset(begins, 0xff, used);
    return begins;
}

void emulator_free(void* memory, size_t bytes) {
    size_t used = rounded(bytes), whole = whole_pages(used), page = page_bytes();
    munmap(static_cast<char*>(memory) + used - whole - page, whole + 2 * page);
}

// 0 done, 1 no such kernel, 2 threads that wait for ever, 3 too many threads or no memory
int emulator_launch(const char* name, unsigned grid_x, unsigned grid_y, unsigned threads, size_t shared_bytes,
                    void** arguments) {
    const Entry* entry = nullptr;
    for (const Entry& known : ENTRIES)
        if (strcmp(known.name, name) == 0) entry = &known;
    if (!entry) return 1;
    if (threads > MOST_THREADS || threads % LANES != 0) return 3;
    prepare(threads);
    if (!runner.stacks) return 3;
    runner.kernel = entry->run;
    runner.arguments = arguments;
    gridDim = {grid_x, grid_y, 1};
    blockDim = {threads, 1, 1};
    for (unsigned t = 0; t < threads; t++) handed[t].turn = 0;
    block_memory = shared_bytes ? emulator_allocate(shared_bytes) : nullptr;
    bool finished = true;
    for (unsigned y = 0; y < grid_y && finished; y++) {
        for (unsigned x = 0; x < grid_x && finished; x++) {
            blockIdx = {x, y, 0};
            if (block_memory) memset(block_memory, 0xff, shared_bytes);
            finished = run_block(threads);
        }
    }
    if (block_memory) emulator_free(block_memory, shared_bytes);
    return finished ? 0 : 2;
}
}
