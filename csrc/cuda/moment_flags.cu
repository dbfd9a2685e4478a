#include "launch.h"
#include "layer_table.h"
#include "moment_flags.h"

namespace lnb::cuda {
namespace {

constexpr int kFlagThreads = 128;

using MomentTable = LayerTable<Moments, kMoments>;

__device__ __forceinline__ bool is_finite(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return (bits & 0x7f800000u) != 0x7f800000u;
}

// One block per matrix.
__global__ void __launch_bounds__(kFlagThreads)
    moment_flags_kernel(LNB_PARAMETER(MomentTable) table, bool* sums, bool* squares) {
    const int i = table.find(blockIdx.x);
    const Moments& layer = table.layer[i];
    const int64_t side = layer.side;
    const float* matrix = layer.values + (static_cast<int64_t>(blockIdx.x) - table.first_block[i]) * side * side;
    bool sums_finite = true, squares_finite = true;
    for (int64_t k = threadIdx.x; k < side; k += kFlagThreads) {
        sums_finite = sums_finite && is_finite(read(matrix + (side - 1) * side + k));
        squares_finite = squares_finite && is_finite(read(matrix + k * side + k));
    }
    if (!sums_finite) write(sums + i, false);  // by any number of threads: all write the same
    if (!squares_finite) write(squares + i, false);
}

}  // namespace

void moment_flags(const Moments* layers, int64_t count, bool* sums, bool* squares, void* stream) {
    const auto matrices = [](const Moments& layer) { return layer.count; };
    for_each_layer_table<kMoments>(layers, count, matrices,
                                   [=](const MomentTable& table, int64_t blocks, int64_t first) {
                                       launch("moment_flags", moment_flags_kernel, {blocks, kFlagThreads}, stream,
                                              table, sums + first, squares + first);
                                   });
}

}  // namespace lnb::cuda
