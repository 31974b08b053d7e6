// Products of matrices on tensor cores, one 64 × 64 tile for each block of 256 threads:
//
//     tile[r][c] = Σ_k a(r, k) · b(c, k)
//
// where a and b are functions that give any element, 0 outside their matrix: what scales or masks a factor is part of
// them. A block stages 32 terms at a time in shared memory; each of its eight warps multiplies 32 × 16 of the tile.
//
// bf16 factors are rounded to bf16. f16 factors are held in tf32, which has their digits and the range of f32, for a
// state may be beyond f16. f32 factors are split into two tf32 numbers and multiplied three times, to almost f32's
// accuracy. Sums are f32.
#pragma once
#include "common.cuh"

#ifndef MAMBA_EMULATED
#include <mma.h>
#endif

constexpr int SIDE = 64;         // rows and columns of a tile
constexpr int DEPTH = 32;        // terms that are staged at a time
constexpr int PITCH = SIDE + 4;  // distance of rows of a tile in shared memory
constexpr int PRODUCT_THREADS = 256;

// How factors are held.
template <typename T> struct Factor;
template <> struct Factor<f32> {
    using type = float;
    static constexpr bool is_split = true;
};
template <> struct Factor<f16> {
    using type = float;
    static constexpr bool is_split = false;
};
template <> struct Factor<bf16> {
    using type = bf16;
    static constexpr bool is_split = false;
};

// Which index of a factor is the fastest in memory: that of its lines (rows of a, columns of the tile for b) or that of
// the terms of the sum. Threads load, and shared memory is laid out, along it.
enum class Along { lines, terms };

// Distance of lines, or of terms, in a staged factor: rows of 16 bytes more than there are elements, so that rows begin
// in different banks; any 8 or 16 of them begin at a multiple of 32 bytes.
template <typename F, Along ALONG> __device__ constexpr int staged_pitch() {
    return (ALONG == Along::lines ? SIDE : DEPTH) + 16 / int(sizeof(F));
}

constexpr int STAGED_BYTES = SIDE * (DEPTH + 4) * 4;  // the largest staged factor

// Shared memory of a product: two staged factors, or the tile.
struct ProductMemory {
    __align__(32) unsigned char bytes[2 * STAGED_BYTES];

    template <typename F> __device__ F* a() { return reinterpret_cast<F*>(bytes); }
    template <typename F> __device__ F* b() { return reinterpret_cast<F*>(bytes + STAGED_BYTES); }
    __device__ float* row(int r) { return reinterpret_cast<float*>(bytes) + r * PITCH; }
};
static_assert(SIDE * PITCH * 4 <= 2 * STAGED_BYTES, "a tile fits in the memory of the factors");

#ifdef MAMBA_EMULATED

// To nearest, ties away from zero, as the instruction does.
inline float to_tf32(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    if ((bits & 0x7f800000u) != 0x7f800000u) bits = (bits + 0x1000u) & 0xffffe000u;
    std::memcpy(&x, &bits, sizeof bits);
    return x;
}

// A warp's 32 × 16 of a tile: its first lane holds all of it and does the work of the warp.
template <typename T> struct WarpTile {
    using F = typename Factor<T>::type;
    float v[32][16];

    static bool is_first() { return threadIdx.x % 32 == 0; }

    void zero() { std::memset(v, 0, sizeof v); }
    void load(const float* tile) {
        for (int r = 0; is_first() && r < 32; ++r) std::memcpy(v[r], tile + r * PITCH, sizeof v[r]);
    }
    void store(float* tile) const {
        for (int r = 0; is_first() && r < 32; ++r) std::memcpy(tile + r * PITCH, v[r], sizeof v[r]);
    }
    static float part(float x, bool low) {
        const float high = to_tf32(x);
        return low ? to_tf32(x - high) : high;
    }
    static float product(bf16 a, bf16 b) { return to_float(a) * to_float(b); }
    static float product(float a, float b) {
        const float high = part(a, false) * part(b, false);
        return Factor<T>::is_split ? part(a, true) * part(b, false) + part(a, false) * part(b, true) + high : high;
    }
    template <Along A, Along B> void add(const F* a, const F* b) {
        constexpr int a_pitch = staged_pitch<F, A>(), b_pitch = staged_pitch<F, B>();
        if (!is_first()) return;
        for (int r = 0; r < 32; ++r)
            for (int c = 0; c < 16; ++c)
                for (int k = 0; k < DEPTH; ++k) {
                    const F x = A == Along::terms ? a[r * a_pitch + k] : a[k * a_pitch + r];
                    const F y = B == Along::terms ? b[c * b_pitch + k] : b[k * b_pitch + c];
                    v[r][c] += product(x, y);
                }
    }
};

#else

namespace wmma = nvcuda::wmma;

template <typename Use, Along ALONG> struct Layout;
template <Along ALONG> struct Layout<wmma::matrix_a, ALONG> {
    using type = std::conditional_t<ALONG == Along::terms, wmma::row_major, wmma::col_major>;
};
template <Along ALONG> struct Layout<wmma::matrix_b, ALONG> {
    using type = std::conditional_t<ALONG == Along::terms, wmma::col_major, wmma::row_major>;
};

// A warp's 32 × 16 of a tile, as two fragments, one below the other.
template <typename T> struct WarpTile {
    using F = typename Factor<T>::type;
    static constexpr bool HALF = sizeof(F) == 2;
    static constexpr int K = HALF ? 16 : 8;  // terms of one instruction
    using Element = std::conditional_t<HALF, F, wmma::precision::tf32>;
    template <typename Use, Along ALONG>
    using Fragment = wmma::fragment<Use, 16, 16, K, Element, typename Layout<Use, ALONG>::type>;

    wmma::fragment<wmma::accumulator, 16, 16, K, float> v[2];

    __device__ void zero() {
#pragma unroll
        for (int i = 0; i < 2; ++i) wmma::fill_fragment(v[i], 0.0f);
    }
    __device__ void load(const float* tile) {
#pragma unroll
        for (int i = 0; i < 2; ++i) wmma::load_matrix_sync(v[i], tile + 16 * i * PITCH, PITCH, wmma::mem_row_major);
    }
    __device__ void store(float* tile) const {
#pragma unroll
        for (int i = 0; i < 2; ++i) wmma::store_matrix_sync(tile + 16 * i * PITCH, v[i], PITCH, wmma::mem_row_major);
    }

    // The staged lines from `line` and terms from `term` on, and of tf32 what rounding left.
    template <typename Fragment, Along ALONG>
    static __device__ void fetch(Fragment& high, Fragment& low, const F* staged, int line, int term) {
        constexpr int pitch = staged_pitch<F, ALONG>();
        const F* from = ALONG == Along::terms ? staged + line * pitch + term : staged + term * pitch + line;
        wmma::load_matrix_sync(high, from, pitch);
        if constexpr (!HALF) {
#pragma unroll
            for (int i = 0; i < high.num_elements; ++i) {
                const float x = high.x[i];
                high.x[i] = wmma::__float_to_tf32(x);
                if constexpr (Factor<T>::is_split) low.x[i] = wmma::__float_to_tf32(x - high.x[i]);
            }
        }
    }

    template <Along A, Along B> __device__ void add(const F* a, const F* b) {
        // Not unrolled where factors are in tf32: registers are short.
#pragma unroll(HALF ? DEPTH / K : 1)
        for (int term = 0; term < DEPTH; term += K) {
            Fragment<wmma::matrix_b, B> b_high, b_low;
            fetch<decltype(b_high), B>(b_high, b_low, b, 0, term);
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                Fragment<wmma::matrix_a, A> a_high, a_low;
                fetch<decltype(a_high), A>(a_high, a_low, a, 16 * i, term);
                if constexpr (Factor<T>::is_split) {
                    wmma::mma_sync(v[i], a_low, b_high, v[i]);
                    wmma::mma_sync(v[i], a_high, b_low, v[i]);
                }
                wmma::mma_sync(v[i], a_high, b_high, v[i]);
            }
        }
    }
};

#endif

// A tile on its way: this thread's part of it.
template <typename T> struct Product {
    using F = typename Factor<T>::type;
    ProductMemory& memory;
    WarpTile<T> mine;

    __device__ explicit Product(ProductMemory& memory) : memory(memory) { mine.zero(); }

    __device__ float* corner() const {
        const int warp = threadIdx.x / 32;
        return memory.row(warp / 4 * 32) + warp % 4 * 16;
    }

    template <Along ALONG, typename Get> static __device__ void stage(F* staged, int first, Get get) {
        constexpr int pitch = staged_pitch<F, ALONG>();
        constexpr int width = ALONG == Along::terms ? DEPTH : SIDE;
#pragma unroll(sizeof(F) == 2 ? 4 : 1)
        for (int i = threadIdx.x; i < SIDE * DEPTH; i += PRODUCT_THREADS) {
            const int inner = i % width, outer = i / width;
            const int line = ALONG == Along::terms ? outer : inner, term = ALONG == Along::terms ? inner : outer;
            from_float(get(line, first + term), staged[outer * pitch + inner]);
        }
    }

    // Adds a product of `depth` terms. Every thread of the block must come here; what they read through `a` and `b` must
    // have been written before a barrier.
    template <Along A, Along B, typename GetA, typename GetB> __device__ void add(int depth, GetA a, GetB b) {
        const int warp = threadIdx.x / 32;
        F *staged_a = memory.a<F>(), *staged_b = memory.b<F>();
        const F* my_a = staged_a + warp / 4 * 32 * (A == Along::terms ? staged_pitch<F, A>() : 1);
        const F* my_b = staged_b + warp % 4 * 16 * (B == Along::terms ? staged_pitch<F, B>() : 1);
        for (int first = 0; first < depth; first += DEPTH) {
            __syncthreads();
            stage<A>(staged_a, first, a);
            stage<B>(staged_b, first, b);
            __syncthreads();
            mine.template add<A, B>(my_a, my_b);
        }
    }

    // Leaves the tile in shared memory, where every thread may read it.
    __device__ void store() {
        __syncthreads();
        mine.store(corner());
        __syncthreads();
    }

    // Takes the tile back from shared memory; the threads that changed it need no barrier of their own.
    __device__ void load() {
        __syncthreads();
        mine.load(corner());
    }
};
