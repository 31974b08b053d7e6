// What all kernels share: element types, arithmetic, the sequences of a batch, sums over rows.
//
// A kernel takes one struct of 8-byte fields, the same struct as in its op's cuda.rs, so that arguments cannot change
// places. Each kernel is compiled for three element types (f32, bf16, f16); parameters, states and sums are f32.
// The same code also compiles for the host (emulation.h), block by block, where tests compare it with the references.
#pragma once

#ifdef MAMBA_EMULATED
#include "emulation.h"
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>

using f32 = float;
using bf16 = __nv_bfloat16;
using f16 = __half;

// 2^x to 2 ulp; results below the smallest normal number become 0.
__device__ inline float exp2_approximate(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// 1/x to 1 ulp; beyond the normal numbers 0 or infinity.
__device__ inline float reciprocal_approximate(float x) {
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

__device__ inline float to_float(float x) { return x; }
__device__ inline float to_float(bf16 x) { return __bfloat162float(x); }
__device__ inline float to_float(f16 x) { return __half2float(x); }
__device__ inline void from_float(float x, float& y) { y = x; }
__device__ inline void from_float(float x, bf16& y) { y = __float2bfloat16_rn(x); }
__device__ inline void from_float(float x, f16& y) { y = __float2half_rn(x); }

#define ENTRY(name, T, Args, threads, blocks, body)                                                                       \
    extern "C" __global__ void __launch_bounds__(threads, blocks) name##_##T(const __grid_constant__ Args args) {  \
        body<T>(args);                                                                                              \
    }
#endif

// A kernel `name_T` for each element type T: `body<T>(args)` in blocks of at most `threads` threads, of which a
// multiprocessor shall hold `blocks` at least (which bounds the registers of a thread).
#define ENTRIES(name, Args, threads, blocks, body)                                                                        \
    ENTRY(name, f32, Args, threads, blocks, body)                                                                         \
    ENTRY(name, bf16, Args, threads, blocks, body)                                                                        \
    ENTRY(name, f16, Args, threads, blocks, body)

using i64 = long long;

constexpr float LOG2E = 1.4426950408889634f;
constexpr float LN2 = 0.6931471805599453f;
constexpr unsigned FULL_WARP = 0xffffffffu;

// An input of the kernel. Nothing in the kernel writes it, so that loads may go ahead of stores and wait together.
template <typename T> __device__ inline float load(const void* data, i64 i) {
    return to_float(__ldg(static_cast<const T*>(data) + i));
}

template <typename T> __device__ inline void store(void* data, i64 i, float x) {
    from_float(x, static_cast<T*>(data)[i]);
}

__device__ inline float sigmoid(float x) { return reciprocal_approximate(1.0f + exp2_approximate(-x * LOG2E)); }

__device__ inline float silu(float x) { return x * sigmoid(x); }

// silu'(x) = σ(x) · (1 + x · (1 - σ(x)))
__device__ inline float silu_slope(float x) {
    const float s = sigmoid(x);
    return s * (1.0f + x * (1.0f - s));
}

// ln(1 + e^x) = max(x, 0) + ln(1 + t) with t = e^-|x|, and ln(1 + t) = 2 artanh(s) with s = t / (2 + t): to 3e-7 of its value,
// however small, without overflow. The polynomial is artanh(s) / s in s² up to 1/9.
__device__ inline float softplus(float x) {
    const float t = exp2_approximate(-fabsf(x) * LOG2E);
    const float s = t * reciprocal_approximate(2.0f + t), q = s * s;
    float p = fmaf(0.14078890f, q, 0.13982579f);
    p = fmaf(p, q, 0.20012298f);
    p = fmaf(p, q, 0.33333161f);
    p = fmaf(p, q, 1.0f);
    return fmaf(2.0f * s, p, fmaxf(x, 0.0f));
}

__device__ inline float warp_sum(float x) {
#pragma unroll
    for (int step = 16; step > 0; step /= 2) x += __shfl_xor_sync(FULL_WARP, x, step);
    return x;
}

// Steps `first .. first + steps` of a segment (a sequence inside a batch row), counted in scan order.
struct Span {
    i64 segment;
    i64 start;   // token index of the segment's first token, over all rows
    i64 length;  // tokens of the segment
    i64 first;
    i64 steps;
    i64 chunk;   // index of the first state that is kept for this span
    bool reverse;

    __device__ i64 token(i64 step) const {
        return reverse ? start + length - 1 - (first + step) : start + first + step;
    }
    __device__ bool is_last() const { return first + steps == length; }
};

// How a batch is cut into spans. Either every row is a segment, cut into `per_row` spans of `size` steps, or `table`
// lists the spans (six values each: segment, start, length, first, steps, chunk) and `firsts` the index of each
// segment's first span, with the number of spans at its end.
struct Spans {
    const i64* table;
    const i64* firsts;
    i64 count;
    i64 segments;
    i64 per_row;
    i64 len;
    i64 size;
    i64 chunk_size;
    i64 reverse;

    __device__ Span get(i64 i) const {
        Span s;
        s.reverse = reverse != 0;
        if (table != nullptr) {
            const i64* row = table + 6 * i;
            s.segment = row[0], s.start = row[1], s.length = row[2];
            s.first = row[3], s.steps = row[4], s.chunk = row[5];
        } else {
            s.segment = i / per_row;
            s.start = s.segment * len;
            s.length = len;
            s.first = (i % per_row) * size;
            s.steps = min(size, len - s.first);
            s.chunk = s.segment * ((len + chunk_size - 1) / chunk_size) + s.first / chunk_size;
        }
        return s;
    }
    __device__ i64 first_of(i64 segment) const { return table != nullptr ? firsts[segment] : segment * per_row; }
};

// Sums of the rows of a (rows, n, d) array, in a fixed order, written as (d, n).
struct SumRowsArgs {
    const float* in;
    float* out;
    i64 rows;
    i64 n;
    i64 d;
};

constexpr int SUM_ROWS_LANES = 32;
constexpr int SUM_ROWS_SLICES = 16;

// Grid: columns / 32. Block: 32 columns × 16 slices of the rows. Shared: 2 KiB.
template <typename T> __device__ inline void sum_rows(const SumRowsArgs& args) {
    __shared__ float partial[SUM_ROWS_SLICES][SUM_ROWS_LANES];
    const int lane = threadIdx.x, slice = threadIdx.y;
    const i64 width = args.n * args.d;
    const i64 column = i64(blockIdx.x) * SUM_ROWS_LANES + lane;
    float sum = 0.0f;
    if (column < width) {
        for (i64 row = slice; row < args.rows; row += SUM_ROWS_SLICES) sum += args.in[row * width + column];
    }
    partial[slice][lane] = sum;
    __syncthreads();
    if (slice == 0 && column < width) {
        sum = 0.0f;
        for (int i = 0; i < SUM_ROWS_SLICES; ++i) sum += partial[i][lane];
        args.out[(column % args.d) * args.n + column / args.d] = sum;
    }
}
