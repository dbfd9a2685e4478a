#include "two_sided.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "../step_rules.h"
#include "isa.h"
#include "parallel.h"
#include "products_isa.h"
#include "workspace.h"

namespace lnb {
namespace {

constexpr int64_t kRowsAtOnce = 64;  // of H: whole tiles, enough of them to use what is in the first cache again

// One block of outputs of one matrix.
struct Part {
    const TwoSidedLayer* layer;
    int64_t matrix, block;

    double work() const {
        return static_cast<double>(layer->output_block * layer->inputs * (layer->input_block + layer->output_block));
    }
};

std::vector<Part> parts_of(const TwoSidedLayer* layers, int64_t count) {
    std::vector<Part> parts;
    for (const TwoSidedLayer* layer = layers; layer != layers + count; ++layer) {
        for (int64_t matrix = 0; matrix < layer->matrices; ++matrix) {
            for (int64_t block = 0; block < layer->rows / layer->output_block; ++block) {
                parts.push_back({layer, matrix, block});
            }
        }
    }
    // The largest first: what is left for the end is small, so that threads finish together.
    std::stable_sort(parts.begin(), parts.end(), [](const Part& a, const Part& b) { return a.work() > b.work(); });
    return parts;
}

struct Sums {
    double product = 0, norm = 0, free_norm = 0, gradient = 0;
};

// Returns the part's share of the layer's sums.
Sums solve(const Part& part, const ProductLoops& loops, double noise) {
    const TwoSidedLayer& layer = *part.layer;
    const int64_t inputs = layer.inputs, size = layer.input_block, side = layer.output_block;
    const int64_t first = part.matrix * layer.rows + part.block * side;
    const float* root = layer.root + first * side;
    const float* inverse = layer.inverse + part.matrix * inputs * size;
    const float* mean = layer.mean + (layer.bias == nullptr ? 0 : part.matrix * inputs);
    float* weight = layer.weight + first * inputs;
    float* bias = layer.bias == nullptr ? nullptr : layer.bias + first;
    const double* squares = layer.squares == nullptr ? nullptr : layer.squares + first;

    // Both factors of M at unit size, through the smaller: a power of two rounds nothing, every row is scaled at the
    // end, and in between no product leaves the range of float, whatever the size of the gradient.
    float most = loops.largest(weight, side * inputs);
    if (bias != nullptr) most = std::max(most, loops.largest(bias, side));
    const double unit = std::ldexp(1.0, unit_exponent(most) + unit_exponent(loops.largest(root, side * side)));
    const Workspace<float> unit_root(side * side);
    for (int64_t i = 0; i < side * side; ++i) unit_root.get()[i] = static_cast<float>(root[i] * unit);
    root = unit_root.get();

    const Workspace<float> mixed(side * inputs);
    loops.multiply(side, inputs, side, root, side, weight, inputs, mixed.get(), inputs);
    std::vector<float> of_bias(bias == nullptr ? 0 : side);
    for (size_t row = 0; row < of_bias.size(); ++row) {
        of_bias[row] = static_cast<float>(loops.dot(root + row * side, bias, side));
        loops.add_scaled(mixed.get() + row * inputs, mean, -of_bias[row], inputs);
    }

    Sums sums;
    const Workspace<float> directions(std::min(side, kRowsAtOnce) * inputs);
    for (int64_t begin = 0; begin < side; begin += kRowsAtOnce) {
        const int64_t rows = std::min(side - begin, kRowsAtOnce);
        const float* m = mixed.get() + begin * inputs;
        for (int64_t column = 0; column < inputs; column += size) {
            loops.multiply(rows, size, size, m + column, inputs, inverse + column * size, size,
                           directions.get() + column, inputs);
        }
        for (int64_t row = 0; row < rows; ++row, m += inputs) {
            float* h = directions.get() + row * inputs;
            float* g = weight + (begin + row) * inputs;
            const double c = bias == nullptr ? 0 : of_bias[begin + row];
            const double product = loops.dot(h, m, inputs) + c * c;
            double scale = inverse_norm(product);
            const double b = bias == nullptr ? 0 : bias[begin + row];
            const double square = loops.dot(g, g, inputs) + b * b;
            sums.gradient += square;
            const double norm = loops.dot(h, h, inputs);
            sums.free_norm += scale * scale * norm;
            if (squares != nullptr) scale *= agreement(square, squares[begin + row], noise);
            sums.norm += scale * scale * norm;
            const auto factor = static_cast<float>(scale);
            if (bias != nullptr) {
                const float of_row = static_cast<float>(c - loops.dot(h, mean, inputs)) * factor;
                sums.product += static_cast<double>(of_row) * static_cast<double>(bias[begin + row]);
                bias[begin + row] = of_row;
            }
            loops.scale(h, factor, inputs);
            sums.product += loops.dot(h, g, inputs);
            std::copy_n(h, inputs, g);
        }
    }
    return sums;
}

}  // namespace

void two_sided_directions(const TwoSidedLayer* layers, int64_t count, double noise, int threads) {
    const ProductLoops& loops = *isa().product_loops;
    const std::vector<Part> parts = parts_of(layers, count);
    std::vector<Sums> sums(parts.size());
    double work = 0;
    for (const Part& part : parts) work += part.work();
    parallel_for(static_cast<int64_t>(parts.size()), threads_for(work, threads),
                 [&](int64_t i) { sums[i] = solve(parts[i], loops, noise); });
    // In an order that depends on the shapes alone: the same bits for any number of threads.
    for (const TwoSidedLayer* layer = layers; layer != layers + count; ++layer) {
        std::fill_n(layer->sums, 4 * layer->matrices, 0.0);
    }
    for (size_t i = 0; i < parts.size(); ++i) {
        double* const of_matrix = parts[i].layer->sums + 4 * parts[i].matrix;
        of_matrix[0] += sums[i].product;
        of_matrix[1] += sums[i].norm;
        of_matrix[2] += sums[i].free_norm;
        of_matrix[3] += sums[i].gradient;
    }
}

}  // namespace lnb
