#include "launch.h"
#include "moment_flags.h"

namespace lnb::cuda {
namespace {

constexpr int kFlagThreads = 128;

struct MomentTable {
    const float* values[kMoments];
    int32_t side[kMoments];
    int32_t first_block[kMoments + 1];
    int32_t count;
};
static_assert(sizeof(MomentTable) <= 32764, "CUDA's limit for kernel parameters");

__device__ __forceinline__ bool is_finite(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return (bits & 0x7f800000u) != 0x7f800000u;
}

// One block per matrix.
__global__ void __launch_bounds__(kFlagThreads)
    moment_flags_kernel(LNB_PARAMETER(MomentTable) table, bool* sums, bool* squares) {
    int low = 0, high = table.count;
    while (high - low > 1) {
        const int middle = (low + high) / 2;
        if (static_cast<unsigned>(table.first_block[middle]) <= blockIdx.x) {
            low = middle;
        } else {
            high = middle;
        }
    }
    const int64_t side = table.side[low];
    const float* matrix = table.values[low] + (static_cast<int64_t>(blockIdx.x) - table.first_block[low]) * side * side;
    bool sums_finite = true, squares_finite = true;
    for (int64_t i = threadIdx.x; i < side; i += kFlagThreads) {
        sums_finite = sums_finite && is_finite(read(matrix + (side - 1) * side + i));
        squares_finite = squares_finite && is_finite(read(matrix + i * side + i));
    }
    if (!sums_finite) write(sums + low, false);  // by any number of threads: all write the same
    if (!squares_finite) write(squares + low, false);
}

}  // namespace

void moment_flags(const Moments* layers, int64_t count, bool* sums, bool* squares, void* stream) {
    MomentTable table;
    for (int64_t begin = 0; begin < count;) {
        int64_t blocks = 0;
        table.count = 0;
        const int64_t first = begin;
        while (begin < count && table.count < kMoments && blocks + layers[begin].count <= INT32_MAX) {
            const Moments& layer = layers[begin++];
            table.values[table.count] = layer.values;
            table.side[table.count] = static_cast<int32_t>(layer.side);
            table.first_block[table.count++] = static_cast<int32_t>(blocks);
            blocks += layer.count;
            table.first_block[table.count] = static_cast<int32_t>(blocks);
        }
        launch("moment_flags", moment_flags_kernel, {blocks, kFlagThreads}, stream, table, sums + first,
               squares + first);
    }
}

}  // namespace lnb::cuda
