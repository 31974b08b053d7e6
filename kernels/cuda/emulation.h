// Runs kernels on the host: every thread of a block is a fiber, blocks follow one another. For tests, not for speed.
//
// A barrier hands over to the other fibers until all have come. The order in which fibers run between barriers is an
// argument of the launch: a kernel that lacks a barrier gives other results in another order. Shared memory is NaN when a
// block begins.
#pragma once

#include <link.h>
#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <vector>

using std::max;
using std::min;

#define __device__
#define __forceinline__ inline
#define __shared__ static thread_local
#define __align__(n) __attribute__((aligned(n)))

using f32 = float;
using f16 = _Float16;

struct bf16 {
    uint16_t bits;
};

struct float4 {
    float x, y, z, w;
};

template <typename T> inline T __ldg(const T* address) { return *address; }

inline float exp2_approximate(float x) { return std::exp2(x); }
inline float reciprocal_approximate(float x) { return 1.0f / x; }

inline float to_float(float x) { return x; }
inline float to_float(f16 x) { return float(x); }
inline float to_float(bf16 x) {
    const uint32_t bits = uint32_t(x.bits) << 16;
    float y;
    std::memcpy(&y, &bits, sizeof y);
    return y;
}

inline void from_float(float x, float& y) { y = x; }
inline void from_float(float x, f16& y) { y = f16(x); }
// To nearest, ties to even; NaN stays NaN.
inline void from_float(float x, bf16& y) {
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    y.bits = x != x ? 0x7fff : uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

namespace emulation {

struct Index {
    unsigned x, y, z;
};

enum class State { ready, at_warp_barrier, at_block_barrier, done };

struct Fiber {
    jmp_buf place;
    ucontext_t start;
    State state;
    bool entered;
    Index thread;
    unsigned number;
};

constexpr size_t STACK = 64 * 1024;

struct Block {
    std::vector<Fiber> fibers;
    std::unique_ptr<char[]> stacks;
    size_t stack_count = 0;
    std::vector<float> exchanged;
    jmp_buf scheduler;
    ucontext_t unused;
    Fiber* current = nullptr;
    const std::function<void()>* kernel = nullptr;
    Index block_index, block_size, grid_size;
};

inline Block& block() {
    static thread_local Block block;
    return block;
}

inline void yield(State state) {
    Block& b = block();
    b.current->state = state;
    if (!_setjmp(b.current->place)) _longjmp(b.scheduler, 1);
}

inline void enter() {
    Block& b = block();
    (*b.kernel)();
    b.current->state = State::done;
    _longjmp(b.scheduler, 1);
}

// Runs a fiber until its next barrier or its end.
inline void resume(Block& b, Fiber& fiber) {
    b.current = &fiber;
    if (_setjmp(b.scheduler)) return;
    if (fiber.entered) _longjmp(fiber.place, 1);
    fiber.entered = true;
    setcontext(&fiber.start);
}

// Frees the fibers `first .. end` if all that are not done wait at `barrier`.
inline bool release(Block& b, size_t first, size_t end, State barrier) {
    bool any = false;
    for (size_t i = first; i < end; ++i) {
        const State state = b.fibers[i].state;
        if (state != barrier && state != State::done) return false;
        any |= state == barrier;
    }
    for (size_t i = first; any && i < end; ++i) {
        if (b.fibers[i].state == barrier) b.fibers[i].state = State::ready;
    }
    return any;
}

inline void run_block(Block& b, unsigned order) {
    const size_t count = b.fibers.size();
    for (size_t i = 0; i < count; ++i) {
        Fiber& fiber = b.fibers[i];
        fiber.state = State::ready;
        fiber.entered = false;
        fiber.number = unsigned(i);
        fiber.thread = {unsigned(i % b.block_size.x), unsigned(i / b.block_size.x % b.block_size.y),
                        unsigned(i / b.block_size.x / b.block_size.y)};
        getcontext(&fiber.start);
        fiber.start.uc_stack.ss_sp = b.stacks.get() + i * STACK;
        fiber.start.uc_stack.ss_size = STACK;
        fiber.start.uc_link = nullptr;
        makecontext(&fiber.start, enter, 0);
    }
    for (size_t done = 0; done < count;) {
        bool moved = false;
        for (size_t i = 0; i < count; ++i) {
            // Order 0 goes up, order 1 down, order 2 up from the middle.
            const size_t at = order == 0 ? i : order == 1 ? count - 1 - i : (i + count / 2) % count;
            Fiber& fiber = b.fibers[at];
            if (fiber.state != State::ready) continue;
            moved = true;
            resume(b, fiber);
            if (fiber.state == State::done) ++done;
        }
        for (size_t warp = 0; warp < count; warp += 32) {
            moved |= release(b, warp, min(warp + 32, count), State::at_warp_barrier);
        }
        moved |= release(b, 0, count, State::at_block_barrier);
        if (!moved && done < count) {
            std::fprintf(stderr, "emulated kernel: threads wait at different barriers\n");
            std::abort();
        }
    }
}

// Shared memory: what this library keeps for each thread of the host.
struct Shared {
    char* begin = nullptr;
    size_t size = 0;

    // Fills all of it with NaN, the state of this emulation excepted.
    void spoil(const Block& b) const {
        const char* own = reinterpret_cast<const char*>(&b);
        const size_t before = own >= begin && own < begin + size ? own - begin : size;
        const size_t after = min(before + sizeof b, size);
        std::memset(begin, 0xff, before);
        std::memset(begin + after, 0xff, size - after);
    }
};

// Of this library alone: to touch it allocates what the library keeps for this thread of the host.
static thread_local volatile char own_byte;

// Finds that memory, by the segment of code that this function lies in.
inline Shared shared_memory() {
    own_byte = 0;
    Shared found;
    dl_iterate_phdr(
        [](dl_phdr_info* library, size_t, void* result) {
            const auto here = reinterpret_cast<uintptr_t>(&shared_memory);
            bool is_this = false;
            for (int i = 0; i < library->dlpi_phnum; ++i) {
                const auto& part = library->dlpi_phdr[i];
                const uintptr_t from = library->dlpi_addr + part.p_vaddr;
                is_this |= part.p_type == PT_LOAD && here >= from && here < from + part.p_memsz;
            }
            for (int i = 0; is_this && i < library->dlpi_phnum; ++i) {
                if (library->dlpi_phdr[i].p_type != PT_TLS) continue;
                *static_cast<Shared*>(result) = {
                    static_cast<char*>(library->dlpi_tls_data), library->dlpi_phdr[i].p_memsz};
            }
            return int(is_this);
        },
        &found);
    return found;
}

inline void launch(const unsigned* grid, const unsigned* size, unsigned order, const std::function<void()>& kernel) {
    Block& b = block();
    const size_t count = size_t(size[0]) * size[1] * size[2];
    if (b.stack_count < count) {
        b.stacks.reset(new char[count * STACK]);
        b.stack_count = count;
    }
    b.fibers = std::vector<Fiber>(count);
    b.exchanged.assign(count, 0.0f);
    b.kernel = &kernel;
    b.grid_size = {grid[0], grid[1], grid[2]};
    b.block_size = {size[0], size[1], size[2]};
    const Shared shared = shared_memory();
    for (unsigned z = 0; z < grid[2]; ++z)
        for (unsigned y = 0; y < grid[1]; ++y)
            for (unsigned x = 0; x < grid[0]; ++x) {
                b.block_index = {x, y, z};
                shared.spoil(b);
                run_block(b, order);
            }
}

}  // namespace emulation

#define threadIdx (emulation::block().current->thread)
#define blockIdx (emulation::block().block_index)
#define blockDim (emulation::block().block_size)
#define gridDim (emulation::block().grid_size)

inline void __syncthreads() { emulation::yield(emulation::State::at_block_barrier); }
inline void __syncwarp() { emulation::yield(emulation::State::at_warp_barrier); }

inline float __shfl_xor_sync(unsigned, float x, int mask) {
    emulation::Block& b = emulation::block();
    const unsigned number = b.current->number;
    b.exchanged[number] = x;
    __syncwarp();
    const float other = b.exchanged[number ^ unsigned(mask)];
    __syncwarp();
    return other;
}

#define ENTRY(name, T, Args, threads, blocks, body)                                                                       \
    extern "C" void name##_##T(const void* args, const unsigned* grid, const unsigned* size, unsigned order) {      \
        if (size[0] * size[1] * size[2] > (threads)) std::abort();                                                  \
        emulation::launch(grid, size, order, [&] { body<T>(*static_cast<const Args*>(args)); });                    \
    }                                                                                                               \
    static_assert(sizeof(Args) % 8 == 0, "arguments are fields of eight bytes");
