#include "launch.h"
#include "newton_schulz.cuh"

namespace lnb::cuda {
namespace {

struct Root {
    const float* power;
    float* root;
    int side;
    const Quintic& quintic;
    int steps;
    float* memory;

    template <int kTiles>
    __device__ __forceinline__ void run() const {
        Lower<kTiles> a;
        load_symmetric<kTiles>(a, side, [&](int row, int column) { return read(power + row * side + column); });
        newton_schulz_root<kTiles>(a, side, quintic, steps, memory);
        for_lower<kTiles>(a, side,
                          [&](int row, int column, float value) { write_mirrored(root, side, row, column, value); });
    }
};

__global__ void __launch_bounds__(kTileThreads, 1)
    newton_schulz_roots_kernel(const float* powers, float* roots, int side, const Quintic quintic, int steps) {
    LNB_DYNAMIC_SHARED(float, shared);
    const int64_t first = static_cast<int64_t>(blockIdx.x) * side * side;
    with_tiles(side, Root{powers + first, roots + first, side, quintic, steps, shared});
}

}  // namespace

void newton_schulz_roots(const float* powers, float* roots, int64_t count, int side, const Quintic& quintic, int steps,
                         void* stream) {
    launch("newton_schulz_root", newton_schulz_roots_kernel,
           {count, kTileThreads, newton_schulz_floats(side) * sizeof(float)}, stream, powers, roots, side, quintic,
           steps);
}

}  // namespace lnb::cuda
