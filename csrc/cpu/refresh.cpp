#include "refresh.h"

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <vector>

#include "../step_rules.h"
#include "isa.h"
#include "parallel.h"
#include "products_isa.h"
#include "spd_inverse.h"
#include "workspace.h"

namespace lnb {
namespace {

constexpr double kNoise = 16;                   // in units of the precision: what rounding leaves of a variance of zero
constexpr int64_t kPanel = 16;                  // rows of an output moment that are formed together
constexpr float kLeastRidge = 0x1.6a09e6p-95f;  // the least normal float to the power 3/4: its inverse is a number

// One diagonal block of one matrix, of inputs or of outputs.
struct Block {
    const RefreshedLayer* layer;
    int64_t matrix, index;
    int64_t of_matrix;  // the place of its matrix among all
    int64_t size;
};

// What is known of one matrix.
struct Totals {
    double square = 0, variance = 0;  // mean diagonals, summed over the blocks of inputs
    double trace = 0;                 // of the output moment, summed over its blocks
};

double samples(const RefreshedLayer& layer) {
    const int64_t width = layer.input_block + 1;
    return layer.gathered[width * width - 1];
}

// What few samples add to the ridge: by how much the average is uncertain, and the gradient of a layer that sees data.
double ridge_of_samples(const RefreshedLayer& layer) {
    const double of_step = most(1.0, samples(layer) / layer.sample_every);
    const double b = layer.decay, past = std::pow(b, most(1.0, *layer.counted));
    const double counted = of_step * ((1 - past) / (1 + past) * ((1 + b) / (1 - b)));
    const double uncertain = layer.sample_ridge * static_cast<double>(layer.input_block) / counted;
    return least(uncertain + layer.data_inputs / of_step, kMostSampleRidge);
}

// 1 - decay^t, by which an average from zero is divided.
float correction(const RefreshedLayer& layer) {
    return static_cast<float>(1 - std::pow(layer.decay, most(1.0, *layer.counted)));
}

float* block_of(float* blocks, const Block& block, int64_t blocks_of_matrix, int64_t entries) {
    return blocks + (block.matrix * blocks_of_matrix + block.index) * entries;
}

// Adds this step's second moment to the average; returns the mean of its diagonal, and of the covariance's.
Totals average(const Block& block) {
    const RefreshedLayer& layer = *block.layer;
    const int64_t n = layer.input_block, width = n + 1, blocks = layer.inputs / n;
    const float* gathered = layer.gathered + (block.matrix * blocks + block.index) * width * width;
    float* kept = block_of(layer.second_moment, block, blocks, width * width);
    const auto rows = static_cast<float>(samples(layer)), take = static_cast<float>(1 - layer.decay);
    for (int64_t i = 0; i < width * width; ++i) kept[i] += take * (gathered[i] / rows - kept[i]);
    const float divisor = correction(layer);
    Totals totals;
    for (int64_t i = 0; i < n; ++i) {
        const float square = kept[i * width + i] / divisor, mean = kept[n * width + i] / divisor;
        totals.square += square;
        totals.variance += square - mean * mean;
    }
    totals.square /= static_cast<double>(n);
    totals.variance /= static_cast<double>(n);
    return totals;
}

// The mean diagonal of a matrix's metric. Inputs that do not vary beyond rounding count by their squares, and those
// that are all zero as of size 1.
double mean_diagonal(const RefreshedLayer& layer, const Totals& totals) {
    const int64_t count = layer.inputs / layer.input_block;
    const auto blocks = static_cast<double>(count);
    const double square = totals.square / blocks, variance = totals.variance / blocks;
    const bool varies = layer.bias != nullptr && variance > kNoise * static_cast<double>(FLT_EPSILON) * square;
    const double size = varies ? variance : square;
    return size > 0 ? size : 1;
}

// What is added to the diagonals of a matrix's covariance.
float ridge_of(const RefreshedLayer& layer, const Totals& totals) {
    const double size = mean_diagonal(layer, totals);
    return std::max(static_cast<float>((layer.ridge + ridge_of_samples(layer)) * size), kLeastRidge);
}

// Where C is not positive definite in this precision, C^-1 is that of a larger ridge, and else of the diagonal alone.
void invert(const Block& block, float ridge) {
    const RefreshedLayer& layer = *block.layer;
    const int64_t n = layer.input_block, width = n + 1, blocks = layer.inputs / n;
    const float* kept = block_of(layer.second_moment, block, blocks, width * width);
    float* inverse = block_of(layer.inverse, block, blocks, n * n);
    const float divisor = correction(layer);
    const Workspace<float> covariance(n * n), mean(n);
    for (int64_t i = 0; i < n; ++i) mean.get()[i] = kept[n * width + i] / divisor;
    for (int64_t i = 0; i < n; ++i) {
        float* row = covariance.get() + i * n;
        const float of_row = layer.bias == nullptr ? 0 : mean.get()[i];
        for (int64_t j = 0; j < n; ++j) row[j] = kept[i * width + j] / divisor - of_row * mean.get()[j];
    }
    if (layer.mean != nullptr) std::copy_n(mean.get(), n, layer.mean + block.matrix * layer.inputs + block.index * n);
    double diagonal = 0;
    for (int64_t i = 0; i < n; ++i) {
        float& entry = covariance.get()[i * n + i];
        diagonal += std::max(entry, 0.0f);
        entry += ridge;
    }
    if (spd_inverse(covariance.get(), inverse, n)) return;
    const float more = static_cast<float>(diagonal / static_cast<double>(n)) + FLT_EPSILON;
    for (int64_t i = 0; i < n; ++i) covariance.get()[i * n + i] += more;
    if (spd_inverse(covariance.get(), inverse, n)) return;
    std::fill_n(inverse, n * n, 0.0f);
    for (int64_t i = 0; i < n; ++i) {
        const float own =
            std::max(kept[i * width + i] / divisor - (layer.bias == nullptr ? 0 : mean.get()[i] * mean.get()[i]), 0.0f);
        inverse[i * n + i] = 1 / std::max(own + ridge, FLT_MIN);
    }
}

void transpose(int64_t rows, int64_t columns, const float* x, int64_t ldx, float* t, int64_t ldt) {
    for (int64_t row = 0; row < rows; ++row) {
        for (int64_t column = 0; column < columns; ++column) t[column * ldt + row] = x[row * ldx + column];
    }
}

// What an output moment was multiplied by, a power of two, and its trace without that.
struct Scaled {
    double scale, trace;
};

// Writes a multiple of the block of g~ S^-1 g~' to where its root will stand. With g~ and g~ S^-1 at unit size, no
// product leaves the range of float.
Scaled output_moment(const Block& block, const ProductLoops& loops) {
    const RefreshedLayer& layer = *block.layer;
    const int64_t m = layer.output_block, inputs = layer.inputs, n = layer.input_block;
    const int64_t first = block.matrix * layer.rows + block.index * m;
    const float* weight = layer.weight + first * inputs;
    const float* inverse = layer.inverse + block.matrix * inputs * n;
    const float* mean = layer.mean == nullptr ? nullptr : layer.mean + block.matrix * inputs;
    float* moment = layer.root + first * m;

    std::vector<float> bias(layer.bias == nullptr ? 0 : m), solved_bias(bias.size());
    float largest = loops.largest(weight, m * inputs);
    if (layer.bias != nullptr) largest = std::max(largest, loops.largest(layer.bias + first, m));
    const int exponent = unit_exponent(largest);
    const auto unit = static_cast<float>(std::ldexp(1.0, exponent));
    if (layer.bias != nullptr) {
        std::copy_n(layer.bias + first, m, bias.data());
        loops.scale(bias.data(), unit, m);
    }

    const Workspace<float> gradient(m * inputs), centred(bias.empty() ? 0 : m * inputs), solved(m * inputs);
    std::copy_n(weight, m * inputs, gradient.get());
    loops.scale(gradient.get(), unit, m * inputs);
    const float* given = gradient.get();
    if (!bias.empty()) {
        std::copy_n(gradient.get(), m * inputs, centred.get());
        for (int64_t row = 0; row < m; ++row) {
            loops.add_scaled(centred.get() + row * inputs, mean, -bias[static_cast<size_t>(row)], inputs);
        }
        given = centred.get();
    }
    for (int64_t column = 0; column < inputs; column += n) {
        loops.multiply(m, n, n, given + column, inputs, inverse + column * n, n, solved.get() + column, inputs);
    }
    float most_solved = loops.largest(solved.get(), m * inputs);
    for (size_t i = 0; i < bias.size(); ++i) {
        const double of_row = loops.dot(solved.get() + static_cast<int64_t>(i) * inputs, mean, inputs);
        solved_bias[i] = static_cast<float>(bias[i] - of_row);
        most_solved = std::max(most_solved, std::abs(solved_bias[i]));
    }
    const int solved_exponent = unit_exponent(most_solved);
    const auto solved_unit = static_cast<float>(std::ldexp(1.0, solved_exponent));
    loops.scale(solved.get(), solved_unit, m * inputs);

    const int64_t ldt = apart(m);
    const Workspace<float> transposed(n * ldt);
    for (int64_t column = 0; column < inputs; column += n) {
        transpose(m, n, gradient.get() + column, inputs, transposed.get(), ldt);
        const auto product = column == 0 ? loops.multiply : loops.add;
        for (int64_t row = 0; row < m; row += kPanel) {  // on and below the diagonal
            const int64_t rows = std::min(kPanel, m - row);
            product(rows, row + rows, n, solved.get() + row * inputs + column, inputs, transposed.get(), ldt,
                    moment + row * m, m);
        }
    }
    double trace = 0;
    for (int64_t row = 0; row < m; ++row) {
        if (!bias.empty()) {
            const auto of_row = solved_bias[static_cast<size_t>(row)] * solved_unit;
            loops.add_scaled(moment + row * m, bias.data(), of_row, row + 1);
        }
        for (int64_t column = 0; column < row; ++column) moment[column * m + row] = moment[row * m + column];
        trace += moment[row * m + row];
    }
    const double scale = std::ldexp(1.0, 2 * exponent + solved_exponent);
    return {scale, trace / scale};
}

// P, of mean diagonal 1 over the matrix, into its average; the average's P^(-1/2) in place of this step's moment.
void root_of_average(const Block& block, const Scaled& scaled, double mean_diagonal, const Quintic& quintic,
                     int64_t steps) {
    const RefreshedLayer& layer = *block.layer;
    const int64_t m = layer.output_block, entries = m * m, blocks = layer.rows / m;
    float* moment = block_of(layer.output_moment, block, blocks, entries);
    float* root = block_of(layer.root, block, blocks, entries);
    const double factor = mean_diagonal > 0 ? 1 / (scaled.scale * mean_diagonal) : 0;
    const auto take = static_cast<float>(1 - layer.decay);
    double trace = 0;
    for (int64_t row = 0; row < m; ++row) {
        for (int64_t i = row * m; i < (row + 1) * m; ++i) {
            const auto own = factor == 0 ? 0.0f : static_cast<float>(root[i] * factor);
            moment[i] += take * (own - moment[i]);
        }
        trace += moment[row * m + row];
    }
    if (!(trace > static_cast<double>(FLT_MIN))) trace = 1;
    const double ridge = trace / static_cast<double>(m) * layer.output_ridge;
    trace += static_cast<double>(m) * ridge;
    const Workspace<float> power(entries);
    const auto divisor = static_cast<float>(trace), added = static_cast<float>(ridge / trace);
    for (int64_t i = 0; i < entries; ++i) power.get()[i] = moment[i] / divisor;
    for (int64_t row = 0; row < m; ++row) power.get()[row * m + row] += added;
    newton_schulz_root(power.get(), root, m, quintic, steps);
    // Steps from a matrix with a clearly negative eigenvalue grow beyond all bounds.
    const bool rooted = std::all_of(root, root + entries, [](float x) { return std::isfinite(x); });
    const auto size = static_cast<float>(1 / std::sqrt(trace));
    for (int64_t row = 0; row < m; ++row) {
        for (int64_t column = 0; column < m; ++column) {
            float& entry = root[row * m + column];
            if (!rooted) entry = row == column ? 1.0f : 0.0f;
            entry *= size;
        }
    }
}

// Blocks of inputs, or of outputs, the largest first: what is left for the end is small, so that threads finish
// together. Blocks of inputs that several layers share stand for the one that does not follow.
std::vector<Block> blocks_of(const RefreshedLayer* layers, int64_t count, bool inputs) {
    std::vector<Block> blocks;
    int64_t matrices = 0;
    for (const RefreshedLayer* layer = layers; layer != layers + count; ++layer) {
        const int64_t size = inputs ? layer->input_block : layer->output_block;
        const int64_t of_matrix = (inputs ? layer->inputs : layer->rows) / size;
        for (int64_t matrix = 0; matrix < layer->matrices && samples(*layer) > 0; ++matrix, ++matrices) {
            if (inputs && layer->follows) continue;
            for (int64_t i = 0; i < of_matrix; ++i) blocks.push_back({layer, matrix, i, matrices, size});
        }
    }
    std::stable_sort(blocks.begin(), blocks.end(), [](const Block& a, const Block& b) { return a.size > b.size; });
    return blocks;
}

// Calls f(i) for every block, on as many threads as its `cost` is worth.
template <typename Cost, typename F>
void for_each(const std::vector<Block>& blocks, int threads, Cost cost, F f) {
    double total = 0;
    for (const Block& block : blocks) total += cost(block);
    parallel_for(static_cast<int64_t>(blocks.size()), threads_for(total, threads),
                 [&](int64_t i) { f(static_cast<size_t>(i)); });
}

// Of every layer with samples. One that follows has that of the layer whose second moments it shares.
void note_input_sizes(const RefreshedLayer* layers, int64_t count, const std::vector<Block>& inputs,
                      const std::vector<Totals>& totals) {
    std::vector<double> means(static_cast<size_t>(count));
    for (const Block& block : inputs) {
        if (block.index != 0) continue;
        const Totals& own = totals[static_cast<size_t>(block.of_matrix)];
        means[static_cast<size_t>(block.layer - layers)] +=
            mean_diagonal(*block.layer, own) / static_cast<double>(block.layer->matrices);
    }
    for (int64_t i = 0; i < count; ++i) {
        if (layers[i].input_size == nullptr || !(samples(layers[i]) > 0)) continue;
        int64_t of = i;
        if (layers[i].follows) {
            of = std::find_if(layers, layers + count,
                              [&](const RefreshedLayer& other) {
                                  return !other.follows && other.second_moment == layers[i].second_moment;
                              }) -
                 layers;
        }
        if (of < count) *layers[i].input_size = std::sqrt(means[static_cast<size_t>(of)]);
    }
}

double cube(const Block& block) {
    const auto size = static_cast<double>(block.size);
    return size * size * size;
}

}  // namespace

void refresh(const RefreshedLayer* layers, int64_t count, const Quintic& quintic, int64_t steps, int threads) {
    const ProductLoops& loops = *isa().product_loops;
    const std::vector<Block> inputs = blocks_of(layers, count, true), outputs = blocks_of(layers, count, false);
    if (inputs.empty()) return;
    for (const RefreshedLayer* layer = layers; layer != layers + count; ++layer) {
        if (samples(*layer) > 0 && !layer->follows) *layer->counted += 1;
    }

    std::vector<Totals> of_inputs(inputs.size());
    const auto entries = [](const Block& x) { return static_cast<double>(x.size * x.size) * kProductsPerEntry; };
    for_each(inputs, threads, entries, [&](size_t i) { of_inputs[i] = average(inputs[i]); });
    size_t matrices = 0;  // those of layers that follow have blocks of outputs alone
    for (const Block& block : outputs) matrices = std::max(matrices, static_cast<size_t>(block.of_matrix) + 1);
    std::vector<Totals> totals(matrices);
    const auto total_of = [&totals](const Block& block) -> Totals& {
        return totals[static_cast<size_t>(block.of_matrix)];
    };
    for (size_t i = 0; i < inputs.size(); ++i) {  // in an order that depends on the shapes alone
        total_of(inputs[i]).square += of_inputs[i].square;
        total_of(inputs[i]).variance += of_inputs[i].variance;
    }
    note_input_sizes(layers, count, inputs, totals);
    const auto twice = [](const Block& block) { return 2 * cube(block); };
    for_each(inputs, threads, twice,
             [&](size_t i) { invert(inputs[i], ridge_of(*inputs[i].layer, total_of(inputs[i]))); });

    std::vector<Scaled> scaled(outputs.size());
    const auto product = [](const Block& block) {
        return static_cast<double>(block.size * block.layer->inputs * (block.layer->input_block + block.size));
    };
    for_each(outputs, threads, product, [&](size_t i) { scaled[i] = output_moment(outputs[i], loops); });
    for (size_t i = 0; i < outputs.size(); ++i) total_of(outputs[i]).trace += scaled[i].trace;
    const auto root = [steps](const Block& block) { return 2 * static_cast<double>(steps) * cube(block); };
    for_each(outputs, threads, root, [&](size_t i) {
        const double mean = total_of(outputs[i]).trace / static_cast<double>(outputs[i].layer->rows);
        root_of_average(outputs[i], scaled[i], mean, quintic, steps);
    });
}

}  // namespace lnb
