// The state space dual scan (src/ssd): products of matrices for each chunk of CHUNK tokens and each head.
//
// Forward: `steps` finds δ and the decays; `chunk_states` what each chunk adds to the state; `pass` turns that into the
// state before each chunk; `output` multiplies inside chunks. Backward: `readers` finds what each chunk gives to the
// gradient of the state before it; `pass_back` turns that into the gradient of the state after each chunk; `gradients`
// works inside chunks; `coefficients` gives those of B and C. `step` is one token without a gradient.
//
// With M[t, s] = C_t·B_s · e_ts · w_s, the decays e_ts = exp(S_t - S_s) of the segment sums S, the state H before the chunk
// and the gradient G of the state after it, one head computes
//
//     y_t = Σ_{s≤t} M[t, s] x_s + exp(S_t) · H C_t            H' = exp(S_Q) H + Σ_s exp(S_Q - S_s) w_s · x_s ⊗ B_s
//
// and the gradient of the decay of step u is the sum of all that passes through that step: Σ_{t≥u>s} M[t, s] dM[t, s], the
// readers of H from u on, the writers of H' before u, and H' through H. Each is summed with terms of its own only, so that
// nothing cancels. B and C belong to the heads of a group: a block takes some of them, their share, one after another, and
// `sum_shares` adds the shares in order. There are no atomics.
//
// Grid: one axis, see each kernel. Block: 256. Shared: states and coefficients 19 KiB, output 36 KiB, gradients 40 KiB.
#include "product.cuh"

constexpr int CHUNK = SIDE;
constexpr int THREADS = PRODUCT_THREADS;
constexpr int WARPS = THREADS / 32;
// log₂ of the fastest decay of one token, which is nothing in f32; keeps sums small.
constexpr double FASTEST = -16000.0;

struct SsdArgs {
    Spans spans;                 // chunks
    const void* x;               // (B, L, H, P)
    const void* dt;              // (B, L, H)
    const float* a;              // (H)
    const void* b;               // (B, L, G, N)
    const void* c;               // (B, L, G, N)
    const float* skip;           // (H) or (H, P), or null
    const void* z;               // (B, L, H, P), or null
    const float* dt_bias;        // (H), or null
    const float* initial_state;  // (segments, H, P, N), or null
    const void* into_state;      // (B, L, H), or null
    const void* into_output;     // (B, L, H), or null
    float* delta;                // (B, L, H): δ
    float* log;                  // (B, L, H): log₂ of the decay from the chunk's beginning until behind the step
    float* log_rest;             // (B, L, H): what rounding it lost
    float* states;               // (chunks, H, P, N): the state before each chunk
    void* y;                     // (B, L, H, P)
    float* last_state;           // (segments, H, P, N), or null
    const void* dy;              // (B, L, H, P), or null
    const float* dlast;          // (segments, H, P, N), or null
    float* grads;                // (chunks, H, P, N): the gradient of the state after each chunk
    void* dx;                    // (B, L, H, P)
    void* ddt;                   // (B, L, H)
    void* dz;                    // (B, L, H, P), or null
    void* dinto_state;           // (B, L, H), or null
    void* dinto_output;          // (B, L, H), or null
    float* dinitial;             // (segments, H, P, N), or null
    float* da_parts;             // (chunks, H)
    float* dskip_parts;          // (chunks, H, P), or null
    float* dbias_parts;          // (chunks, H)
    float* dproducts;            // (chunks, G, shares, CHUNK, CHUNK): the gradient of C_t·B_s
    float* db_parts;             // (shares, B·L, G, N)
    float* dc_parts;             // (shares, B·L, G, N)
    i64 tokens;                  // B·L
    i64 h;
    i64 p;
    i64 g;
    i64 n;
    i64 shares;
    i64 heads_of_share;
    i64 skip_per_channel;
    i64 softplus;
    i64 limited;
    double lowest;
    double highest;
};

__device__ inline float exp2_of(float log, float rest) { return exp2_approximate(log + rest); }

// δ + what comes before it: `raw` is the input of softplus.
template <typename T> __device__ inline float raw_step(const SsdArgs& args, i64 at, i64 head) {
    return load<T>(args.dt, at) + (args.dt_bias != nullptr ? args.dt_bias[head] : 0.0f);
}

__device__ inline float unlimited(const SsdArgs& args, float raw) { return args.softplus ? softplus(raw) : raw; }

// Clamped; NaN stays NaN.
__device__ inline float limited(const SsdArgs& args, float delta) {
    if (!args.limited) return delta;
    return delta < float(args.lowest) ? float(args.lowest) : delta > float(args.highest) ? float(args.highest) : delta;
}

__device__ inline double log_decay(const SsdArgs& args, float delta, i64 head) {
    const double decay = double(delta * (args.a[head] * LOG2E));
    return decay < FASTEST ? FASTEST : decay;
}

// δ and decays of each token. Grid: chunks · H / THREADS; a thread for each chunk and head.
template <typename T> __device__ inline void steps(const SsdArgs& args) {
    const i64 i = i64(blockIdx.x) * THREADS + threadIdx.x;
    if (i >= args.spans.count * args.h) return;
    const i64 head = i % args.h;
    const Span span = args.spans.get(i / args.h);
    double log = 0.0;
    for (i64 step = 0; step < span.steps; ++step) {
        const i64 at = span.token(step) * args.h + head;
        const float delta = limited(args, unlimited(args, raw_step<T>(args, at, head)));
        log += log_decay(args, delta, head);
        args.delta[at] = delta;
        args.log[at] = float(log);
        args.log_rest[at] = float(log - double(float(log)));
    }
}

// One chunk, of one row of a batch. Distances between steps are 32-bit: an address is then one multiplication.
struct Place {
    Span span;
    i64 chunk;
    i64 token;  // of the first step
    int count;  // tokens
    int head_row, channel_row, coefficient_row;  // from step to step in (B, L, H), (B, L, H, P) and (B, L, G, N)

    __device__ Place(const SsdArgs& args, i64 chunk)
        : span(args.spans.get(chunk)), chunk(chunk), token(span.token(0)), count(int(span.steps)) {
        const int direction = span.reverse ? -1 : 1;
        head_row = direction * int(args.h), channel_row = direction * int(args.h * args.p);
        coefficient_row = direction * int(args.g * args.n);
    }

    // Whether a state other than zero enters, and a gradient other than zero comes back.
    __device__ bool has_state(const SsdArgs& args) const { return span.first > 0 || args.initial_state != nullptr; }
    __device__ bool has_grad(const SsdArgs& args) const { return !span.is_last() || args.dlast != nullptr; }

    __device__ i64 head_at(const SsdArgs& args, int step, i64 head) const {
        return token * args.h + head + i64(step) * head_row;
    }
    __device__ i64 channel_at(const SsdArgs& args, int step, i64 head, i64 channel) const {
        return (token * args.h + head) * args.p + channel + i64(step) * channel_row;
    }
    __device__ i64 coefficient_at(const SsdArgs& args, int step, i64 group, i64 n) const {
        return (token * args.g + group) * args.n + n + i64(step) * coefficient_row;
    }
    __device__ i64 state_at(const SsdArgs& args, i64 head, i64 channel, i64 n) const {
        return (chunk * args.h + head) * args.p * args.n + i64(int(channel)) * int(args.n) + n;
    }
};

// Functions of a place that give one element, 0 outside.
template <typename T> struct Elements {
    const SsdArgs& args;
    const Place& place;

    __device__ float x(int step, i64 head, i64 channel) const {
        if (step >= place.count || channel >= args.p) return 0.0f;
        return load<T>(args.x, place.channel_at(args, step, head, channel));
    }
    // The gradient of the output before the gate.
    __device__ float dy(int step, i64 head, i64 channel) const {
        if (step >= place.count || channel >= args.p || args.dy == nullptr) return 0.0f;
        const i64 at = place.channel_at(args, step, head, channel);
        const float g = load<T>(args.dy, at);
        return args.z != nullptr ? g * silu(load<T>(args.z, at)) : g;
    }
    __device__ float coefficient(const void* data, int step, i64 group, i64 n) const {
        if (step >= place.count || n >= args.n) return 0.0f;
        return load<T>(data, place.coefficient_at(args, step, group, n));
    }
    __device__ float b(int step, i64 group, i64 n) const { return coefficient(args.b, step, group, n); }
    __device__ float c(int step, i64 group, i64 n) const { return coefficient(args.c, step, group, n); }
    // Of `states` or `grads`.
    __device__ float state(const float* data, i64 head, i64 channel, i64 n) const {
        if (channel >= args.p || n >= args.n) return 0.0f;
        return data[place.state_at(args, head, channel, n)];
    }
    __device__ float skip(i64 head, i64 channel) const {
        if (args.skip == nullptr) return 0.0f;
        return args.skip[args.skip_per_channel ? head * args.p + channel : head];
    }
};

// One head's steps of one chunk, in shared memory.
struct Steps {
    float log[CHUNK], rest[CHUNK];
    float into_state[CHUNK], into_output[CHUNK];  // the weights with which a token enters the state and its own output

    // Every thread of the block must come here; the arrays may be read after a barrier.
    template <typename T> __device__ void fetch(const SsdArgs& args, const Place& place, i64 head) {
        const int step = threadIdx.x;
        if (step >= CHUNK) return;
        float log_now = 0.0f, rest_now = 0.0f, state = 0.0f, output = 0.0f;
        if (step < place.count) {
            const i64 at = place.head_at(args, step, head);
            log_now = args.log[at], rest_now = args.log_rest[at];
            state = args.into_state != nullptr ? load<T>(args.into_state, at) : args.delta[at];
            output = args.into_output != nullptr ? load<T>(args.into_output, at) : args.delta[at];
        }
        log[step] = log_now, rest[step] = rest_now, into_state[step] = state, into_output[step] = output;
    }
    // The decay from behind step s until behind step t.
    __device__ float between(int s, int t) const { return exp2_of(log[t] - log[s], rest[t] - rest[s]); }
    __device__ float from_start(int t) const { return exp2_of(log[t], rest[t]); }
    __device__ float to_end(const Place& place, int s) const { return between(s, place.count - 1); }
    // The weight with which step s enters the state after the chunk.
    __device__ float written(const Place& place, int s) const {
        return s < place.count ? into_state[s] * to_end(place, s) : 0.0f;
    }
    __device__ float read(const Place& place, int t) const { return t < place.count ? from_start(t) : 0.0f; }
};

// What a chunk adds to the state: Σ_s exp(S_Q - S_s) w_s · x_s ⊗ B_s; with BACK what it gives to the gradient of the state
// before it: Σ_t exp(S_t) · dy_t ⊗ C_t. Grid: chunks · H · tiles of (P, N).
template <typename T, bool BACK> __device__ inline void outer_products(const SsdArgs& args) {
    __shared__ ProductMemory memory;
    __shared__ Steps s;
    const i64 tiles_n = (args.n + SIDE - 1) / SIDE, tiles_p = (args.p + SIDE - 1) / SIDE;
    i64 block = blockIdx.x;
    const i64 first_n = block % tiles_n * SIDE;
    block /= tiles_n;
    const i64 first_p = block % tiles_p * SIDE;
    block /= tiles_p;
    const i64 head = block % args.h, group = head / (args.h / args.g);
    const Place place(args, block / args.h);
    // The state after a segment's end and the gradient before its beginning may be of no use.
    if (BACK ? place.span.first == 0 && args.dinitial == nullptr : place.span.is_last() && args.last_state == nullptr) {
        return;
    }
    s.fetch<T>(args, place, head);
    const Elements<T> of{args, place};
    Product<T> product(memory);
    product.template add<Along::lines, Along::lines>(
        place.count,
        [&](int channel, int step) {
            return BACK ? of.dy(step, head, first_p + channel) * s.read(place, step)
                        : of.x(step, head, first_p + channel) * s.written(place, step);
        },
        [&](int n, int step) {
            return BACK ? of.c(step, group, first_n + n) : of.b(step, group, first_n + n);
        });
    product.store();
    float* to = BACK ? args.grads : args.states;
    for (int i = threadIdx.x; i < SIDE * SIDE; i += THREADS) {
        const i64 channel = first_p + i / SIDE, n = first_n + i % SIDE;
        if (channel < args.p && n < args.n) to[place.state_at(args, head, channel, n)] = memory.row(i / SIDE)[i % SIDE];
    }
}

constexpr int PASSED = 6;  // chunks whose states are read at once; registers hold no more

// From each segment's first chunk to the last, turns what each adds into the state before it; with BACK, from the last to
// the first, into the gradient of the state after it. Grid: segments · H · P · N / THREADS.
template <bool BACK> __device__ inline void pass_states(const SsdArgs& args) {
    const i64 size = args.h * args.p * args.n, i = i64(blockIdx.x) * THREADS + threadIdx.x;
    if (i >= args.spans.segments * size) return;
    const i64 segment = i / size, head = i % size / (args.p * args.n);
    const float* border = BACK ? args.dlast : args.initial_state;
    float* end_state = BACK ? args.dinitial : args.last_state;
    float value = border != nullptr ? border[i] : 0.0f;
    const i64 first = args.spans.first_of(segment), count = args.spans.first_of(segment + 1) - first;
    float* const states = (BACK ? args.grads : args.states) + i % size;
    for (i64 begin = 0; begin < count; begin += PASSED) {
        float own[PASSED], decay[PASSED];
#pragma unroll
        for (int j = 0; j < PASSED; ++j) {
            const i64 k = begin + j, chunk = BACK ? first + count - 1 - k : first + k;
            own[j] = 0.0f, decay[j] = 1.0f;
            // The last in this order was computed only if what comes after it is of use.
            if (k + 1 < count || (k < count && end_state != nullptr)) {
                const Span span = args.spans.get(chunk);
                own[j] = states[chunk * size];
                if (span.steps > 0) {
                    const i64 last = span.token(span.steps - 1) * args.h + head;
                    decay[j] = exp2_of(args.log[last], args.log_rest[last]);
                }
            }
        }
#pragma unroll
        for (int j = 0; j < PASSED; ++j) {
            const i64 k = begin + j, chunk = BACK ? first + count - 1 - k : first + k;
            if (k < count) states[chunk * size] = value;
            value = fmaf(decay[j], value, own[j]);
        }
    }
    if (end_state != nullptr) end_state[i] = value;
}

// A share of a group's heads, for kernels whose blocks take heads one after another.
struct Share {
    i64 group, share, first, end;

    __device__ Share(const SsdArgs& args, i64 block) : group(block / args.shares % args.g), share(block % args.shares) {
        const i64 in_group = args.h / args.g;
        first = group * in_group + share * args.heads_of_share;
        end = min(first + args.heads_of_share, (group + 1) * in_group);
    }
};

// C_t·B_s of a chunk, in `products[t][s]`.
template <typename T>
__device__ inline void coefficient_products(
    ProductMemory& memory, const Elements<T>& of, i64 group, float (&products)[CHUNK][PITCH]
) {
    Product<T> product(memory);
    product.template add<Along::terms, Along::terms>(
        int(of.args.n), [&](int t, int n) { return of.c(t, group, n); }, [&](int s, int n) { return of.b(s, group, n); });
    product.store();
    for (int i = threadIdx.x; i < CHUNK * CHUNK; i += THREADS) products[i / CHUNK][i % CHUNK] = memory.row(i / CHUNK)[i % CHUNK];
    __syncthreads();
}

// M[t, s].
__device__ inline float mixing(const float (&products)[CHUNK][PITCH], const Steps& steps, int count, int t, int s) {
    if (t >= count || s > t) return 0.0f;
    return products[t][s] * (s == t ? steps.into_output[s] : steps.between(s, t) * steps.into_state[s]);
}

// Grid: chunks · tiles of P · G · shares.
template <typename T> __device__ inline void output(const SsdArgs& args) {
    __shared__ ProductMemory memory;
    __shared__ float products[CHUNK][PITCH];
    __shared__ Steps s;
    const i64 tiles_p = (args.p + SIDE - 1) / SIDE;
    const Share share(args, blockIdx.x);
    const i64 block = i64(blockIdx.x) / (args.g * args.shares);
    const i64 first_p = block % tiles_p * SIDE;
    const Place place(args, block / tiles_p);
    if (place.count == 0) return;
    const Elements<T> of{args, place};
    coefficient_products<T>(memory, of, share.group, products);
    for (i64 head = share.first; head < share.end; ++head) {
        s.fetch<T>(args, place, head);
        __syncthreads();
        Product<T> y(memory);
        if (place.has_state(args)) {
            y.template add<Along::terms, Along::terms>(
                int(args.n), [&](int t, int n) { return of.c(t, share.group, n) * s.read(place, t); },
                [&](int channel, int n) { return of.state(args.states, head, first_p + channel, n); });
        }
        y.template add<Along::terms, Along::lines>(
            place.count, [&](int t, int u) { return mixing(products, s, place.count, t, u); },
            [&](int channel, int u) { return of.x(u, head, first_p + channel); });
        y.store();
        for (int i = threadIdx.x; i < place.count * SIDE; i += THREADS) {
            const int step = i / SIDE;
            const i64 channel = first_p + i % SIDE;
            if (channel >= args.p) continue;
            const i64 at = place.channel_at(args, step, head, channel);
            float out = memory.row(step)[i % SIDE];
            if (args.skip != nullptr) out = fmaf(of.skip(head, channel), load<T>(args.x, at), out);
            if (args.z != nullptr) out *= silu(load<T>(args.z, at));
            store<T>(args.y, at, out);
        }
        __syncthreads();
    }
}

// Σ over the first CHUNK threads of the block, which are two warps; for the first thread.
__device__ inline float sum_of_steps(float x, float (&partial)[WARPS]) {
    x = warp_sum(x);
    if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = x;
    __syncthreads();
    x = partial[0] + partial[1];
    __syncthreads();
    return x;
}

// What `gradients` keeps of one head, one value for each step.
struct StepGradients {
    float into_state[CHUNK], into_output[CHUNK];
    float within[CHUNK];                // of the log of the decay, through M
    float reads[CHUNK], writes[CHUNK];  // what is read of H and written to H', times the gradients there
};

// All gradients but those of B and C. Grid: chunks · G · shares.
template <typename T> __device__ inline void gradients(const SsdArgs& args) {
    __shared__ ProductMemory memory;
    __shared__ float products[CHUNK][PITCH];
    __shared__ Steps s;
    __shared__ StepGradients grad;
    __shared__ float partial[WARPS], columns[WARPS][SIDE];
    const Share share(args, blockIdx.x);
    const Place place(args, i64(blockIdx.x) / (args.g * args.shares));
    const Elements<T> of{args, place};
    const int count = place.count, thread = threadIdx.x, warp = thread / 32, lane = thread % 32;
    const bool has_state = place.has_state(args) && args.dy != nullptr, has_grad = place.has_grad(args);
    const bool has_y = args.dy != nullptr && count > 0;
    coefficient_products<T>(memory, of, share.group, products);
    // The gradient of C_t·B_s over the heads so far; elements `thread`, `thread + THREADS`, … are this thread's own.
    float* dproducts =
        args.dproducts + ((place.chunk * args.g + share.group) * args.shares + share.share) * CHUNK * CHUNK;
    for (i64 head = share.first; head < share.end; ++head) {
        s.fetch<T>(args, place, head);
        if (thread < CHUNK) {
            grad.into_state[thread] = 0.0f, grad.into_output[thread] = 0.0f, grad.within[thread] = 0.0f;
            grad.reads[thread] = 0.0f, grad.writes[thread] = 0.0f;
        }
        __syncthreads();
        if (has_y) {
            // dM[t, s] = dy_t·x_s
            Product<T> dmixing(memory);
            dmixing.template add<Along::terms, Along::terms>(
                int(args.p), [&](int t, int channel) { return of.dy(t, head, channel); },
                [&](int u, int channel) { return of.x(u, head, channel); });
            dmixing.store();
            for (int i = thread; i < CHUNK * CHUNK; i += THREADS) {
                const int t = i / CHUNK, u = i % CHUNK;
                float& place_of_term = memory.row(t)[u];
                const float d = place_of_term;
                float of_product = 0.0f, term = 0.0f;
                if (t < count && u == t) {
                    of_product = d * s.into_output[u];
                    grad.into_output[u] = d * products[t][u];
                } else if (t < count && u < t) {
                    const float decayed = d * s.between(u, t);
                    of_product = decayed * s.into_state[u];
                    term = decayed * products[t][u];
                }
                dproducts[i] = head > share.first ? dproducts[i] + of_product : of_product;
                place_of_term = term;
            }
            __syncthreads();
            // Column by column, what passes from step `thread` through each later step.
            if (thread < count) {
                float sum = 0.0f;
                for (int t = count - 1; t > thread; --t) {
                    sum += memory.row(t)[thread];
                    memory.row(t)[thread] = sum * s.into_state[thread];
                }
                grad.into_state[thread] = sum;
            }
            __syncthreads();
            if (thread < count) {
                float sum = 0.0f;
                for (int u = 0; u < thread; ++u) sum += memory.row(thread)[u];
                grad.within[thread] = sum;
            }
        }
        for (i64 first_p = 0; first_p < args.p; first_p += SIDE) {
            // What comes back from the state after the chunk; rows are steps, whose sums belong to one warp each.
            Product<T> dx(memory);
            if (has_grad && count > 0) {
                dx.template add<Along::terms, Along::terms>(
                    int(args.n), [&](int u, int n) { return of.b(u, share.group, n); },
                    [&](int channel, int n) { return of.state(args.grads, head, first_p + channel, n); });
                dx.store();
                for (int u = warp; u < CHUNK; u += WARPS) {
                    const float end = u < count ? s.to_end(place, u) : 0.0f;
                    float sum = 0.0f;
                    for (int column = lane; column < SIDE; column += 32) {
                        float& value = memory.row(u)[column];
                        sum = fmaf(of.x(u, head, first_p + column), value, sum);
                        value *= end * s.into_state[u];
                    }
                    sum = warp_sum(sum);
                    if (lane == 0) grad.writes[u] += sum * end;
                }
                dx.load();
            }
            if (has_y) {
                dx.template add<Along::lines, Along::lines>(
                    count, [&](int u, int t) { return mixing(products, s, count, t, u); },
                    [&](int channel, int t) { return of.dy(t, head, first_p + channel); });
            }
            dx.store();
            float dskip[SIDE / 32] = {};
            for (int u = warp; u < count; u += WARPS) {
#pragma unroll
                for (int i = 0; i < SIDE / 32; ++i) {
                    const i64 channel = first_p + lane + 32 * i;
                    if (channel >= args.p) continue;
                    const float dy = of.dy(u, head, channel);
                    const float value = fmaf(of.skip(head, channel), dy, memory.row(u)[lane + 32 * i]);
                    store<T>(args.dx, place.channel_at(args, u, head, channel), value);
                    dskip[i] = fmaf(dy, of.x(u, head, channel), dskip[i]);
                }
            }
            if (args.dskip_parts != nullptr) {
#pragma unroll
                for (int i = 0; i < SIDE / 32; ++i) columns[warp][lane + 32 * i] = dskip[i];
                __syncthreads();
                if (thread < SIDE && first_p + thread < args.p) {
                    float sum = 0.0f;
                    for (int w = 0; w < WARPS; ++w) sum += columns[w][thread];
                    args.dskip_parts[(place.chunk * args.h + head) * args.p + first_p + thread] = sum;
                }
            }
            // What is read of the state before the chunk, and the output before the gate if its gradient is asked for.
            if (!has_state && !(has_y && args.dz != nullptr)) continue;
            Product<T> y(memory);
            if (has_state) {
                y.template add<Along::terms, Along::terms>(
                    int(args.n), [&](int t, int n) { return of.c(t, share.group, n); },
                    [&](int channel, int n) { return of.state(args.states, head, first_p + channel, n); });
                y.store();
                for (int t = warp; t < CHUNK; t += WARPS) {
                    const float start = s.read(place, t);
                    float sum = 0.0f;
                    for (int column = lane; column < SIDE; column += 32) {
                        float& value = memory.row(t)[column];
                        value *= start;
                        sum = fmaf(of.dy(t, head, first_p + column), value, sum);
                    }
                    sum = warp_sum(sum);
                    if (lane == 0) grad.reads[t] += sum;
                }
                y.load();
            }
            if (args.dz == nullptr || !has_y) continue;
            y.template add<Along::terms, Along::lines>(
                count, [&](int t, int u) { return mixing(products, s, count, t, u); },
                [&](int channel, int u) { return of.x(u, head, first_p + channel); });
            y.store();
            for (int i = thread; i < count * SIDE; i += THREADS) {
                const i64 channel = first_p + i % SIDE;
                if (channel >= args.p) continue;
                const i64 at = place.channel_at(args, i / SIDE, head, channel);
                const float value = fmaf(of.skip(head, channel), load<T>(args.x, at), memory.row(i / SIDE)[i % SIDE]);
                store<T>(args.dz, at, load<T>(args.dy, at) * value * silu_slope(load<T>(args.z, at)));
            }
        }
        // The gradient of the decay over the whole chunk, times that decay.
        float whole = 0.0f;
        if (place.has_state(args) && has_grad && count > 0) {
            const i64 from = place.state_at(args, head, 0, 0), size = args.p * args.n;
            for (i64 i = thread; i < size; i += THREADS) whole = fmaf(args.states[from + i], args.grads[from + i], whole);
            whole *= s.from_start(count - 1);
        }
        whole = warp_sum(whole);
        if (lane == 0) partial[warp] = whole;
        __syncthreads();
        whole = 0.0f;
        for (int w = 0; w < WARPS; ++w) whole += partial[w];
        __syncthreads();
        float da = 0.0f, dbias = 0.0f;
        if (thread < count) {
            float readers = 0.0f, writers = whole;
            for (int t = count - 1; t >= thread; --t) readers += grad.reads[t];
            for (int u = 0; u < thread; ++u) writers = fmaf(s.into_state[u], grad.writes[u], writers);
            const float dlog = grad.within[thread] + readers + writers;
            const float dinto_state = grad.into_state[thread] + grad.writes[thread];
            const i64 at = place.head_at(args, thread, head);
            const float delta = args.delta[at];
            da = delta * dlog;
            float ddelta = args.a[head] * dlog;
            if (args.into_state != nullptr) {
                store<T>(args.dinto_state, at, dinto_state);
                store<T>(args.dinto_output, at, grad.into_output[thread]);
            } else {
                ddelta += dinto_state + grad.into_output[thread];
            }
            // The slope of δ; none where a limit holds.
            const float raw = raw_step<T>(args, at, head), before = unlimited(args, raw);
            float slope = args.softplus ? sigmoid(raw) : 1.0f;
            if (args.limited && (before < float(args.lowest) || before > float(args.highest))) slope = 0.0f;
            dbias = ddelta * slope;
            store<T>(args.ddt, at, dbias);
        }
        da = sum_of_steps(da, partial);
        dbias = sum_of_steps(dbias, partial);
        if (thread == 0) {
            args.da_parts[place.chunk * args.h + head] = da;
            args.dbias_parts[place.chunk * args.h + head] = dbias;
        }
        __syncthreads();
    }
}

// This share's part of the gradients of B and C. Grid: chunks · tiles of N · G · shares.
template <typename T> __device__ inline void coefficients(const SsdArgs& args) {
    __shared__ ProductMemory memory;
    __shared__ Steps s;
    const i64 tiles_n = (args.n + SIDE - 1) / SIDE;
    const Share share(args, blockIdx.x);
    const i64 block = i64(blockIdx.x) / (args.g * args.shares);
    const i64 first_n = block % tiles_n * SIDE;
    const Place place(args, block / tiles_n);
    if (place.count == 0) return;
    const Elements<T> of{args, place};
    const float* dproducts =
        args.dproducts + ((place.chunk * args.g + share.group) * args.shares + share.share) * CHUNK * CHUNK;
    for (int which = 0; which < 2; ++which) {
        const bool is_b = which == 0;
        Product<T> sum(memory);
        if (args.dy != nullptr) {
            if (is_b) {
                sum.template add<Along::lines, Along::lines>(
                    place.count, [&](int u, int t) { return t < place.count ? dproducts[t * CHUNK + u] : 0.0f; },
                    [&](int n, int t) { return of.c(t, share.group, first_n + n); });
            } else {
                sum.template add<Along::terms, Along::lines>(
                    place.count, [&](int t, int u) { return u < place.count ? dproducts[t * CHUNK + u] : 0.0f; },
                    [&](int n, int u) { return of.b(u, share.group, first_n + n); });
            }
        }
        if (is_b ? place.has_grad(args) : place.has_state(args) && args.dy != nullptr) {
            const float* states = is_b ? args.grads : args.states;
            for (i64 head = share.first; head < share.end; ++head) {
                __syncthreads();
                s.fetch<T>(args, place, head);
                sum.template add<Along::terms, Along::lines>(
                    int(args.p),
                    [&](int step, int channel) {
                        return is_b ? of.x(step, head, channel) * s.written(place, step)
                                    : of.dy(step, head, channel) * s.read(place, step);
                    },
                    [&](int n, int channel) { return of.state(states, head, channel, first_n + n); });
            }
        }
        sum.store();
        float* to = (is_b ? args.db_parts : args.dc_parts) + share.share * args.tokens * args.g * args.n;
        for (int i = threadIdx.x; i < place.count * SIDE; i += THREADS) {
            const i64 n = first_n + i % SIDE;
            if (n < args.n) to[place.coefficient_at(args, i / SIDE, share.group, n)] = memory.row(i / SIDE)[i % SIDE];
        }
        __syncthreads();
    }
}

// One token of each segment: a warp for each channel, its lanes over the state. Grid: segments · H · P / WARPS.
template <typename T> __device__ inline void step(const SsdArgs& args) {
    const i64 row = i64(blockIdx.x) * WARPS + threadIdx.x / 32;
    if (row >= args.spans.segments * args.h * args.p) return;
    const i64 channel = row % args.p, head = row / args.p % args.h, segment = row / args.p / args.h;
    const i64 group = head / (args.h / args.g), token = args.spans.get(args.spans.first_of(segment)).token(0);
    const i64 at_head = token * args.h + head, at = at_head * args.p + channel;
    const float delta = limited(args, unlimited(args, raw_step<T>(args, at_head, head)));
    const float decay = exp2_approximate(float(log_decay(args, delta, head)));
    const float x = load<T>(args.x, at);
    const float written = x * (args.into_state != nullptr ? load<T>(args.into_state, at_head) : delta);
    const float own = x * (args.into_output != nullptr ? load<T>(args.into_output, at_head) : delta);
    float y = 0.0f;
    for (i64 n = threadIdx.x % 32; n < args.n; n += 32) {
        const float b = load<T>(args.b, (token * args.g + group) * args.n + n);
        const float c = load<T>(args.c, (token * args.g + group) * args.n + n);
        const float before = args.initial_state != nullptr ? args.initial_state[row * args.n + n] * decay : 0.0f;
        y = fmaf(c, fmaf(own, b, before), y);
        if (args.last_state != nullptr) args.last_state[row * args.n + n] = fmaf(written, b, before);
    }
    y = warp_sum(y);
    if (threadIdx.x % 32 > 0) return;
    if (args.skip != nullptr) y = fmaf(args.skip[args.skip_per_channel ? head * args.p + channel : head], x, y);
    if (args.z != nullptr) y *= silu(load<T>(args.z, at));
    store<T>(args.y, at, y);
}

// Adds the shares of a gradient of B or C.
struct SumSharesArgs {
    const float* parts;  // (shares, count)
    void* out;           // (count)
    i64 shares;
    i64 count;
};

// Grid: count / THREADS.
template <typename T> __device__ inline void sum_shares(const SumSharesArgs& args) {
    const i64 i = i64(blockIdx.x) * THREADS + threadIdx.x;
    if (i >= args.count) return;
    float sum = 0.0f;
#pragma unroll 4
    for (i64 share = 0; share < args.shares; ++share) sum += args.parts[share * args.count + i];
    store<T>(args.out, i, sum);
}

template <typename T> __device__ inline void chunk_states(const SsdArgs& args) { outer_products<T, false>(args); }
template <typename T> __device__ inline void readers(const SsdArgs& args) { outer_products<T, true>(args); }
template <typename T> __device__ inline void pass(const SsdArgs& args) { pass_states<false>(args); }
template <typename T> __device__ inline void pass_back(const SsdArgs& args) { pass_states<true>(args); }

ENTRIES(ssd_steps, SsdArgs, THREADS, 4, steps)
ENTRIES(ssd_chunk_states, SsdArgs, THREADS, 2, chunk_states)
ENTRIES(ssd_output, SsdArgs, THREADS, 2, output)
ENTRIES(ssd_readers, SsdArgs, THREADS, 2, readers)
ENTRIES(ssd_gradients, SsdArgs, THREADS, 2, gradients)
ENTRIES(ssd_coefficients, SsdArgs, THREADS, 2, coefficients)
ENTRIES(ssd_step, SsdArgs, THREADS, 4, step)
ENTRIES(ssd_sum_shares, SumSharesArgs, THREADS, 4, sum_shares)
ENTRY(ssd_pass, f32, SsdArgs, THREADS, 4, pass)
ENTRY(ssd_pass_back, f32, SsdArgs, THREADS, 4, pass_back)
ENTRY(ssd_sum_rows, f32, SumRowsArgs, SUM_ROWS_LANES * SUM_ROWS_SLICES, 2, sum_rows)
