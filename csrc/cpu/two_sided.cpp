#include "two_sided.h"

#include <algorithm>
#include <cfloat>
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

const ProductTable<float>& products(float) {
    return *isa().product_loops;
}
const ProductTable<double>& products(double) {
    return *isa().wide_product_loops;
}

// As for floats; two of them and a product of two entries stay in range.
int unit_exponent(double largest) {
    if (!(largest > 0) || largest > DBL_MAX) return 0;
    int exponent;
    std::frexp(largest, &exponent);
    return std::clamp(-exponent, -500, 500);
}

// One block of outputs of one matrix.
template <typename Real>
struct Part {
    const TwoSidedLayer<Real>* layer;
    int64_t matrix, block;

    double cost() const {
        return static_cast<double>(layer->output_block * layer->inputs * (layer->input_block + layer->output_block));
    }
};

template <typename Real>
std::vector<Part<Real>> parts_of(const TwoSidedLayer<Real>* layers, int64_t count) {
    std::vector<Part<Real>> parts;
    for (const TwoSidedLayer<Real>* layer = layers; layer != layers + count; ++layer) {
        for (int64_t matrix = 0; matrix < layer->matrices; ++matrix) {
            for (int64_t block = 0; block < layer->rows / layer->output_block; ++block) {
                parts.push_back({layer, matrix, block});
            }
        }
    }
    // The largest first: what is left for the end is small, so that threads finish together.
    std::stable_sort(parts.begin(), parts.end(),
                     [](const Part<Real>& a, const Part<Real>& b) { return a.cost() > b.cost(); });
    return parts;
}

struct Sums {
    double product = 0, norm = 0, free_norm = 0, gradient = 0;
};

// Returns the part's share of the layer's sums.
template <typename Real>
Sums solve(const Part<Real>& part, const ProductTable<Real>& loops) {
    const TwoSidedLayer<Real>& layer = *part.layer;
    const int64_t inputs = layer.inputs, size = layer.input_block, side = layer.output_block;
    const int64_t first = part.matrix * layer.rows + part.block * side;
    const Real* root = layer.root + first * side;
    const Real* inverse = layer.inverse + part.matrix * inputs * size;
    const Real* mean = layer.mean + (layer.bias == nullptr ? 0 : part.matrix * inputs);
    Real* weight = layer.weight + first * inputs;
    Real* bias = layer.bias == nullptr ? nullptr : layer.bias + first;
    const double* squares = layer.squares == nullptr ? nullptr : layer.squares + first;

    // Both factors of M at unit size, through the smaller: a power of two rounds nothing, every row is scaled at the
    // end, and in between no product leaves the range, whatever the size of the gradient.
    Real most = loops.largest(weight, side * inputs);
    if (bias != nullptr) most = std::max(most, loops.largest(bias, side));
    const double unit = std::ldexp(1.0, unit_exponent(most) + unit_exponent(loops.largest(root, side * side)));
    const Workspace<Real> unit_root(side * side);
    for (int64_t i = 0; i < side * side; ++i) unit_root.get()[i] = static_cast<Real>(root[i] * unit);
    root = unit_root.get();

    const Workspace<Real> mixed(side * inputs);
    loops.multiply(side, inputs, side, root, side, weight, inputs, mixed.get(), inputs);
    std::vector<Real> of_bias(bias == nullptr ? 0 : side);
    for (size_t row = 0; row < of_bias.size(); ++row) {
        of_bias[row] = static_cast<Real>(loops.dot(root + row * side, bias, side));
        loops.add_scaled(mixed.get() + row * inputs, mean, -of_bias[row], inputs);
    }

    Sums sums;
    const Workspace<Real> directions(std::min(side, kRowsAtOnce) * inputs);
    for (int64_t begin = 0; begin < side; begin += kRowsAtOnce) {
        const int64_t rows = std::min(side - begin, kRowsAtOnce);
        const Real* m = mixed.get() + begin * inputs;
        for (int64_t column = 0; column < inputs; column += size) {
            loops.multiply(rows, size, size, m + column, inputs, inverse + column * size, size,
                           directions.get() + column, inputs);
        }
        for (int64_t row = 0; row < rows; ++row, m += inputs) {
            Real* h = directions.get() + row * inputs;
            Real* g = weight + (begin + row) * inputs;
            const double c = bias == nullptr ? 0 : of_bias[begin + row];
            const double product = loops.dot(h, m, inputs) + c * c;
            double scale = inverse_norm(product);
            const double b = bias == nullptr ? 0 : bias[begin + row];
            const double square = loops.dot(g, g, inputs) + layer.bias_weight * b * b;
            sums.gradient += square;
            const double norm = loops.dot(h, h, inputs);
            sums.free_norm += scale * scale * norm;
            if (squares != nullptr) scale *= agreement(square, squares[begin + row]);
            sums.norm += scale * scale * norm;
            const auto factor = static_cast<Real>(scale);
            if (bias != nullptr) {
                const Real of_row = static_cast<Real>(c - loops.dot(h, mean, inputs)) * factor;
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

template <typename Real>
void two_sided_directions(const TwoSidedLayer<Real>* layers, int64_t count, int threads) {
    const ProductTable<Real>& loops = products(Real{});
    const std::vector<Part<Real>> parts = parts_of(layers, count);
    std::vector<Sums> sums(parts.size());
    double cost = 0;
    for (const Part<Real>& part : parts) cost += part.cost();
    parallel_for(static_cast<int64_t>(parts.size()), threads_for(cost, threads),
                 [&](int64_t i) { sums[i] = solve(parts[i], loops); });
    // In an order that depends on the shapes alone: the same bits for any number of threads.
    for (const TwoSidedLayer<Real>* layer = layers; layer != layers + count; ++layer) {
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

template void two_sided_directions(const TwoSidedLayer<float>* layers, int64_t count, int threads);
template void two_sided_directions(const TwoSidedLayer<double>* layers, int64_t count, int threads);

}  // namespace lnb
