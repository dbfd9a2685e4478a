// The pass between directions and moved weights, for all layers in one launch: a block of threads for each layer adds
// up the sums of its rows, finds their scales and its bias's direction, and at last how far the layer goes.
#include <algorithm>

#include "averaging.cuh"
#include "fused_step.h"
#include "launch.h"
#include "pack.cuh"
#include "reduce.cuh"
#include "scalar.cuh"

namespace lnb::cuda {
namespace {

constexpr int kFinishThreads = 512;

struct FinishTable {
    FinishLayer layer[kFinishLayers];
};
static_assert(sizeof(FinishTable) + sizeof(FinishNumbers) + sizeof(FinishSettings) <= 32764,
              "CUDA's limit for kernel parameters");

// The sums of a row over the blocks of columns, in their order.
struct RowSums {
    double value[kSums];

    __device__ __forceinline__ RowSums(const double* partials, int64_t row, int64_t rows, int column_blocks) : value{} {
        for (int64_t block = 0; block < column_blocks; ++block) {
            const double* of_block = partials + (block * rows + row) * kSums;
            LNB_UNROLL
            for (int k = 0; k < kSums; k += 2) {
                const Pack<double, 2> two = unpack(read_words<2>(of_block + k));
                value[k] += two.value[0];
                value[k + 1] += two.value[1];
            }
        }
    }
};

template <typename G>
__global__ void __launch_bounds__(kFinishThreads, 1)
    finish_kernel(LNB_PARAMETER(FinishTable) table, const FinishNumbers numbers, const FinishSettings settings) {
    if (numbers.ok != nullptr && !read(numbers.ok)) return;
    const FinishLayer& layer = table.layer[blockIdx.x];
    const int64_t slot = layer.slot;
    const bool biased = layer.bias_gradient != nullptr;
    const double t = most(1.0, read(numbers.steps + layer.step));
    const double correction = 1 - pow(settings.b_rows, t);
    const Averaging averaging(settings.momentum.decay, settings.momentum.take());
    const float share = biased ? static_cast<float>(read(numbers.bias_shares + slot)) : 0;
    const double input_size = read(numbers.input_size + slot), counted = bias_weight(input_size);
    const double* const partials = numbers.partials + layer.first_entry;

    double total[5] = {};  // <h, g~>, |h|^2, |h|^2 before agreement, |g~|^2, |g|^2
    for (int64_t row = threadIdx.x; row < layer.rows; row += kFinishThreads) {
        const RowSums sums(partials, row, layer.rows, layer.column_blocks);
        const int64_t place = layer.first_row + row;
        double product = sums.value[0], average_square = sums.value[4], square = sums.value[5];
        double mixed = 0, bias = 0;
        if (biased) {
            const G entry = read(static_cast<const G*>(layer.bias_gradient) + row);
            const float average = averaging.average(read(layer.bias_momentum + row), entry);
            write(layer.bias_momentum + row, average);
            bias = averaging.ahead(average, entry, share);
            mixed = read(numbers.mixed_biases + place);
            product += mixed * mixed;
            average_square += counted * bias * bias;
            square += counted * static_cast<double>(widen(entry)) * static_cast<double>(widen(entry));
        }
        const double kept = averaged_square(read(numbers.row_square + place), square, settings.b_rows);
        write(numbers.row_square + place, kept);
        const double free = inverse_norm(product);
        const double mean_square = judged_square(kept / correction, square);
        const double scale = free * agreement(average_square, mean_square);
        write(numbers.row_scales + place, static_cast<float>(scale));
        total[0] += scale * sums.value[3];
        if (biased) {
            const double of_bias = (mixed - sums.value[2]) * scale;
            write(layer.bias_direction + row, static_cast<float>(of_bias));
            total[0] += of_bias * bias;
        }
        total[1] += scale * scale * sums.value[1];
        total[2] += free * free * sums.value[1];
        total[3] += average_square;
        total[4] += least(square, kMostSquare);
    }
    LNB_SHARED(double, scratch, 5 * kFinishThreads / kWarp);
    block_sums(total, scratch);
    if (threadIdx.x != 0) return;
    double independent = read(numbers.independent + slot), growth = read(numbers.growth + slot),
           radius = read(numbers.radius + slot), coherence = read(numbers.coherence + slot);
    const double expected = expect_independent(independent, total[4], t, settings.momentum);
    const LayerSums sums{total[0], total[1], total[2], total[3]};
    const double rate = load(layer.rate), measured = numbers.norms == nullptr ? -1 : read(numbers.norms + slot);
    double norm = read(numbers.weight_norm + slot);
    const RadiusRule& rule = settings.radius;
    const double shorter =
        measured >= 0 ? take_back(measured, sums, t, rate, rule, norm, growth, radius, coherence) : 1;
    const double scale = bounded_scale(sums, expected, t, norm, layer.usual_norm, input_size, rate, settings.change,
                                       settings.largest, rule, growth, radius, coherence);
    if (measured >= 0) write(numbers.weight_norm + slot, norm);
    write(numbers.shorter + slot, shorter);
    write(numbers.independent + slot, independent);
    write(numbers.growth + slot, growth);
    write(numbers.radius + slot, radius);
    write(numbers.coherence + slot, coherence);
    write(numbers.scales + slot, scale);
    write(numbers.products + slot, total[0]);
    LNB_UNROLL
    for (int k = 0; k < 4; ++k) write(numbers.sums + 4 * slot + k, total[k]);
}

template <typename G>
void start(const FinishLayer* layers, int64_t count, const FinishNumbers& numbers, const FinishSettings& settings,
           void* stream) {
    for (int64_t begin = 0; begin < count; begin += kFinishLayers) {
        const int64_t blocks = std::min<int64_t>(kFinishLayers, count - begin);
        FinishTable table;
        std::copy_n(layers + begin, blocks, table.layer);
        launch("fused_step.finish", finish_kernel<G>, {blocks, kFinishThreads}, stream, table, numbers, settings);
    }
}

}  // namespace

void finish_layers(const FinishLayer* layers, int64_t count, Type gradient, const FinishNumbers& numbers,
                   const FinishSettings& settings, void* stream) {
    switch (gradient) {
        case Type::kFloat32:
            return start<float>(layers, count, numbers, settings, stream);
        case Type::kBFloat16:
            return start<BFloat16>(layers, count, numbers, settings, stream);
        case Type::kFloat16:
            return start<Half>(layers, count, numbers, settings, stream);
        default:
            throw std::invalid_argument("no kernel for gradients of this dtype");
    }
}

}  // namespace lnb::cuda
