#include "launch.h"
#include "spd_inverse.h"
#include "sweep_inverse.cuh"

namespace lnb::cuda {
namespace {

struct Inversion {
    const float* matrix;
    float* inverse;
    bool* failed;
    int side;
    float* columns;

    template <int kTiles>
    __device__ __forceinline__ void run() const {
        Lower<kTiles> a;
        load_symmetric<kTiles>(a, side, [&](int row, int column) { return read(matrix + row * side + column); });
        const bool done = sweep_inverse<kTiles>(a, side, columns);
        if (done) {
            for_lower<kTiles>(
                a, side, [&](int row, int column, float value) { write_mirrored(inverse, side, row, column, -value); });
        }
        if (threadIdx.x == 0) write(failed, !done);
    }
};

__global__ void __launch_bounds__(kTileThreads, 2)
    spd_inverses_kernel(const float* matrices, float* inverses, bool* failed, int side) {
    LNB_SHARED(float, columns, 2 * kLargestSide);
    const int64_t first = static_cast<int64_t>(blockIdx.x) * side * side;
    with_tiles(side, Inversion{matrices + first, inverses + first, failed + blockIdx.x, side, columns});
}

}  // namespace

void spd_inverses(const float* matrices, float* inverses, bool* failed, int64_t count, int side, void* stream) {
    launch("spd_inverse", spd_inverses_kernel, {count, kTileThreads}, stream, matrices, inverses, failed, side);
}

}  // namespace lnb::cuda
