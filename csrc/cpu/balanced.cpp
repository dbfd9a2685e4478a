#include "balanced.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "isa.h"
#include "parallel.h"
#include "products_isa.h"
#include "ranges.h"
#include "workspace.h"

namespace lnb {
namespace {

constexpr int64_t kRowsAtOnce = 64;  // of one part: whole tiles, enough of them to use what is in the first cache again

// Rows of one block of outputs of one matrix.
struct Part {
    const BalancedLayer* layer;
    int64_t matrix;
    Range rows;

    double work() const {
        return static_cast<double>(rows.size() * layer->inputs * (layer->input_block + layer->output_block));
    }
};

std::vector<Part> parts_of(const BalancedLayer* layers, int64_t count) {
    std::vector<Part> parts;
    for (const BalancedLayer* layer = layers; layer != layers + count; ++layer) {
        for (int64_t matrix = 0; matrix < layer->matrices; ++matrix) {
            for (int64_t top = 0; top < layer->rows; top += layer->output_block) {
                const int64_t pieces = ceil_div(layer->output_block, kRowsAtOnce);
                for (int64_t i = 0; i < pieces; ++i) {
                    const Range rows = piece(layer->output_block, pieces, i);
                    parts.push_back({layer, matrix, {top + rows.begin, top + rows.end}});
                }
            }
        }
    }
    // The largest first: what is left for the end is small, so that threads finish together.
    std::stable_sort(parts.begin(), parts.end(), [](const Part& a, const Part& b) { return a.work() > b.work(); });
    return parts;
}

// Returns the part's share of the layer's product.
double solve(const Part& part, const ProductLoops& loops) {
    const BalancedLayer& layer = *part.layer;
    const int64_t inputs = layer.inputs, size = layer.input_block, side = layer.output_block;
    const int64_t rows = part.rows.size(), block = part.rows.begin / side, top = block * side;
    const float* root = layer.root + (part.matrix * (layer.rows / side) + block) * side * side +
                        (part.rows.begin - top) * side;  // the rows of P^(-1/2)
    const float* gradient = layer.weight + (part.matrix * layer.rows + top) * inputs;
    const float* inverse = layer.inverse + part.matrix * inputs * size;
    const float* mean = layer.bias == nullptr ? nullptr : layer.mean + part.matrix * inputs;
    const int64_t first = part.matrix * layer.rows + part.rows.begin;
    float* direction = layer.direction + first * inputs;
    const Workspace<float> mixed(rows * inputs);
    float of_bias[kRowsAtOnce] = {};

    loops.multiply(rows, inputs, side, root, side, gradient, inputs, mixed.get(), inputs);
    if (layer.bias != nullptr) {
        for (int64_t row = 0; row < rows; ++row) {
            of_bias[row] =
                static_cast<float>(loops.dot(root + row * side, layer.bias + part.matrix * layer.rows + top, side));
            loops.add_scaled(mixed.get() + row * inputs, mean, -of_bias[row], inputs);
        }
    }
    for (int64_t column = 0; column < inputs; column += size) {
        loops.multiply(rows, size, size, mixed.get() + column, inputs, inverse + column * size, size,
                       direction + column, inputs);
    }
    const float* own = gradient + (part.rows.begin - top) * inputs;  // the gradient of these rows
    double sum = 0;
    for (int64_t row = 0; row < rows; ++row) {
        float* h = direction + row * inputs;
        const double c = of_bias[row];
        const double product = loops.dot(h, mixed.get() + row * inputs, inputs) + c * c;
        const auto factor = static_cast<float>(product > 0 ? 1 / std::sqrt(product) : 0);
        if (layer.bias != nullptr) {
            const float of_row = static_cast<float>(c - loops.dot(h, mean, inputs)) * factor;
            layer.bias_direction[first + row] = of_row;
            sum += static_cast<double>(of_row) * static_cast<double>(layer.bias[first + row]);
        }
        loops.scale(h, factor, inputs);
        sum += loops.dot(h, own + row * inputs, inputs);
    }
    return sum;
}

}  // namespace

void balanced_directions(const BalancedLayer* layers, int64_t count, int threads) {
    const ProductLoops& loops = *isa().product_loops;
    const std::vector<Part> parts = parts_of(layers, count);
    std::vector<double> sums(parts.size());
    parallel_for(static_cast<int64_t>(parts.size()), threads, [&](int64_t i) { sums[i] = solve(parts[i], loops); });
    // In an order that depends on the shapes alone: the same bits for any number of threads.
    for (const BalancedLayer* layer = layers; layer != layers + count; ++layer) {
        std::fill_n(layer->products, layer->matrices, 0.0);
    }
    for (size_t i = 0; i < parts.size(); ++i) parts[i].layer->products[parts[i].matrix] += sums[i];
}

}  // namespace lnb
