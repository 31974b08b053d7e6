// RMS and layer normalisation (src/norm): a block for each row and group of channels, which reads its row again instead
// of keeping it (it lies in the first-level cache), so that groups of any size fit. Gradients of weight and bias are
// summed column by column in a second kernel, over slices of rows, from each row's statistics.
//
// Forward and backward: grid rows × groups, block 32 ..= MOST_THREADS, a power of two. Shared: 256 bytes.
// Columns: grid (columns / COLUMNS, slices), block COLUMNS.
#include "common.cuh"

constexpr int MOST_THREADS = 512;
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

// What is normalised: the sum, gated if the gate comes first.
template <typename T> __device__ inline float value_at(const NormArgs& args, i64 at) {
    float v = sum_at<T>(args, at);
    if (args.z != nullptr && !args.norm_before_gate) v *= silu(load<T>(args.z, at));
    return v;
}

// Mean (0 for RMS) and 1/scale of the group that starts at `first`.
template <typename T> __device__ inline void statistics_of(const NormArgs& args, i64 first, float& mean, float& inverse) {
    mean = 0.0f;
    if (args.layer) {
        float sum = 0.0f;
        for (i64 i = threadIdx.x; i < args.group; i += blockDim.x) sum += value_at<T>(args, first + i);
        mean = block_sum(sum) / float(args.group);
    }
    float square = 0.0f;
    for (i64 i = threadIdx.x; i < args.group; i += blockDim.x) {
        const float v = value_at<T>(args, first + i) - mean;
        square = fmaf(v, v, square);
    }
    inverse = 1.0f / sqrtf(block_sum(square) / float(args.group) + float(args.eps));
}

template <typename T> __device__ inline void forward(const NormArgs& args) {
    const i64 first = i64(blockIdx.x) * args.group, first_column = first % args.d;
    float mean, inverse;
    statistics_of<T>(args, first, mean, inverse);
    for (i64 i = threadIdx.x; i < args.group; i += blockDim.x) {
        const i64 at = first + i, column = first_column + i;
        if (args.sum != nullptr) store<T>(args.sum, at, sum_at<T>(args, at));
        float y = (value_at<T>(args, at) - mean) * inverse * args.weight[column];
        if (args.bias != nullptr) y += args.bias[column];
        if (args.z != nullptr && args.norm_before_gate) y *= silu(load<T>(args.z, at));
        store<T>(args.y, at, y);
    }
}

// The gradient of n · weight + bias.
template <typename T> __device__ inline float scaled_gradient(const NormArgs& args, i64 at) {
    if (args.dy == nullptr) return 0.0f;
    float g = load<T>(args.dy, at);
    if (args.z != nullptr && args.norm_before_gate) g *= silu(load<T>(args.z, at));
    return g;
}

// dv = (dn - mean(dn) - n · mean(dn · n)) / scale; RMS has no mean(dn).
template <typename T> __device__ inline void backward(const NormArgs& args) {
    const i64 first = i64(blockIdx.x) * args.group, first_column = first % args.d;
    float mean, inverse;
    statistics_of<T>(args, first, mean, inverse);
    if (threadIdx.x == 0) {
        args.statistics[2 * i64(blockIdx.x)] = mean;
        args.statistics[2 * i64(blockIdx.x) + 1] = inverse;
    }
    float along = 0.0f, level = 0.0f;
    for (i64 i = threadIdx.x; i < args.group; i += blockDim.x) {
        const i64 at = first + i;
        const float dn = scaled_gradient<T>(args, at) * args.weight[first_column + i];
        along = fmaf(dn, (value_at<T>(args, at) - mean) * inverse, along);
        level += dn;
    }
    along = block_sum(along) / float(args.group);
    level = args.layer ? block_sum(level) / float(args.group) : 0.0f;
    for (i64 i = threadIdx.x; i < args.group; i += blockDim.x) {
        const i64 at = first + i, column = first_column + i;
        const float n = (value_at<T>(args, at) - mean) * inverse;
        const float dn = scaled_gradient<T>(args, at) * args.weight[column];
        float dv = (dn - level - n * along) * inverse;
        if (args.z != nullptr) {
            const float z = load<T>(args.z, at);
            float dz;
            if (args.norm_before_gate) {
                const float y = n * args.weight[column] + (args.bias != nullptr ? args.bias[column] : 0.0f);
                dz = (args.dy != nullptr ? load<T>(args.dy, at) : 0.0f) * y * silu_slope(z);
            } else {
                dz = dv * sum_at<T>(args, at) * silu_slope(z);
                dv *= silu(z);
            }
            store<T>(args.dz, at, dz);
        }
        if (args.dsum != nullptr) dv += load<T>(args.dsum, at);
        store<T>(args.dx, at, dv);
    }
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
        const float g = scaled_gradient<T>(args, at);
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
