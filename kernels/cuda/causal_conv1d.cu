// The causal depthwise convolution (src/causal_conv1d): a thread for each channel and span of steps, which slides its
// window of the last K tokens through registers. Token-major, so that the lanes of a warp read consecutive channels. Eight
// tokens are asked for before one is waited for.
//
// Grid: (spans, channels / THREADS). Block: THREADS. No shared memory. Widths 1..=8; 1..=4 in the narrow kernels.
#include "common.cuh"

constexpr int THREADS = 128;
constexpr int BATCH = 8;  // tokens that are loaded together

struct ConvArgs {
    Spans spans;
    const void* x;              // (B, L, D)
    const float* weight;        // (D, K)
    const float* bias;          // (D), or null
    const void* initial_state;  // (segments, K-1, D), or null
    void* y;                    // (B, L, D)
    void* last_state;           // (segments, K-1, D), or null
    const void* dy;             // (B, L, D), or null
    const void* dlast;          // (segments, K-1, D), or null
    void* dx;                   // (B, L, D)
    float* dweight;             // (spans, K + 1, D): of the taps and of the bias
    void* dinitial;             // (segments, K-1, D), or null
    i64 d;
    i64 width;
    i64 silu;
};

// One channel of one segment; MAX is the widest kernel that its registers hold. Taps and window are aligned at their
// newest end; what is beyond the width is never used.
template <typename T, int MAX> struct Channel {
    const ConvArgs& args;
    const Span span;
    const i64 channel;
    const int width;
    float taps[MAX];
    float reversed[MAX];  // the same for a window of later steps: the newest tap at the oldest of them
    float bias;

    __device__ Channel(const ConvArgs& args, i64 channel)
        : args(args), span(args.spans.get(blockIdx.x)), channel(channel), width(int(args.width)) {
#pragma unroll
        for (int k = 0; k < MAX; ++k) {
            const int tap = k - (MAX - width);
            taps[k] = tap >= 0 ? load<f32>(args.weight, channel * width + tap) : 0.0f;
            reversed[k] = tap >= 0 ? load<f32>(args.weight, channel * width + width - 1 - tap) : 0.0f;
        }
        bias = args.bias != nullptr ? load<f32>(args.bias, channel) : 0.0f;
    }

    // `BATCH` elements of a (B, L, D) array from step `step` on, counted from the span's first; none from `end` on.
    __device__ void fetch(const void* data, i64 step, i64 end, float (&values)[BATCH]) const {
#pragma unroll
        for (int j = 0; j < BATCH; ++j) values[j] = load<T>(data, at(min(step + j, end - 1)));
    }

    // Position of step `step`, counted from the span's first, in (B, L, D).
    __device__ i64 at(i64 step) const { return span.token(step) * args.d + channel; }

    // Position in (segments, K-1, D) of the token `before` steps before the segment's first, 1 ..= K-1.
    __device__ i64 at_state(i64 before) const {
        return (span.segment * (width - 1) + (width - 1 - before)) * args.d + channel;
    }

    // The token at step `step` of the segment, which may lie before its first.
    __device__ float token(i64 step) const {
        if (step >= 0) return load<T>(args.x, at(step - span.first));
        return args.initial_state != nullptr ? load<T>(args.initial_state, at_state(-step)) : 0.0f;
    }

    // Fills `window[1..]` with the K-1 tokens before the span.
    __device__ void fill(float (&window)[MAX]) const {
#pragma unroll
        for (int k = 0; k < MAX; ++k) {
            const int before = MAX - k;
            window[k] = before < width ? token(span.first - before) : 0.0f;
        }
    }

    __device__ float pre_activation(const float (&window)[MAX]) const {
        float sum = bias;
#pragma unroll
        for (int k = 0; k < MAX; ++k) {
            if (k >= MAX - width) sum = fmaf(taps[k], window[k], sum);
        }
        return sum;
    }
};

template <int MAX> __device__ inline void push(float (&window)[MAX], float x) {
#pragma unroll
    for (int k = 0; k + 1 < MAX; ++k) window[k] = window[k + 1];
    window[MAX - 1] = x;
}

template <typename T, int MAX> __device__ inline void forward_of_width(const ConvArgs& args) {
    const i64 channel = i64(blockIdx.y) * THREADS + threadIdx.x;
    if (channel >= args.d) return;
    const Channel<T, MAX> c(args, channel);
    float window[MAX];
    c.fill(window);
    for (i64 begin = 0; begin < c.span.steps; begin += BATCH) {
        float x[BATCH];
        c.fetch(args.x, begin, c.span.steps, x);
#pragma unroll
        for (int j = 0; j < BATCH; ++j) {
            if (begin + j >= c.span.steps) break;
            push(window, x[j]);
            const float y = c.pre_activation(window);
            store<T>(args.y, c.at(begin + j), args.silu ? silu(y) : y);
        }
    }
    if (args.last_state != nullptr && c.span.is_last()) {
        for (int before = 1; before < c.width; ++before) {
            store<T>(args.last_state, c.at_state(before), c.token(c.span.length - before));
        }
    }
}

// x at step j gets Σ_m tap[K-1-m] · dpre[j+m], which is complete when step j + K-1 is done; so the loop runs K-1 steps
// past the span, and in a segment's first span its first K-1 rounds belong to the initial state.
template <typename T, int MAX> __device__ inline void backward_of_width(const ConvArgs& args) {
    const i64 channel = i64(blockIdx.y) * THREADS + threadIdx.x;
    if (channel >= args.d) return;
    const Channel<T, MAX> c(args, channel);
    const int keep = c.width - 1;
    float window[MAX], slopes[MAX], dtaps[MAX], dbias = 0.0f;
    c.fill(window);
#pragma unroll
    for (int k = 0; k < MAX; ++k) slopes[k] = 0.0f, dtaps[k] = 0.0f;
    const i64 rounds = c.span.steps + keep, inside = min(rounds, c.span.length - c.span.first);
    for (i64 begin = 0; begin < rounds; begin += BATCH) {
        float x[BATCH], dy[BATCH];
        if (begin < inside) {
            c.fetch(args.x, begin, inside, x);
            if (args.dy != nullptr) c.fetch(args.dy, begin, inside, dy);
        }
#pragma unroll
        for (int j = 0; j < BATCH; ++j) {
            const i64 i = begin + j;
            if (i >= rounds) break;
            float slope = 0.0f;
            if (i < inside) {
                push(window, x[j]);
                if (args.dy != nullptr) {
                    slope = dy[j];
                    if (args.silu) slope *= silu_slope(c.pre_activation(window));
                }
                if (i < c.span.steps) {
                    dbias += slope;
#pragma unroll
                    for (int k = 0; k < MAX; ++k) {
                        if (k >= MAX - c.width) dtaps[k] = fmaf(slope, window[k], dtaps[k]);
                    }
                }
            }
            push(slopes, slope);
            const i64 done = c.span.first + i - keep;
            if (done < c.span.first && c.span.first > 0) continue;
            // slopes[k] belongs to step done + k - (MAX - K).
            float dx = 0.0f;
#pragma unroll
            for (int k = 0; k < MAX; ++k) {
                if (k >= MAX - c.width) dx = fmaf(c.reversed[k], slopes[k], dx);
            }
            const i64 before_end = c.span.length - done;
            if (args.dlast != nullptr && before_end <= keep) dx += load<T>(args.dlast, c.at_state(before_end));
            if (done >= 0) {
                store<T>(args.dx, c.at(done - c.span.first), dx);
            } else if (args.dinitial != nullptr) {
                store<T>(args.dinitial, c.at_state(-done), dx);
            }
        }
    }
    float* sums = args.dweight + i64(blockIdx.x) * c.width * args.d + i64(blockIdx.x) * args.d + channel;
#pragma unroll
    for (int k = 0; k < MAX; ++k) {
        if (k >= MAX - c.width) sums[(k - (MAX - c.width)) * args.d] = dtaps[k];
    }
    sums[c.width * args.d] = dbias;
}

template <typename T> __device__ inline void forward_narrow(const ConvArgs& args) { forward_of_width<T, 4>(args); }
template <typename T> __device__ inline void forward_wide(const ConvArgs& args) { forward_of_width<T, 8>(args); }
template <typename T> __device__ inline void backward_narrow(const ConvArgs& args) { backward_of_width<T, 4>(args); }
template <typename T> __device__ inline void backward_wide(const ConvArgs& args) { backward_of_width<T, 8>(args); }

ENTRIES(causal_conv1d_forward, ConvArgs, THREADS, 6, forward_narrow)
ENTRIES(causal_conv1d_forward_wide, ConvArgs, THREADS, 6, forward_wide)
ENTRIES(causal_conv1d_backward, ConvArgs, THREADS, 5, backward_narrow)
ENTRIES(causal_conv1d_backward_wide, ConvArgs, THREADS, 4, backward_wide)
ENTRY(causal_conv1d_sum_rows, f32, SumRowsArgs, SUM_ROWS_LANES * SUM_ROWS_SLICES, 2, sum_rows)
