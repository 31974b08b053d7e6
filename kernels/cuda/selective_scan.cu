// The selective scan (src/selective_scan). A block walks one span of steps for 32 channels: a lane for each channel, a
// warp for each 4 states, so that a thread keeps its states in registers and a warp reads consecutive channels. More
// than 16 states are walked in rounds of 16, the states of the other rounds waiting in `carry`. What the states of a step
// share (δ, u, gates, B, C) all four warps fetch into shared memory, a tile of steps at a time, also those without states.
//
// If there are too few blocks to fill a GPU, segments are cut along L: `summary` finds what each span makes of a zero
// state, `join` turns that into the state before each span, `forward` then computes outputs. Backward does the same
// from right to left. Forward keeps the state before each CHUNK of steps; backward recomputes inside the chunk.
//
// B and C belong to tokens: their gradients are sums over channels. A block sums its 32 channels and writes a part;
// `sum_tiles` adds the parts of all blocks in a fixed order. There are no atomics.
//
// Grid: (spans or groups of spans, tiles of 32 channels). Block: 32 × 4.
// Shared: forward 17 KiB, summaries 6 KiB, backward 48 KiB. `rounds` kernels are for more than 16 states, `constant` ones for
// a B or C that does not vary with the token and any number of states.
#include "common.cuh"

constexpr int LANES = 32;              // channels of a block
constexpr int STATES = 4;              // states of a thread
constexpr int WARPS = 4;               // warps of a block
constexpr int ROUND = STATES * WARPS;  // states of a block at a time
constexpr int THREADS = LANES * WARPS;
constexpr int TILE = 16;   // steps that forward stages at a time
constexpr int CHUNK = 32;  // steps between two kept states
constexpr int PART = 4;    // steps whose states backward holds in registers
constexpr int PARTS = CHUNK / PART;

struct ScanArgs {
    Spans spans;
    const void* u;               // (B, L, D)
    const void* delta;           // (B, L, D)
    const float* a;              // (D, N)
    const void* b;               // (B, L, G, N), or f32 (D, N) if b_groups is 0
    const void* c;               // likewise
    const float* skip;           // (D), or null
    const void* z;               // (B, L, D), or null
    const float* delta_bias;     // (D), or null
    const float* initial_state;  // (segments, D, N), or null
    void* y;                     // (B, L, D)
    float* last_state;           // (segments, D, N), or null
    float* kept;                 // (chunks, N, D), or null: the state before each chunk
    float* span_states;          // (spans, N, D), or null: the state before each span (backward: the gradient after it)
    float* span_delta;           // (spans, D): Σ δ of each span
    float* carry;                // (blocks, rounds, STATES, THREADS), or null for the plain kernels
    const void* dy;              // (B, L, D), or null
    const float* dlast;          // (segments, D, N), or null
    void* du;                    // (B, L, D)
    void* ddelta;                // (B, L, D)
    void* dz;                    // (B, L, D), or null
    float* dinitial;             // (segments, D, N), or null
    float* db_parts;             // (tiles, B·L, N), or (span groups, N, D) if B is constant
    float* dc_parts;             // likewise
    float* da_parts;             // (span groups, N, D)
    float* dskip_parts;          // (span groups, D)
    float* dbias_parts;          // (span groups, D)
    i64 spans_per_block;
    i64 tokens;  // B·L
    i64 d;
    i64 n;
    i64 b_groups;
    i64 c_groups;
    i64 run;           // channels that share a group of B and one of C come in runs of this length
    i64 tiles_of_run;  // blocks for a run
    i64 first_tile;
    i64 softplus;
};

// Where a thread works.
template <bool ROUNDS> struct Place {
    int lane, warp, number;
    i64 channel;  // of this lane; of the run's last, if it lies beyond the end
    bool active;
    i64 b_group, c_group;
    i64 rounds;

    __device__ explicit Place(const ScanArgs& args) {
        lane = threadIdx.x, warp = threadIdx.y;
        number = warp * LANES + lane;
        const i64 tile = args.first_tile + blockIdx.y;
        const i64 first = tile / args.tiles_of_run * args.run, offset = tile % args.tiles_of_run * LANES;
        channel = first + min(offset + lane, args.run - 1);
        active = offset + lane < args.run;
        b_group = args.b_groups > 0 ? first / (args.d / args.b_groups) : 0;
        c_group = args.c_groups > 0 ? first / (args.d / args.c_groups) : 0;
        rounds = ROUNDS ? (args.n + ROUND - 1) / ROUND : 1;
    }

    // The first of this thread's states in a round.
    __device__ i64 state(i64 round) const { return round * ROUND + warp * STATES; }
    // Warps that have states in a round.
    __device__ int working(const ScanArgs& args, i64 round) const {
        return int(min(i64(WARPS), (args.n - round * ROUND + STATES - 1) / STATES));
    }
};

// Elements that are `row` apart from step to step of a span.
struct Column {
    i64 first, row;

    __device__ i64 at(i64 step) const { return first + step * row; }
};

// One channel of a (B, L, D) array.
__device__ inline Column channel_column(const ScanArgs& args, const Span& span, i64 channel) {
    return {span.token(0) * args.d + channel, span.reverse ? -args.d : args.d};
}

// One state of a (B, L, G, N) array.
__device__ inline Column state_column(const ScanArgs& args, const Span& span, i64 groups, i64 group, i64 state) {
    return {(span.token(0) * groups + group) * args.n + state, (span.reverse ? -args.n : args.n) * groups};
}

// This thread's values of one channel and round.
struct States {
    float v[STATES];

    __device__ float& operator[](int k) { return v[k]; }
    __device__ float operator[](int k) const { return v[k]; }
};

__device__ inline States zero_states() {
    States s;
#pragma unroll
    for (int k = 0; k < STATES; ++k) s[k] = 0.0f;
    return s;
}

// From a (D, N) array.
template <typename P> __device__ inline States load_rows(const ScanArgs& args, const P& p, i64 round, const float* data, float factor) {
    States s = zero_states();
    if (data == nullptr || !p.active) return s;
#pragma unroll
    for (int k = 0; k < STATES; ++k) {
        if (p.state(round) + k < args.n) s[k] = data[p.channel * args.n + p.state(round) + k] * factor;
    }
    return s;
}

template <typename P> __device__ inline void store_rows(const ScanArgs& args, const P& p, i64 round, float* data, const States& s) {
    if (data == nullptr || !p.active) return;
#pragma unroll
    for (int k = 0; k < STATES; ++k) {
        if (p.state(round) + k < args.n) data[p.channel * args.n + p.state(round) + k] = s[k];
    }
}

// From an (N, D) array.
template <typename P> __device__ inline States load_columns(const ScanArgs& args, const P& p, i64 round, const float* data) {
    States s = zero_states();
    if (data == nullptr || !p.active) return s;
#pragma unroll
    for (int k = 0; k < STATES; ++k) {
        if (p.state(round) + k < args.n) s[k] = data[(p.state(round) + k) * args.d + p.channel];
    }
    return s;
}

template <typename P> __device__ inline void store_columns(const ScanArgs& args, const P& p, i64 round, float* data, const States& s) {
    if (data == nullptr || !p.active) return;
#pragma unroll
    for (int k = 0; k < STATES; ++k) {
        if (p.state(round) + k < args.n) data[(p.state(round) + k) * args.d + p.channel] = s[k];
    }
}

template <typename P> __device__ inline void add_columns(const ScanArgs& args, const P& p, i64 round, float* data, const States& s) {
    States sum = load_columns(args, p, round, data);
#pragma unroll
    for (int k = 0; k < STATES; ++k) sum[k] += s[k];
    store_columns(args, p, round, data, sum);
}

// A state that lives in registers if one round is enough, else in this thread's own places of `carry`.
template <bool ROUNDS> struct Carried {
    States now;

    using P = Place<ROUNDS>;

    __device__ float* place(const ScanArgs& args, const P& p, i64 round) const {
        const i64 block = i64(blockIdx.y) * gridDim.x + blockIdx.x;
        return args.carry + ((block * p.rounds + round) * STATES) * THREADS + p.number;
    }
    __device__ void get(const ScanArgs& args, const P& p, i64 round) {
        if (!ROUNDS) return;
        const float* from = place(args, p, round);
#pragma unroll
        for (int k = 0; k < STATES; ++k) now[k] = from[k * THREADS];
    }
    __device__ void put(const ScanArgs& args, const P& p, i64 round) const {
        if (!ROUNDS) return;
        float* to = place(args, p, round);
#pragma unroll
        for (int k = 0; k < STATES; ++k) to[k * THREADS] = now[k];
    }
};

__device__ inline float step_size(const ScanArgs& args, float raw) {
    const float soft = softplus(raw);
    return args.softplus ? soft : raw;
}

constexpr int BATCH = 4;  // steps whose loads are issued together, before the first of them is used

// Copies δ and, where they are asked for, u, z and the gradient of y before the gate, for `count` steps from `first` on; the
// rest of the `STEPS` rows becomes 0. Warp w writes the rows w, w + 4, … Loads have no condition, so that nothing is between
// them: where there is nothing to load, something else is.
template <typename T, bool U, bool Z, bool DY, int STEPS, typename P>
__device__ inline void stage_tokens(
    const ScanArgs& args, const P& p, const Column& column, float bias, i64 first, int count, float (*dts)[LANES],
    float (*us)[LANES], float (*zs)[LANES], float (*dys)[LANES]
) {
    const bool has_dy = DY && args.dy != nullptr, has_z = (Z || has_dy) && args.z != nullptr;
    const void* from_z = has_z ? args.z : args.delta;
    const void* from_dy = has_dy ? args.dy : args.delta;
    const i64 tile = column.at(first);
#pragma unroll
    for (int begin = 0; begin < STEPS; begin += BATCH * WARPS) {
        float dt[BATCH], u[BATCH], z[BATCH], dy[BATCH];
#pragma unroll
        for (int j = 0; j < BATCH; ++j) {
            const i64 at = tile + i64(min(begin + j * WARPS + p.warp, count - 1)) * column.row;
            dt[j] = load<T>(args.delta, at);
            if (U) u[j] = load<T>(args.u, at);
            if (Z || DY) z[j] = load<T>(from_z, at);
            if (DY) dy[j] = load<T>(from_dy, at);
        }
#pragma unroll
        for (int j = 0; j < BATCH; ++j) {
            const int i = begin + j * WARPS + p.warp;
            const bool inside = p.active && i < count;
            const float delta = step_size(args, dt[j] + bias);
            dts[i][p.lane] = inside ? delta : 0.0f;
            if (U) us[i][p.lane] = inside ? u[j] : 0.0f;
            if (Z) zs[i][p.lane] = z[j];
            if (DY) {
                const float gated = has_z ? dy[j] * silu(z[j]) : dy[j];
                dys[i][p.lane] = inside && has_dy ? gated : 0.0f;
            }
        }
    }
}

constexpr int PITCH = ROUND + 4;  // distance of the rows of staged coefficients: neighbours begin in different banks

// Copies a round's states of B or C for `count` steps from `first` on; the rest of the `STEPS` rows becomes 0. A warp
// copies the states that it works on, a lane every eighth step of one of them, whose column is given.
template <typename T, bool CONSTANT, int STEPS, int WIDTH, typename P>
__device__ inline void stage_coefficient(
    const ScanArgs& args, const P& p, const Column& column, i64 first, int count, i64 round, const void* data,
    i64 groups, float (&rows)[STEPS][WIDTH]
) {
    if (CONSTANT && groups == 0) return;
    constexpr int STEPS_AT_ONCE = LANES / STATES, TIMES = STEPS / STEPS_AT_ONCE;
    const int step = p.lane / STATES, k = p.lane % STATES;
    const bool inside = p.state(round) + k < args.n;
    i64 at = column.at(first + step) + round * ROUND;
    float values[TIMES];
#pragma unroll
    for (int j = 0; j < TIMES; ++j) {
        values[j] = inside && step + j * STEPS_AT_ONCE < count ? load<T>(data, at) : 0.0f;
        at += column.row * STEPS_AT_ONCE;
    }
#pragma unroll
    for (int j = 0; j < TIMES; ++j) rows[step + j * STEPS_AT_ONCE][p.warp * STATES + k] = values[j];
}

// This thread's four values of a staged row, or the constant ones.
template <bool CONSTANT, typename P>
__device__ inline States coefficient(const float* row, const P& p, bool constant, const States& values) {
    if (CONSTANT && constant) return values;
    const float4 four = *reinterpret_cast<const float4*>(row + p.warp * STATES);
    States s;
    s[0] = four.x, s[1] = four.y, s[2] = four.z, s[3] = four.w;
    return s;
}

// Forward, and with SUMMARY the state that a span makes of a zero state and its Σ δ.
template <typename T, bool SUMMARY, bool ROUNDS, bool CONSTANT> __device__ inline void walk(const ScanArgs& args) {
    __shared__ float s_dt[TILE][LANES], s_u[TILE][LANES], s_z[TILE][LANES], s_y[WARPS][TILE][LANES];
    __shared__ __align__(16) float s_b[TILE][PITCH];
    __shared__ __align__(16) float s_c[TILE][PITCH];
    const Place<ROUNDS> p(args);
    const Span span = args.spans.get(blockIdx.x);
    // The state after a segment's last span is not needed.
    if (SUMMARY && span.is_last()) return;
    const float bias = p.active && args.delta_bias != nullptr ? args.delta_bias[p.channel] : 0.0f;
    const float skip = !SUMMARY && p.active && args.skip != nullptr ? args.skip[p.channel] : 0.0f;
    const i64 span_at = i64(blockIdx.x) * args.n * args.d, segment_at = span.segment * args.d * args.n;
    States a = load_rows(args, p, 0, args.a, LOG2E);
    States b_constant = zero_states(), c_constant = zero_states();
    Carried<ROUNDS> h;
    for (i64 round = 0; round < p.rounds; ++round) {
        if (SUMMARY) {
            h.now = zero_states();
        } else if (args.span_states != nullptr) {
            h.now = load_columns(args, p, round, args.span_states + span_at);
        } else {
            h.now = load_rows(
                args, p, round, args.initial_state == nullptr ? nullptr : args.initial_state + segment_at, 1.0f);
        }
        h.put(args, p, round);
    }
    const Column tokens = channel_column(args, span, p.channel);
    const Column of_b = state_column(args, span, args.b_groups, p.b_group, p.state(0) + p.lane % STATES);
    const Column of_c = state_column(args, span, args.c_groups, p.c_group, p.state(0) + p.lane % STATES);
    float total = 0.0f;
    for (i64 first = 0; first < span.steps; first += TILE) {
        const int count = int(min(i64(TILE), span.steps - first));
        stage_tokens<T, true, !SUMMARY, false, TILE>(args, p, tokens, bias, first, count, s_dt, s_u, s_z, nullptr);
        for (i64 round = 0; round < p.rounds; ++round) {
            stage_coefficient<T, CONSTANT>(args, p, of_b, first, count, round, args.b, args.b_groups, s_b);
            if (!SUMMARY) stage_coefficient<T, CONSTANT>(args, p, of_c, first, count, round, args.c, args.c_groups, s_c);
            if (ROUNDS) a = load_rows(args, p, round, args.a, LOG2E);
            if (CONSTANT && args.b_groups == 0) {
                b_constant = load_rows(args, p, round, static_cast<const float*>(args.b), 1.0f);
            }
            if (CONSTANT && args.c_groups == 0) {
                c_constant = load_rows(args, p, round, static_cast<const float*>(args.c), 1.0f);
            }
            __syncthreads();
            h.get(args, p, round);
            if (!SUMMARY && args.kept != nullptr && first % CHUNK == 0) {
                store_columns(args, p, round, args.kept + (span.chunk + first / CHUNK) * args.n * args.d, h.now);
            }
            const int steps = p.state(round) < args.n ? count : 0;
#pragma unroll 4
            for (int i = 0; i < steps; ++i) {
                const float dt = s_dt[i][p.lane], x = dt * s_u[i][p.lane];
                const States b = coefficient<CONSTANT>(s_b[i], p, args.b_groups == 0, b_constant);
                if (SUMMARY) {
                    if (round == 0) total += dt;
#pragma unroll
                    for (int k = 0; k < STATES; ++k) {
                        h.now[k] = fmaf(exp2_approximate(dt * a[k]), h.now[k], x * b[k]);
                    }
                } else {
                    const States c = coefficient<CONSTANT>(s_c[i], p, args.c_groups == 0, c_constant);
                    float y = 0.0f;
#pragma unroll
                    for (int k = 0; k < STATES; ++k) {
                        h.now[k] = fmaf(exp2_approximate(dt * a[k]), h.now[k], x * b[k]);
                        y = fmaf(c[k], h.now[k], y);
                    }
                    s_y[p.warp][i][p.lane] = round == 0 ? y : s_y[p.warp][i][p.lane] + y;
                }
            }
            h.put(args, p, round);
            __syncthreads();
        }
        if (!SUMMARY && p.active) {
            i64 at = tokens.at(first + p.warp);
            const int working = p.working(args, 0);
#pragma unroll
            for (int i = p.warp, j = 0; j < TILE / WARPS; ++j, i += WARPS, at += tokens.row * WARPS) {
                if (i >= count) break;
                float y = skip * s_u[i][p.lane];
#pragma unroll
                for (int w = 0; w < WARPS; ++w) {
                    if (w < working) y += s_y[w][i][p.lane];
                }
                if (args.z != nullptr) y *= silu(s_z[i][p.lane]);
                store<T>(args.y, at, y);
            }
        }
    }
    for (i64 round = 0; round < p.rounds; ++round) {
        h.get(args, p, round);
        if (SUMMARY) {
            store_columns(args, p, round, args.span_states + span_at, h.now);
        } else if (args.last_state != nullptr && span.is_last()) {
            store_rows(args, p, round, args.last_state + segment_at, h.now);
        }
    }
    if (SUMMARY && p.warp == 0 && p.active) args.span_delta[i64(blockIdx.x) * args.d + p.channel] = total;
}

// The gradient that a span, read from its end, makes of a zero gradient after it, and its Σ δ.
template <typename T, bool ROUNDS, bool CONSTANT> __device__ inline void walk_back(const ScanArgs& args) {
    __shared__ float s_dt[TILE][LANES], s_dy[TILE][LANES];
    __shared__ __align__(16) float s_c[TILE][PITCH];
    const Place<ROUNDS> p(args);
    const Span span = args.spans.get(blockIdx.x);
    // The gradient before a segment's first span is not needed.
    if (span.first == 0) return;
    const float bias = p.active && args.delta_bias != nullptr ? args.delta_bias[p.channel] : 0.0f;
    States a = load_rows(args, p, 0, args.a, LOG2E);
    States c_constant = zero_states();
    Carried<ROUNDS> g;
    g.now = zero_states();
    for (i64 round = 0; round < p.rounds; ++round) g.put(args, p, round);
    const Column tokens = channel_column(args, span, p.channel);
    const Column of_c = state_column(args, span, args.c_groups, p.c_group, p.state(0) + p.lane % STATES);
    float total = 0.0f;
    for (i64 first = (span.steps - 1) / TILE * TILE; first >= 0; first -= TILE) {
        const int count = int(min(i64(TILE), span.steps - first));
        stage_tokens<T, false, false, true, TILE>(args, p, tokens, bias, first, count, s_dt, nullptr, nullptr, s_dy);
        for (i64 round = 0; round < p.rounds; ++round) {
            stage_coefficient<T, CONSTANT>(args, p, of_c, first, count, round, args.c, args.c_groups, s_c);
            if (ROUNDS) a = load_rows(args, p, round, args.a, LOG2E);
            if (CONSTANT && args.c_groups == 0) {
                c_constant = load_rows(args, p, round, static_cast<const float*>(args.c), 1.0f);
            }
            __syncthreads();
            g.get(args, p, round);
            const int steps = p.state(round) < args.n ? count : 0;
#pragma unroll 4
            for (int i = steps - 1; i >= 0; --i) {
                const float dt = s_dt[i][p.lane], dy = s_dy[i][p.lane];
                const States c = coefficient<CONSTANT>(s_c[i], p, args.c_groups == 0, c_constant);
                if (round == 0) total += dt;
#pragma unroll
                for (int k = 0; k < STATES; ++k) {
                    g.now[k] = exp2_approximate(dt * a[k]) * fmaf(dy, c[k], g.now[k]);
                }
            }
            g.put(args, p, round);
            __syncthreads();
        }
    }
    for (i64 round = 0; round < p.rounds; ++round) {
        g.get(args, p, round);
        store_columns(args, p, round, args.span_states + i64(blockIdx.x) * args.n * args.d, g.now);
    }
    if (p.warp == 0 && p.active) args.span_delta[i64(blockIdx.x) * args.d + p.channel] = total;
}

constexpr int JOINED = 8;  // spans whose summaries are read at once

// Turns what each span makes of zero into what enters it: from its segment's first span to the last, or with BACK from
// the last to the first. Grid: segments · N · D / THREADS. Block: THREADS.
template <bool BACK> __device__ inline void join_spans(const ScanArgs& args) {
    const i64 size = args.n * args.d, i = i64(blockIdx.x) * THREADS + threadIdx.x;
    if (i >= args.spans.segments * size) return;
    const i64 segment = i / size, state = i % size / args.d, channel = i % args.d;
    const float a = args.a[channel * args.n + state] * LOG2E;
    const float* border = BACK ? args.dlast : args.initial_state;
    float value = border != nullptr ? border[segment * size + channel * args.n + state] : 0.0f;
    const i64 first = args.spans.first_of(segment), count = args.spans.first_of(segment + 1) - first;
    for (i64 begin = 0; begin < count; begin += JOINED) {
        float own[JOINED], delta[JOINED];
#pragma unroll
        for (int j = 0; j < JOINED; ++j) {
            const i64 span = BACK ? first + count - 1 - (begin + j) : first + begin + j;
            // The last span in this order has no summary, for nothing comes after it.
            const bool has = begin + j + 1 < count;
            own[j] = has ? args.span_states[span * size + state * args.d + channel] : 0.0f;
            delta[j] = has ? args.span_delta[span * args.d + channel] : 0.0f;
        }
#pragma unroll
        for (int j = 0; j < JOINED; ++j) {
            const i64 span = BACK ? first + count - 1 - (begin + j) : first + begin + j;
            if (begin + j < count) args.span_states[span * size + state * args.d + channel] = value;
            value = fmaf(exp2_approximate(delta[j] * a), value, own[j]);
        }
    }
}

// One exchange of `transposed_sum`: values with an index of `STEP` and more go to the lane that keeps them.
template <int STEP> __device__ inline void exchange(float (&v)[16], int lane) {
    const bool upper = (lane & STEP) != 0;
#pragma unroll
    for (int i = 0; i < STEP; ++i) {
        const float send = upper ? v[i] : v[i + STEP], keep = upper ? v[i + STEP] : v[i];
        v[i] = keep + __shfl_xor_sync(FULL_WARP, send, STEP);
    }
}

// Sums 16 values of every lane over a warp: lane l gets that of value l % 16.
__device__ inline float transposed_sum(float (&v)[16], int lane) {
    exchange<8>(v, lane);
    exchange<4>(v, lane);
    exchange<2>(v, lane);
    exchange<1>(v, lane);
    return v[0] + __shfl_xor_sync(FULL_WARP, v[0], 16);
}

// Gradients of everything. Chunks are walked from the last to the first, each first forward from its kept state.
template <typename T, bool ROUNDS, bool CONSTANT> __device__ inline void walk_gradients(const ScanArgs& args) {
    __shared__ float s_dt[CHUNK][LANES], s_u[CHUNK][LANES], s_dy[CHUNK][LANES];
    // Σ_n g·B, Σ_n g·a·h·A·log₂e and Σ_n C·h
    __shared__ float s_x[CHUNK][LANES], s_decay[CHUNK][LANES], s_y[CHUNK][LANES];
    __shared__ __align__(16) float s_b[CHUNK][ROUND];
    __shared__ __align__(16) float s_c[CHUNK][ROUND];
    __shared__ float s_start[PARTS - 1][STATES][THREADS];
    __shared__ float s_part[3][WARPS][PART][LANES];
    const Place<ROUNDS> p(args);
    const float bias = p.active && args.delta_bias != nullptr ? args.delta_bias[p.channel] : 0.0f;
    const float skip = p.active && args.skip != nullptr ? args.skip[p.channel] : 0.0f;
    const i64 size = args.n * args.d, group_at = i64(blockIdx.x) * size;
    float dskip = 0.0f, dbias = 0.0f;
    States a = load_rows(args, p, 0, args.a, LOG2E);
    States da = zero_states(), db = zero_states(), dc = zero_states();
    States b_constant = zero_states(), c_constant = zero_states();
    if (ROUNDS) {
        for (i64 round = 0; round < p.rounds; ++round) {
            store_columns(args, p, round, args.da_parts + group_at, da);
            if (CONSTANT && args.b_groups == 0) store_columns(args, p, round, args.db_parts + group_at, db);
            if (CONSTANT && args.c_groups == 0) store_columns(args, p, round, args.dc_parts + group_at, dc);
        }
    }
    const i64 end = min((i64(blockIdx.x) + 1) * args.spans_per_block, args.spans.count);
    for (i64 index = i64(blockIdx.x) * args.spans_per_block; index < end; ++index) {
        const Span span = args.spans.get(index);
        const i64 segment_at = span.segment * size;
        const Column tokens = channel_column(args, span, p.channel);
        const Column of_b = state_column(args, span, args.b_groups, p.b_group, p.state(0) + p.lane % STATES);
        const Column of_c = state_column(args, span, args.c_groups, p.c_group, p.state(0) + p.lane % STATES);
        Carried<ROUNDS> g;
        for (i64 round = 0; round < p.rounds; ++round) {
            if (args.span_states != nullptr) {
                g.now = load_columns(args, p, round, args.span_states + index * size);
            } else {
                g.now = load_rows(args, p, round, args.dlast == nullptr ? nullptr : args.dlast + segment_at, 1.0f);
            }
            g.put(args, p, round);
        }
        for (i64 chunk = (span.steps + CHUNK - 1) / CHUNK - 1; chunk >= 0; --chunk) {
            const i64 first = chunk * CHUNK;
            const int count = int(min(i64(CHUNK), span.steps - first));
            // Steps beyond the end change nothing: δ, u, dy, B and C are 0 there.
            stage_tokens<T, true, false, true, CHUNK>(args, p, tokens, bias, first, count, s_dt, s_u, nullptr, s_dy);
            for (int i = p.warp; i < CHUNK; i += WARPS) {
                s_x[i][p.lane] = 0.0f, s_decay[i][p.lane] = 0.0f, s_y[i][p.lane] = 0.0f;
            }
            const int parts = (count + PART - 1) / PART;
            for (i64 round = 0; round < p.rounds; ++round) {
                stage_coefficient<T, CONSTANT>(args, p, of_b, first, count, round, args.b, args.b_groups, s_b);
                stage_coefficient<T, CONSTANT>(args, p, of_c, first, count, round, args.c, args.c_groups, s_c);
                if (ROUNDS) {
                    a = load_rows(args, p, round, args.a, LOG2E);
                    da = zero_states(), db = zero_states(), dc = zero_states();
                }
                if (CONSTANT && args.b_groups == 0) {
                    b_constant = load_rows(args, p, round, static_cast<const float*>(args.b), 1.0f);
                }
                if (CONSTANT && args.c_groups == 0) {
                    c_constant = load_rows(args, p, round, static_cast<const float*>(args.c), 1.0f);
                }
                __syncthreads();
                g.get(args, p, round);
                const float* kept = args.kept + (span.chunk + chunk) * size;
                States h = load_columns(args, p, round, kept);
                const int working = p.working(args, round);
                // The state before each part.
                for (int part = 1; p.warp < working && part < parts; ++part) {
#pragma unroll
                    for (int i = 0; i < PART; ++i) {
                        const int step = (part - 1) * PART + i;
                        const float dt = s_dt[step][p.lane], x = dt * s_u[step][p.lane];
                        const States b = coefficient<CONSTANT>(s_b[step], p, args.b_groups == 0, b_constant);
#pragma unroll
                        for (int k = 0; k < STATES; ++k) h[k] = fmaf(exp2_approximate(dt * a[k]), h[k], x * b[k]);
                    }
#pragma unroll
                    for (int k = 0; k < STATES; ++k) s_start[part - 1][k][p.number] = h[k];
                }
                for (int part = parts - 1; part >= 0; --part) {
                    if (p.warp < working) {
                        if (part > 0) {
#pragma unroll
                            for (int k = 0; k < STATES; ++k) h[k] = s_start[part - 1][k][p.number];
                        } else {
                            h = load_columns(args, p, round, kept);
                        }
                        float decay[PART][STATES], decayed[PART][STATES], sums[PART * STATES], y[PART];
#pragma unroll
                        for (int i = 0; i < PART; ++i) {
                            const int step = part * PART + i;
                            const float dt = s_dt[step][p.lane], x = dt * s_u[step][p.lane], dy = s_dy[step][p.lane];
                            const States b = coefficient<CONSTANT>(s_b[step], p, args.b_groups == 0, b_constant);
                            const States c = coefficient<CONSTANT>(s_c[step], p, args.c_groups == 0, c_constant);
                            y[i] = 0.0f;
#pragma unroll
                            for (int k = 0; k < STATES; ++k) {
                                decay[i][k] = exp2_approximate(dt * a[k]);
                                decayed[i][k] = decay[i][k] * h[k];
                                h[k] = fmaf(x, b[k], decayed[i][k]);
                                y[i] = fmaf(c[k], h[k], y[i]);
                                sums[i * STATES + k] = dy * h[k];
                                if (CONSTANT) dc[k] += sums[i * STATES + k];
                            }
                        }
                        // Lane l < 16 has the sum of step l / 4 and state l % 4.
                        const i64 state = p.state(round) + p.lane % STATES;
                        const int step_of_lane = part * PART + p.lane / STATES;
                        const bool writes = p.lane < PART * STATES && step_of_lane < count && state < args.n;
                        const i64 part_at = writes ? (blockIdx.y * args.tokens + span.token(first + step_of_lane)) * args.n + state : 0;
                        if (!CONSTANT || args.c_groups > 0) {
                            const float sum = transposed_sum(sums, p.lane);
                            if (writes) args.dc_parts[part_at] = sum;
                        }
#pragma unroll
                        for (int i = PART - 1; i >= 0; --i) {
                            const int step = part * PART + i;
                            const float dt = s_dt[step][p.lane], x = dt * s_u[step][p.lane], dy = s_dy[step][p.lane];
                            const States b = coefficient<CONSTANT>(s_b[step], p, args.b_groups == 0, b_constant);
                            const States c = coefficient<CONSTANT>(s_c[step], p, args.c_groups == 0, c_constant);
                            float dx = 0.0f, ddecay = 0.0f;
#pragma unroll
                            for (int k = 0; k < STATES; ++k) {
                                const float now = fmaf(dy, c[k], g.now[k]);
                                dx = fmaf(now, b[k], dx);
                                sums[i * STATES + k] = now * x;
                                if (CONSTANT) db[k] += sums[i * STATES + k];
                                const float exponent = now * decayed[i][k];
                                ddecay = fmaf(exponent, a[k], ddecay);
                                da[k] = fmaf(exponent, dt, da[k]);
                                g.now[k] = now * decay[i][k];
                            }
                            s_part[0][p.warp][i][p.lane] = dx;
                            s_part[1][p.warp][i][p.lane] = ddecay;
                            s_part[2][p.warp][i][p.lane] = y[i];
                        }
                        if (!CONSTANT || args.b_groups > 0) {
                            const float sum = transposed_sum(sums, p.lane);
                            if (writes) args.db_parts[part_at] = sum;
                        }
                    }
                    __syncthreads();
                    static_assert(PART == WARPS, "a warp adds up one step of a part");
                    float dx = 0.0f, ddecay = 0.0f, sum = 0.0f;
#pragma unroll
                    for (int w = 0; w < WARPS; ++w) {
                        if (w < working) {
                            dx += s_part[0][w][p.warp][p.lane];
                            ddecay += s_part[1][w][p.warp][p.lane];
                            sum += s_part[2][w][p.warp][p.lane];
                        }
                    }
                    s_x[part * PART + p.warp][p.lane] += dx;
                    s_decay[part * PART + p.warp][p.lane] += ddecay;
                    s_y[part * PART + p.warp][p.lane] += sum;
                    __syncthreads();
                }
                g.put(args, p, round);
                if (ROUNDS) {
                    add_columns(args, p, round, args.da_parts + group_at, da);
                    if (CONSTANT && args.b_groups == 0) add_columns(args, p, round, args.db_parts + group_at, db);
                    if (CONSTANT && args.c_groups == 0) add_columns(args, p, round, args.dc_parts + group_at, dc);
                }
            }
            i64 at = tokens.at(first + p.warp);
            const i64 stride = tokens.row * WARPS;
            for (int begin = p.warp; begin < count && p.active; begin += BATCH * WARPS) {
                float out[BATCH], z[BATCH];
#pragma unroll
                for (int j = 0; j < BATCH; ++j) {
                    const bool gated = args.dz != nullptr && begin + j * WARPS < count;
                    out[j] = gated && args.dy != nullptr ? load<T>(args.dy, at + j * stride) : 0.0f;
                    z[j] = gated ? load<T>(args.z, at + j * stride) : 0.0f;
                }
#pragma unroll
                for (int j = 0; j < BATCH; ++j, at += stride) {
                    const int i = begin + j * WARPS;
                    if (i >= count) break;
                    const float dt = s_dt[i][p.lane], u = s_u[i][p.lane], dy = s_dy[i][p.lane], dx = s_x[i][p.lane];
                    store<T>(args.du, at, fmaf(skip, dy, dt * dx));
                    dskip = fmaf(dy, u, dskip);
                    float ddelta = fmaf(u, dx, LN2 * s_decay[i][p.lane]);
                    // softplus'(x) = σ(x) = 1 - e^-softplus(x)
                    if (args.softplus) ddelta *= -expm1f(-dt);
                    dbias += ddelta;
                    store<T>(args.ddelta, at, ddelta);
                    if (args.dz != nullptr) {
                        store<T>(args.dz, at, out[j] * fmaf(skip, u, s_y[i][p.lane]) * silu_slope(z[j]));
                    }
                }
            }
        }
        if (span.first == 0 && args.dinitial != nullptr) {
            for (i64 round = 0; round < p.rounds; ++round) {
                g.get(args, p, round);
                store_rows(args, p, round, args.dinitial + segment_at, g.now);
            }
        }
    }
    if (!ROUNDS) {
        store_columns(args, p, 0, args.da_parts + group_at, da);
        if (CONSTANT && args.b_groups == 0) store_columns(args, p, 0, args.db_parts + group_at, db);
        if (CONSTANT && args.c_groups == 0) store_columns(args, p, 0, args.dc_parts + group_at, dc);
    }
    s_part[0][p.warp][0][p.lane] = dskip;
    s_part[1][p.warp][0][p.lane] = dbias;
    __syncthreads();
    if (p.warp == 0 && p.active) {
        dskip = 0.0f, dbias = 0.0f;
        for (int w = 0; w < WARPS; ++w) {
            dskip += s_part[0][w][0][p.lane];
            dbias += s_part[1][w][0][p.lane];
        }
        args.dskip_parts[i64(blockIdx.x) * args.d + p.channel] = dskip;
        args.dbias_parts[i64(blockIdx.x) * args.d + p.channel] = dbias;
    }
}

// Adds the parts of tiles `first_tile .. first_tile + tiles` to the gradient of B or C of each token and group. The
// tiles come in waves so that their parts stay small; `sum` holds the sums between waves.
struct SumTilesArgs {
    const float* parts;  // (tiles, tokens, N)
    float* sum;          // (tokens, groups, N), or null if there is one wave
    void* out;           // (tokens, groups, N), or null before the last wave
    i64 tokens;
    i64 n;
    i64 groups;
    i64 tiles_of_group;
    i64 first_tile;
    i64 tiles;
};

// Grid: tokens · groups · N / THREADS. Block: THREADS.
template <typename T> __device__ inline void sum_tiles(const SumTilesArgs& args) {
    const i64 i = i64(blockIdx.x) * THREADS + threadIdx.x;
    if (i >= args.tokens * args.groups * args.n) return;
    const i64 state = i % args.n, group = i / args.n % args.groups, token = i / args.n / args.groups;
    const i64 first = max(group * args.tiles_of_group, args.first_tile);
    const i64 end = min((group + 1) * args.tiles_of_group, args.first_tile + args.tiles);
    float sum = args.sum != nullptr && args.first_tile > 0 ? args.sum[i] : 0.0f;
#pragma unroll 4
    for (i64 tile = first; tile < end; ++tile) {
        sum += args.parts[((tile - args.first_tile) * args.tokens + token) * args.n + state];
    }
    if (args.sum != nullptr) args.sum[i] = sum;
    if (args.out != nullptr) store<T>(args.out, i, sum);
}

template <typename T> __device__ inline void summary(const ScanArgs& args) { walk<T, true, false, false>(args); }
template <typename T> __device__ inline void summary_rounds(const ScanArgs& args) { walk<T, true, true, false>(args); }
template <typename T> __device__ inline void summary_constant(const ScanArgs& args) { walk<T, true, true, true>(args); }
template <typename T> __device__ inline void forward(const ScanArgs& args) { walk<T, false, false, false>(args); }
template <typename T> __device__ inline void forward_rounds(const ScanArgs& args) { walk<T, false, true, false>(args); }
template <typename T> __device__ inline void forward_constant(const ScanArgs& args) {
    walk<T, false, true, true>(args);
}
template <typename T> __device__ inline void summary_back(const ScanArgs& args) { walk_back<T, false, false>(args); }
template <typename T> __device__ inline void summary_back_rounds(const ScanArgs& args) {
    walk_back<T, true, false>(args);
}
template <typename T> __device__ inline void summary_back_constant(const ScanArgs& args) {
    walk_back<T, true, true>(args);
}
template <typename T> __device__ inline void backward(const ScanArgs& args) { walk_gradients<T, false, false>(args); }
template <typename T> __device__ inline void backward_rounds(const ScanArgs& args) {
    walk_gradients<T, true, false>(args);
}
template <typename T> __device__ inline void backward_constant(const ScanArgs& args) {
    walk_gradients<T, true, true>(args);
}
template <typename T> __device__ inline void join(const ScanArgs& args) { join_spans<false>(args); }
template <typename T> __device__ inline void join_back(const ScanArgs& args) { join_spans<true>(args); }

ENTRIES(selective_scan_summary, ScanArgs, THREADS, 6, summary)
ENTRIES(selective_scan_summary_rounds, ScanArgs, THREADS, 6, summary_rounds)
ENTRIES(selective_scan_summary_constant, ScanArgs, THREADS, 6, summary_constant)
ENTRIES(selective_scan_forward, ScanArgs, THREADS, 6, forward)
ENTRIES(selective_scan_forward_rounds, ScanArgs, THREADS, 5, forward_rounds)
ENTRIES(selective_scan_forward_constant, ScanArgs, THREADS, 5, forward_constant)
ENTRIES(selective_scan_summary_back, ScanArgs, THREADS, 6, summary_back)
ENTRIES(selective_scan_summary_back_rounds, ScanArgs, THREADS, 6, summary_back_rounds)
ENTRIES(selective_scan_summary_back_constant, ScanArgs, THREADS, 6, summary_back_constant)
ENTRIES(selective_scan_backward, ScanArgs, THREADS, 3, backward)
ENTRIES(selective_scan_backward_rounds, ScanArgs, THREADS, 2, backward_rounds)
ENTRIES(selective_scan_backward_constant, ScanArgs, THREADS, 2, backward_constant)
ENTRIES(selective_scan_sum_tiles, SumTilesArgs, THREADS, 7, sum_tiles)
ENTRY(selective_scan_join, f32, ScanArgs, THREADS, 7, join)
ENTRY(selective_scan_join_back, f32, ScanArgs, THREADS, 7, join_back)
ENTRY(selective_scan_sum_rows, f32, SumRowsArgs, SUM_ROWS_LANES * SUM_ROWS_SLICES, 2, sum_rows)
