// Second moments of the neurons' gradients, averaged, to the power -1/2: a thread block for each block of neurons.
#include <algorithm>

#include "launch.h"
#include "layer_table.h"
#include "newton_schulz.cuh"
#include "reduce.cuh"
#include "refresh.h"

namespace lnb::cuda {
namespace {

using OutputTable = LayerTable<OutputLayer, kOutputLayers>;

constexpr float kTiny = 1.1754944e-38f;
constexpr float kMost = 3.4028235e+38f;

struct Root {
    const OutputLayer& layer;
    int number;  // of the block of neurons, over all groups
    const Quintic& quintic;
    int steps;
    float* memory;
    double* scratch;  // [warps]

    template <int kTiles>
    __device__ __forceinline__ void run() const {
        constexpr int kFloats = lower_tiles(kTiles) * kTileThreads;
        const int side = layer.side, outputs = layer.rows / side, of_block = layer.parts;
        const int64_t first = static_cast<int64_t>(number) * of_block;
        const int64_t first_of_group = static_cast<int64_t>(number - number % outputs) * of_block;

        double trace[1] = {0};
        for (int i = threadIdx.x; i < outputs * of_block; i += kTileThreads) {
            trace[0] += read(layer.scales + 2 * (first_of_group + i));
        }
        block_sums(trace, scratch);
        const double average = trace[0] / layer.rows;

        Lower<kTiles> a;
        for_places<kTiles>([&](int tile, int, int) { a[tile] = 0; });
        for (int part = 0; average > 0 && part < of_block; ++part) {
            const auto scale = static_cast<float>(read(layer.scales + 2 * (first + part) + 1) / average);
            const float* partial = layer.partials + (first + part) * kFloats + threadIdx.x;
            for_places<kTiles>(
                [&](int tile, int, int) { a[tile] = fmaf(scale, read(partial + tile * kTileThreads), a[tile]); });
        }
        const int64_t at = static_cast<int64_t>(number) * side * side;
        if (layer.average != nullptr) {
            float* const kept = layer.average + at;
            const auto fresh = static_cast<float>(1 - layer.decay);
            Lower<kTiles> old;
            load_symmetric<kTiles>(old, side, [&](int row, int column) { return read(kept + row * side + column); });
            __syncthreads();  // all have read what is written now
            for_places<kTiles>([&](int tile, int, int) { a[tile] = old[tile] + fresh * (a[tile] - old[tile]); });
            for_lower<kTiles>(
                a, side, [&](int row, int column, float value) { write_mirrored(kept, side, row, column, value); });
        }

        float total[1] = {0};
        for_places<kTiles>([&](int tile, int row, int column) { total[0] += row == column ? a[tile] : 0; });
        __syncthreads();
        block_sums(total, reinterpret_cast<float*>(scratch));
        const float whole = total[0] > kTiny ? total[0] : 1;
        const float ridge = whole * layer.ridge / static_cast<float>(side);
        const float size = whole + whole * layer.ridge;
        for_places<kTiles>([&](int tile, int row, int column) {
            a[tile] = (a[tile] + (row == column && row < side ? ridge : 0)) / size;
        });
        newton_schulz_root<kTiles>(a, side, quintic, steps, memory);

        // Steps from a matrix with a clearly negative eigenvalue grow beyond all bounds.
        float beyond[1] = {0};
        for_places<kTiles>([&](int tile, int, int) { beyond[0] += fabsf(a[tile]) <= kMost ? 0 : 1; });
        block_sums(beyond, reinterpret_cast<float*>(scratch));
        const float scale = 1 / sqrtf(size);
        float* const root = layer.root + at;
        for_lower<kTiles>(a, side, [&](int row, int column, float value) {
            write_mirrored(root, side, row, column, scale * (beyond[0] == 0 ? value : row == column ? 1.0f : 0.0f));
        });
    }
};

__global__ void __launch_bounds__(kTileThreads, 1)
    output_roots_kernel(LNB_PARAMETER(OutputTable) table, const Quintic quintic, int steps, const float* facts) {
    const int index = table.find(blockIdx.x);
    const OutputLayer& layer = table.layer[index];
    facts += layer.layer * kFacts;
    if (read(facts) == 0) return;
    LNB_DYNAMIC_SHARED(float, shared);
    LNB_SHARED(double, scratch, kTileThreads / kWarp);
    const int number = static_cast<int>(blockIdx.x) - table.first_block[index];
    if (number == 0 && threadIdx.x == 0 && layer.input_size != nullptr) {
        write(layer.input_size, static_cast<double>(read(facts + 3)));
    }
    with_tiles(layer.side, Root{layer, number, quintic, steps, shared, scratch});
}

}  // namespace

void output_roots(const OutputLayer* layers, int64_t count, const Quintic& quintic, int steps, const float* facts,
                  void* stream) {
    for_each_layer_table<kOutputLayers>(
        layers, count,
        [](const OutputLayer& layer) { return static_cast<int64_t>(layer.groups) * (layer.rows / layer.side); },
        [&](const OutputTable& table, int64_t blocks, int64_t) {
            size_t floats = 0;
            for (int i = 0; i < table.count; ++i) {
                floats = std::max(floats, newton_schulz_floats(table.layer[i].side));
            }
            launch("output_roots", output_roots_kernel, {blocks, kTileThreads, floats * sizeof(float)}, stream, table,
                   quintic, steps, facts);
        });
}

}  // namespace lnb::cuda
