// C^-1 of every diagonal block of every layer, a thread block each, in registers.
#include <algorithm>

#include "launch.h"
#include "layer_table.h"
#include "reduce.cuh"
#include "refresh.h"
#include "sweep_inverse.cuh"

namespace lnb::cuda {
namespace {

using InputTable = LayerTable<InputLayer, kInputLayers>;

constexpr float kEpsilon = 1.1920929e-07f;  // of float32
constexpr float kTiny = 1.1754944e-38f;
constexpr float kLeastRidge = 3.5694694e-29f;  // kTiny^0.75: the inverse of what is smaller is no number

// What the threads of a block share.
struct Shared {
    float* columns;   // [2 * kLargestSide]
    float* mean;      // [kLargestSide], zeros without a bias
    float* diagonal;  // [kLargestSide], of the covariance
    double* scratch;
    float* kept;  // [lower_tiles * kTileThreads], the covariance
};

// The mean diagonal of a metric, from the sums over all its blocks.
__device__ __forceinline__ double mean_diagonal(const InputLayer& layer, double diagonal, double squared_mean,
                                                double correction, double noise) {
    const double inputs = static_cast<double>(layer.side) * layer.blocks;
    const double square = diagonal / inputs * correction;
    const double variance = square - squared_mean / inputs * correction * correction;
    // An offset of the inputs does not count, unless they are nothing but offset.
    const double size = layer.mean != nullptr && variance > noise * square ? variance : square;
    return size > 0 ? size : 1;
}

// That of one group, whose sums these are: what its ridge is relative to.
__device__ __forceinline__ double of_group(const InputLayer& layer, const double* sums, double correction, double noise,
                                           double* scratch) {
    double total[2] = {0, 0};
    for (int i = threadIdx.x; i < layer.blocks; i += kTileThreads) {
        total[0] += read(sums + 2 * i);
        total[1] += read(sums + 2 * i + 1);
    }
    block_sums(total, scratch);
    return mean_diagonal(layer, total[0], total[1], correction, noise);
}

// The mean over all groups, each by a thread.
__device__ __forceinline__ double of_all_groups(const InputLayer& layer, const double* sums, double correction,
                                                double noise, double* scratch) {
    double total[1] = {0};
    for (int group = threadIdx.x; group < layer.groups; group += kTileThreads) {
        double diagonal = 0, squared_mean = 0;
        for (int i = 0; i < layer.blocks; ++i) {
            const double* of_block = sums + 2 * (static_cast<int64_t>(group) * layer.blocks + i);
            diagonal += read(of_block);
            squared_mean += read(of_block + 1);
        }
        total[0] += mean_diagonal(layer, diagonal, squared_mean, correction, noise);
    }
    __syncthreads();  // scratch may still be read
    block_sums(total, scratch);
    return total[0] / layer.groups;
}

struct Metric {
    const float* average;
    float* inverse;
    int side;
    float correction;
    double ridge;
    const Shared& shared;

    // An entry of the covariance, without a ridge.
    __device__ __forceinline__ float covariance(int row, int column) const {
        const float product = read(average + row * (side + 1) + column) * correction;
        return product - shared.mean[row] * shared.mean[column];
    }

    template <int kTiles>
    __device__ __forceinline__ void run() const {
        float total[1] = {0};
        for (int i = threadIdx.x; i < side; i += kTileThreads) {
            const float entry = covariance(i, i);
            shared.diagonal[i] = entry < 0 ? 0 : entry;
            total[0] += shared.diagonal[i];
        }
        block_sums(total, reinterpret_cast<float*>(shared.scratch));
        const float added = ridge > kLeastRidge ? static_cast<float>(ridge) : kLeastRidge;
        Lower<kTiles> a;
        load_symmetric<kTiles>(a, side, [&](int row, int column) { return covariance(row, column); });
        // For the second attempt. Every thread reads what it wrote.
        for_places<kTiles>([&](int tile, int, int) { shared.kept[tile * kTileThreads + threadIdx.x] = a[tile]; });
        for (float more = 0;;) {
            for_places<kTiles>([&](int tile, int, int) { a[tile] = shared.kept[tile * kTileThreads + threadIdx.x]; });
            LNB_UNROLL
            for (int i = 0; i < kTiles; ++i) {
                if (threadIdx.x / kTile == threadIdx.x % kTile) a[tile_number(i, i)] += added + more;
            }
            if (sweep_inverse<kTiles>(a, side, shared.columns)) {
                for_lower<kTiles>(a, side, [&](int row, int column, float value) {
                    write_mirrored(inverse, side, row, column, -value);
                });
                return;
            }
            if (more != 0) break;
            __syncthreads();
            more = total[0] / static_cast<float>(side) + kEpsilon;
        }
        for (int i = threadIdx.x; i < side * side; i += kTileThreads) {
            const int row = i / side;
            const float size = shared.diagonal[row] + added;
            write(inverse + i, row == i % side ? 1 / (size < kTiny ? kTiny : size) : 0);
        }
    }
};

__global__ void __launch_bounds__(kTileThreads, 2)
    input_metrics_kernel(LNB_PARAMETER(InputTable) table, double noise, const double* sums, float* facts) {
    const int index = table.find(blockIdx.x);
    const InputLayer& layer = table.layer[index];
    facts += index * kFacts;
    if (read(facts) == 0) return;
    const int entry = static_cast<int>(blockIdx.x) - table.first_block[index];
    const int side = layer.side;
    const float correction = read(facts + 1);

    LNB_DYNAMIC_SHARED(float, kept);
    LNB_SHARED(float, columns, 2 * kLargestSide);
    LNB_SHARED(float, mean, kLargestSide);
    LNB_SHARED(float, diagonal, kLargestSide);
    LNB_SHARED(double, scratch, 2 * (kTileThreads / kWarp));
    const float* average = layer.average + static_cast<int64_t>(entry) * (side + 1) * (side + 1);
    for (int i = threadIdx.x; i < side; i += kTileThreads) {
        mean[i] = layer.mean == nullptr ? 0 : read(average + side * (side + 1) + i) * correction;
        if (layer.mean != nullptr) write(layer.mean + static_cast<int64_t>(entry) * side + i, mean[i]);
    }
    double ridge = read(facts + 2);
    sums += 2 * (static_cast<int64_t>(blockIdx.x) - entry % layer.blocks);
    double size = 1;
    if (layer.relative != 0 || entry == 0) size = of_group(layer, sums, correction, noise, scratch);
    if (layer.relative != 0) ridge *= size;
    if (entry == 0) {
        if (layer.groups > 1) size = of_all_groups(layer, sums, correction, noise, scratch);
        if (threadIdx.x == 0) write(facts + 3, static_cast<float>(sqrt(size)));
    }
    __syncthreads();
    const Shared shared{columns, mean, diagonal, scratch, kept};
    float* inverse = layer.inverse + static_cast<int64_t>(entry) * side * side;
    with_tiles(side, Metric{average, inverse, side, correction, ridge, shared});
}

}  // namespace

void input_metrics(const InputLayer* layers, int64_t count, double noise, const double* sums, float* facts,
                   void* stream) {
    for_each_layer_table<kInputLayers>(
        layers, count, [](const InputLayer& layer) { return static_cast<int64_t>(layer.groups) * layer.blocks; },
        [&](const InputTable& table, int64_t blocks, int64_t first) {
            size_t floats = 0;
            for (int i = 0; i < table.count; ++i) {
                const int tiles = lower_tiles(compiled_tiles(table.layer[i].side));
                floats = std::max(floats, static_cast<size_t>(tiles) * kTileThreads);
            }
            launch("input_metrics", input_metrics_kernel, {blocks, kTileThreads, floats * sizeof(float)}, stream, table,
                   noise, sums, facts + first * kFacts);
            sums += 2 * blocks;
        });
}

}  // namespace lnb::cuda
