// The kernels that add up dot products. Two stages, without atomics: blocks write
// partial sums, and one more launch adds those of each tensor, layer or model in the order of their numbers.
#include "dispatch.h"
#include "launch.h"
#include "multi_tensor.h"
#include "reduce.cuh"
#include "sweep.cuh"
#include "table.h"

namespace lnb::cuda {
namespace {

// In double, in which no product of floats overflows or vanishes. Two operations per pair of entries keep pace with
// memory even on GPUs that are slow at double.
template <int N, typename X, typename Y>
__device__ __forceinline__ double pack_dot(const Pack<X, N>& xs, const Pack<Y, N>& ys) {
    double sum = 0;
    LNB_UNROLL
    for (int k = 0; k < N; ++k) {
        sum += static_cast<double>(widen(xs.value[k])) * static_cast<double>(widen(ys.value[k]));
    }
    return sum;
}

template <typename X, typename Y>
struct Dot {
    double sum;

    template <int N>
    __device__ __forceinline__ void operator()(int64_t, const Pack<X, N>& xs, const Pack<Y, N>& ys) {
        sum += pack_dot(xs, ys);
    }
};

__device__ __forceinline__ void write_block_sum(double sum, double* partial) {
    LNB_SHARED(double, scratch, kThreads / kWarp);
    double total[1] = {sum};
    block_sums(total, scratch);
    if (threadIdx.x == 0) write(partial, total[0]);
}

template <typename X, typename Y>
__global__ void __launch_bounds__(kThreads, kBlocks) dot_kernel(LNB_PARAMETER(Table) table, double* partials) {
    const Piece piece = table.piece(blockIdx.x);
    X* x = static_cast<X*>(table.x[piece.tensor]) + piece.begin;
    const Y* y = static_cast<const Y*>(table.y[piece.tensor]) + piece.begin;
    constexpr int N = kVector<X, Y>;
    Dot<X, Y> op{0.0};
    sweep(x, y, piece.size, aligned<N>(x) && aligned<N>(y), false, op);
    write_block_sum(op.sum, partials + table.slot[piece.tensor] + piece.number);
}

struct Segments {
    int64_t first[kTensors + 1];
};

__global__ void __launch_bounds__(kThreads, kBlocks)
    segment_sums_kernel(LNB_PARAMETER(Segments) segments, const double* partials, double* out) {
    const int64_t begin = segments.first[blockIdx.x], end = segments.first[blockIdx.x + 1];
    LNB_SHARED(double, scratch, kThreads / kWarp);
    double total[1] = {0.0};
    for (int64_t i = begin + threadIdx.x; i < end; i += kThreads) total[0] += read(partials + i);
    block_sums(total, scratch);
    if (threadIdx.x == 0) write(out + blockIdx.x, total[0]);
}

}  // namespace

void dot(const Pair* pairs, int64_t count, Type x, Type y, double* partials, void* stream) {
    require_kernel(with_types(x, y, [&](auto x_value, auto y_value) {
        const auto kernel = dot_kernel<decltype(x_value), decltype(y_value)>;
        for_each_table(pairs, count, [&](const Table& table, int64_t blocks) {
            launch("multi_tensor.dot", kernel, {blocks, kThreads}, stream, table, partials);
        });
    }));
}

void segment_sums(const int64_t* first, int64_t count, const double* partials, double* out, void* stream) {
    for (int64_t begin = 0; begin < count; begin += kTensors) {
        const int64_t blocks = std::min<int64_t>(kTensors, count - begin);
        Segments segments;
        std::copy_n(first + begin, blocks + 1, segments.first);
        launch("multi_tensor.segment_sums", segment_sums_kernel, {blocks, kThreads}, stream, segments, partials,
               out + begin);
    }
}

}  // namespace lnb::cuda
