#include "step_tables.h"

#include <cmath>
#include <stdexcept>
#include <utility>

namespace lnb {

StepTables::StepTables(std::vector<StepParameter> parameters, std::vector<StepLayer> layers,
                       std::vector<float*> squares, const StepNumbers& numbers, const StepSettings& settings)
    : parameters_(std::move(parameters)),
      layers_(std::move(layers)),
      squares_(std::move(squares)),
      numbers_(numbers),
      settings_(settings),
      expected_(layers_.size()),
      other_products_(squares_.size()),
      scales_(parameters_.size()) {
    std::vector<bool> claimed(parameters_.size());
    size_t rows = 0, matrices = 0;
    for (const StepLayer& layer : layers_) {
        claimed[layer.weight] = true;
        if (layer.bias >= 0) claimed[layer.bias] = true;
        rows += layer.matrices * layer.rows;
        matrices += layer.matrices;
    }
    for (size_t i = 0; i < claimed.size(); ++i) {
        if (!claimed[i]) others_.push_back(static_cast<int64_t>(i));
    }
    mean_squares_.resize(rows);
    sums_.resize(4 * matrices);
}

void StepTables::average(const std::vector<const float*>& gradients, const std::vector<float*>& outputs, int threads) {
    gradients_ = gradients;
    outputs_ = outputs;
    std::vector<Pair> pairs;
    pairs.reserve(parameters_.size());
    std::vector<void*> targets(outputs.begin(), outputs.end());
    for (size_t i = 0; i < parameters_.size(); ++i) {
        pairs.push_back({parameters_[i].momentum, gradients[i], parameters_[i].size});
    }
    std::vector<double> shares(parameters_.size());
    advance(numbers_.steps, parameters(), settings_.momentum, shares.data());
    ema_combined(pairs.data(), targets.data(), parameters(), Type::kFloat32, Type::kFloat32, settings_.momentum.decay,
                 shares.data(), settings_.momentum.take(), threads);
}

void StepTables::require_averages() const {
    if (outputs_.size() != parameters_.size()) throw std::logic_error("average() comes first");
}

void StepTables::observe(int threads) {
    require_averages();
    std::vector<Matrix> matrices;
    matrices.reserve(2 * layers_.size());
    size_t of_weights = 0, of_biases = 0;
    for (const StepLayer& layer : layers_) {
        matrices.push_back({gradients_[layer.weight], layer.matrices * layer.rows, layer.inputs});
        of_weights += layer.matrices * layer.rows;
    }
    for (const StepLayer& layer : layers_) {
        if (layer.bias < 0) continue;
        matrices.push_back({gradients_[layer.bias], layer.matrices * layer.rows, 1});
        of_biases += layer.matrices * layer.rows;
    }
    std::vector<double> squares(of_weights + of_biases);
    squared_row_norms(matrices.data(), static_cast<int64_t>(matrices.size()), Type::kFloat32, squares.data(), threads);
    std::vector<AgreementLayer> observed;
    observed.reserve(layers_.size());
    const double* of_weight = squares.data();
    const double* of_bias = squares.data() + of_weights;
    double* mean_square = mean_squares_.data();
    for (size_t i = 0; i < layers_.size(); ++i) {
        const StepLayer& layer = layers_[i];
        const int64_t rows = layer.matrices * layer.rows;
        observed.push_back({of_weight, layer.bias < 0 ? nullptr : of_bias, layer.row_square, mean_square,
                            numbers_.independent + i, &expected_[i], numbers_.steps + layer.weight, rows});
        of_weight += rows;
        mean_square += rows;
        if (layer.bias >= 0) of_bias += rows;
    }
    observe_agreement(observed.data(), layers(), settings_.b_rows, settings_.momentum);
}

void StepTables::refresh(const std::vector<StepMoments>& due, const Quintic& quintic, int64_t steps,
                         int threads) const {
    require_averages();
    std::vector<RefreshedLayer> refreshed;
    refreshed.reserve(due.size());
    for (const StepMoments& of : due) {
        const StepLayer& layer = layers_[of.layer];
        const float* const bias = layer.bias < 0 ? nullptr : outputs_[layer.bias];
        refreshed.push_back({of.gathered, of.second_moment, of.counted, of.inverse, bias == nullptr ? nullptr : of.mean,
                             of.output_moment, of.root, outputs_[layer.weight], bias, layer.matrices, layer.rows,
                             layer.inputs, of.input_block, of.output_block, of.decay, of.ridge, of.sample_ridge,
                             of.sample_every, of.follows});
    }
    lnb::refresh(refreshed.data(), static_cast<int64_t>(refreshed.size()), quintic, steps, threads);
}

void StepTables::direct(const std::vector<StepFactor>& factors, int threads) {
    require_averages();
    std::vector<TwoSidedLayer> two_sided;
    two_sided.reserve(layers_.size());
    const double* mean_square = mean_squares_.data();
    double* sums = sums_.data();
    for (size_t i = 0; i < layers_.size(); ++i) {
        const StepLayer& layer = layers_[i];
        const StepFactor& factor = factors[i];
        float* const bias = layer.bias < 0 ? nullptr : outputs_[layer.bias];
        two_sided.push_back({outputs_[layer.weight], bias, factor.inverse, bias == nullptr ? nullptr : factor.mean,
                             factor.root, mean_square, sums, layer.matrices, layer.rows, layer.inputs,
                             factor.input_block, factor.output_block});
        mean_square += layer.matrices * layer.rows;
        sums += 4 * layer.matrices;
    }
    two_sided_directions(two_sided.data(), layers(), settings_.noise, threads);
    std::vector<AdamTensor> moved;
    moved.reserve(others_.size());
    for (size_t k = 0; k < others_.size(); ++k) {
        const int64_t i = others_[k];
        const double correction = 1 - std::pow(settings_.b_others, static_cast<double>(numbers_.steps[i]));
        moved.push_back({outputs_[i], squares_[k], gradients_[i], parameters_[i].size, correction});
    }
    adam(moved.data(), static_cast<int64_t>(moved.size()), settings_.b_others, settings_.epsilon, settings_.most,
         other_products_.data(), threads);
}

std::vector<double> StepTables::sums() const {
    std::vector<double> totals(4 * layers_.size());
    size_t next = 0;
    for (size_t i = 0; i < layers_.size(); ++i) {
        for (int64_t k = 0; k < 4 * layers_[i].matrices; ++k) totals[4 * i + k % 4] += sums_[next++];
    }
    return totals;
}

std::vector<double> StepTables::bound(const std::vector<double>& rates) {
    std::vector<BoundedLayer> bounded;
    bounded.reserve(layers_.size());
    const std::vector<double> totals = sums();
    for (size_t i = 0; i < layers_.size(); ++i) {
        bounded.push_back({&totals[4 * i], &expected_[i], numbers_.weight_norm + i, numbers_.growth + i,
                           numbers_.radius + i, numbers_.coherence + i, numbers_.steps + layers_[i].weight,
                           layers_[i].usual_norm, rates[i]});
    }
    std::vector<double> products(layers_.size()), of_layers(layers_.size());
    bound_steps(bounded.data(), layers(), settings_.change, settings_.largest, settings_.radius, products.data(),
                of_layers.data());
    for (size_t i = 0; i < layers_.size(); ++i) {
        scales_[layers_[i].weight] = of_layers[i];
        if (layers_[i].bias >= 0) scales_[layers_[i].bias] = of_layers[i];
    }
    for (size_t k = 0; k < others_.size(); ++k) {
        scales_[others_[k]] = std::isfinite(other_products_[k]) ? settings_.others_scale : 0;
    }
    products.insert(products.end(), other_products_.begin(), other_products_.end());
    return products;
}

void StepTables::apply(const std::vector<int64_t>& places, double lr, const std::vector<double>& decays,
                       int threads) const {
    require_averages();
    std::vector<Pair> pairs;
    std::vector<double> scales;
    for (const int64_t i : places) {
        pairs.push_back({parameters_[i].values, outputs_[i], parameters_[i].size});
        scales.push_back(scales_[i]);
    }
    lnb::apply(pairs.data(), static_cast<int64_t>(pairs.size()), Type::kFloat32, Type::kFloat32, scales.data(), lr,
               decays.data(), threads);
}

}  // namespace lnb
