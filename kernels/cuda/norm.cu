// RMS and layer normalisation (src/norm): a block for each row and group of channels. A thread keeps up to ITEMS elements of
// its row in registers, all of which it asks for before it waits for one; of longer groups it reads the rest again. Gradients
// of weight and bias are summed column by column in a second kernel, over slices of rows, from each row's statistics.
//
// Forward and backward: grid rows × groups, block 32 ..= MOST_THREADS, a power of two. Shared: 256 bytes.
// Columns: grid (columns / COLUMNS, slices), block COLUMNS.
#include "common.cuh"

constexpr int MOST_THREADS = 512;
constexpr int ITEMS = 8;  // elements of a thread that are kept
constexpr int COLUMNS = 128;

struct NormArgs {
    const void* x;         // (rows, D)
    const float* weight;   // (D)
    const float* bias;     // (D), or null
    const void* residual;  // (rows, D), or null
    const void* z;         // (rows, D), or null
    void* y;               // (rows, D)
    void* sum;             // (rows, D): x + residual, or null
    const void* dy;        // (rows, D), or null
    const void* dsum;      // (rows, D), or null
    void* dx;              // (rows, D)
    void* dz;              // (rows, D), or null
    float* statistics;     // (rows · groups, 2): mean and 1/scale
    float* dweight;        // (slices, 2, D): of weight and of bias
    i64 rows;
    i64 d;
    i64 group;
    i64 layer;
    i64 norm_before_gate;
    i64 slice_rows;
    double eps;
};

// Σ over the block, the same bits in every thread.
__device__ inline float block_sum(float x) {
    __shared__ float partial[MOST_THREADS / 32];
    x = warp_sum(x);
    if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = x;
    __syncthreads();
    float sum = 0.0f;
    for (unsigned i = 0; i < blockDim.x / 32; ++i) sum += partial[i];
    __syncthreads();
    return sum;
}

template <typename T> __device__ inline float sum_at(const NormArgs& args, i64 at) {
    float s = load<T>(args.x, at);
    if (args.residual != nullptr) s += load<T>(args.residual, at);
    return s;
}

__device__ inline float gated(const NormArgs& args, float s, float z) {
    return args.z != nullptr && !args.norm_before_gate ? s * silu(z) : s;
}

// What is normalised: the sum, gated if the gate comes first.
template <typename T> __device__ inline float value_at(const NormArgs& args, i64 at) {
    return gated(args, sum_at<T>(args, at), args.z != nullptr ? load<T>(args.z, at) : 0.0f);
}

// The gradient of n · weight + bias.
__device__ inline float scaled_gradient(const NormArgs& args, float dy, float z) {
    return args.z != nullptr && args.norm_before_gate ? dy * silu(z) : dy;
}

// A thread's elements of one row and group: sums, gates and gradients. Numbers below ITEMS are kept, others are read.
template <typename T, bool GRADIENT> struct Row {
    const NormArgs& args;
    const i64 first;         // element of (rows, D)
    const i64 first_column;  // of D
    float sums[ITEMS], gates[ITEMS], gradients[GRADIENT ? ITEMS : 1];

    __device__ Row(const NormArgs& args, i64 first) : args(args), first(first), first_column(first % args.d) {
        fetch(args.x, sums);
        if (args.residual != nullptr) {
            float terms[ITEMS];
            fetch(args.residual, terms);
#pragma unroll
            for (int j = 0; j < ITEMS; ++j) sums[j] += terms[j];
        }
        if (args.z != nullptr) fetch(args.z, gates);
        if (GRADIENT && args.dy != nullptr) fetch(args.dy, gradients);
    }

    // This thread's elements of a (rows, D) array, those beyond the group excepted. Nothing is between the loads.
    template <int N> __device__ void fetch(const void* data, float (&values)[N]) const {
#pragma unroll
        for (int j = 0; j < N; ++j) {
            const i64 i = i64(threadIdx.x) + i64(j) * blockDim.x;
            values[j] = i < args.group ? load<T>(data, first + i) : 0.0f;
        }
    }

    // Calls `f(j, i)` for each of this thread's channels `i` of the group, the j-th of which is kept.
    template <typename F> __device__ void each(F f) const {
#pragma unroll
        for (int j = 0; j < ITEMS; ++j) {
            const i64 i = i64(threadIdx.x) + i64(j) * blockDim.x;
            if (i < args.group) f(j, i);
        }
        for (i64 i = i64(threadIdx.x) + i64(ITEMS) * blockDim.x; i < args.group; i += blockDim.x) f(ITEMS, i);
    }

    __device__ float sum(int j, i64 i) const { return j < ITEMS ? sums[j] : sum_at<T>(args, first + i); }
    __device__ float gate(int j, i64 i) const {
        if (args.z == nullptr) return 0.0f;
        return j < ITEMS ? gates[j] : load<T>(args.z, first + i);
    }
    __device__ float value(int j, i64 i) const { return gated(args, sum(j, i), gate(j, i)); }
    __device__ float dy(int j, i64 i) const {
        if (args.dy == nullptr) return 0.0f;
        return GRADIENT && j < ITEMS ? gradients[j] : load<T>(args.dy, first + i);
    }
    // The gradient of the normalised value.
    __device__ float dn(int j, i64 i) const {
        return scaled_gradient(args, dy(j, i), gate(j, i)) * load<f32>(args.weight, first_column + i);
    }

    // Mean (0 for RMS) and 1/scale of the group.
    __device__ void statistics(float& mean, float& inverse) const {
        mean = 0.0f;
        if (args.layer) {
            float total = 0.0f;
            each([&](int j, i64 i) { total += value(j, i); });
            mean = block_sum(total) / float(args.group);
        }
        float square = 0.0f;
        each([&](int j, i64 i) {
            const float v = value(j, i) - mean;
            square = fmaf(v, v, square);
        });
        inverse = 1.0f / sqrtf(block_sum(square) / float(args.group) + float(args.eps));
    }
};

template <typename T> __device__ inline void forward(const NormArgs& args) {
    const Row<T, false> row(args, i64(blockIdx.x) * args.group);
    float mean, inverse;
    row.statistics(mean, inverse);
    row.each([&](int j, i64 i) {
        const i64 at = row.first + i, column = row.first_column + i;
        if (args.sum != nullptr) store<T>(args.sum, at, row.sum(j, i));
        float y = (row.value(j, i) - mean) * inverse * load<f32>(args.weight, column);
        if (args.bias != nullptr) y += load<f32>(args.bias, column);
        if (args.z != nullptr && args.norm_before_gate) y *= silu(row.gate(j, i));
        store<T>(args.y, at, y);
    });
}

// dv = (dn - mean(dn) - n · mean(dn · n)) / scale; RMS has no mean(dn).
template <typename T> __device__ inline void backward(const NormArgs& args) {
    const Row<T, true> row(args, i64(blockIdx.x) * args.group);
    float mean, inverse;
    row.statistics(mean, inverse);
    if (threadIdx.x == 0) {
        args.statistics[2 * i64(blockIdx.x)] = mean;
        args.statistics[2 * i64(blockIdx.x) + 1] = inverse;
    }
    float along = 0.0f, level = 0.0f;
    row.each([&](int j, i64 i) {
        const float dn = row.dn(j, i);
        along = fmaf(dn, (row.value(j, i) - mean) * inverse, along);
        level += dn;
    });
    along = block_sum(along) / float(args.group);
    level = args.layer ? block_sum(level) / float(args.group) : 0.0f;
    row.each([&](int j, i64 i) {
        const i64 at = row.first + i, column = row.first_column + i;
        const float n = (row.value(j, i) - mean) * inverse;
        float dv = (row.dn(j, i) - level - n * along) * inverse;
        if (args.z != nullptr) {
            const float z = row.gate(j, i);
            float dz;
            if (args.norm_before_gate) {
                const float bias = args.bias != nullptr ? load<f32>(args.bias, column) : 0.0f;
                dz = row.dy(j, i) * (n * load<f32>(args.weight, column) + bias) * silu_slope(z);
            } else {
                dz = dv * row.sum(j, i) * silu_slope(z);
                dv *= silu(z);
            }
            store<T>(args.dz, at, dz);
        }
        if (args.dsum != nullptr) dv += load<T>(args.dsum, at);
        store<T>(args.dx, at, dv);
    });
}

template <typename T> __device__ inline void columns(const NormArgs& args) {
    const i64 column = i64(blockIdx.x) * COLUMNS + threadIdx.x;
    if (column >= args.d) return;
    const i64 groups = args.d / args.group;
    const i64 end = min((i64(blockIdx.y) + 1) * args.slice_rows, args.rows);
    float dweight = 0.0f, dbias = 0.0f;
#pragma unroll 4
    for (i64 row = i64(blockIdx.y) * args.slice_rows; row < end; ++row) {
        const i64 at = row * args.d + column;
        const float* s = args.statistics + 2 * (row * groups + column / args.group);
        const float dy = args.dy != nullptr ? load<T>(args.dy, at) : 0.0f;
        const float g = scaled_gradient(args, dy, args.z != nullptr ? load<T>(args.z, at) : 0.0f);
        dweight = fmaf(g, (value_at<T>(args, at) - s[0]) * s[1], dweight);
        dbias += g;
    }
    args.dweight[2 * i64(blockIdx.y) * args.d + column] = dweight;
    args.dweight[(2 * i64(blockIdx.y) + 1) * args.d + column] = dbias;
}

ENTRIES(norm_forward, NormArgs, MOST_THREADS, 2, forward)
ENTRIES(norm_backward, NormArgs, MOST_THREADS, 2, backward)
ENTRIES(norm_columns, NormArgs, COLUMNS, 8, columns)
ENTRY(norm_sum_rows, f32, SumRowsArgs, SUM_ROWS_LANES * SUM_ROWS_SLICES, 2, sum_rows)
