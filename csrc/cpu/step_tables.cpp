#include "step_tables.h"

#include <cmath>
#include <stdexcept>
#include <utility>

namespace lnb {
namespace {

constexpr Type kAllTypes[] = {Type::kFloat64, Type::kFloat32, Type::kBFloat16, Type::kFloat16};

template <typename Real>
constexpr Type kRealType = sizeof(Real) == 8 ? Type::kFloat64 : Type::kFloat32;

}  // namespace

StepTables::StepTables(std::vector<StepParameter> parameters, std::vector<StepLayer> layers, std::vector<void*> squares,
                       const StepNumbers& numbers, const StepSettings& settings)
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

void StepTables::average(const std::vector<const void*>& gradients, const std::vector<void*>& outputs, int threads) {
    gradients_ = gradients;
    outputs_ = outputs;
    std::vector<double> shares(parameters_.size());
    advance(numbers_.steps, parameters(), settings_.momentum, shares.data());
    for (const Type type : kAllTypes) {
        std::vector<Pair> pairs;
        std::vector<void*> targets;
        std::vector<double> of_type;
        for (size_t i = 0; i < parameters_.size(); ++i) {
            if (parameters_[i].type != type) continue;
            pairs.push_back({parameters_[i].momentum, gradients[i], parameters_[i].size});
            targets.push_back(outputs[i]);
            of_type.push_back(shares[i]);
        }
        if (pairs.empty()) continue;
        ema_combined(pairs.data(), targets.data(), static_cast<int64_t>(pairs.size()), wide_type(type), type,
                     settings_.momentum.decay, of_type.data(), settings_.momentum.take(), threads);
    }
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
        matrices.push_back(
            {gradients_[layer.weight], parameters_[layer.weight].type, layer.matrices * layer.rows, layer.inputs});
        of_weights += layer.matrices * layer.rows;
    }
    for (const StepLayer& layer : layers_) {
        if (layer.bias < 0) continue;
        matrices.push_back({gradients_[layer.bias], parameters_[layer.bias].type, layer.matrices * layer.rows, 1});
        of_biases += layer.matrices * layer.rows;
    }
    std::vector<double> squares(of_weights + of_biases);
    squared_row_norms(matrices.data(), static_cast<int64_t>(matrices.size()), squares.data(), threads);
    std::vector<AgreementLayer> observed;
    observed.reserve(layers_.size());
    const double* of_weight = squares.data();
    const double* of_bias = squares.data() + of_weights;
    double* mean_square = mean_squares_.data();
    for (size_t i = 0; i < layers_.size(); ++i) {
        const StepLayer& layer = layers_[i];
        const int64_t rows = layer.matrices * layer.rows;
        observed.push_back({of_weight, layer.bias < 0 ? nullptr : of_bias, layer.row_square, mean_square,
                            numbers_.independent + i, &expected_[i], numbers_.steps + layer.weight,
                            bias_weight(numbers_.input_size[i]), rows});
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
        const auto* const bias = layer.bias < 0 ? nullptr : static_cast<const float*>(outputs_[layer.bias]);
        refreshed.push_back({of.gathered,
                             of.second_moment,
                             of.counted,
                             of.inverse,
                             bias == nullptr ? nullptr : of.mean,
                             of.output_moment,
                             of.root,
                             static_cast<const float*>(outputs_[layer.weight]),
                             bias,
                             of.sized ? numbers_.input_size + of.layer : nullptr,
                             layer.matrices,
                             layer.rows,
                             layer.inputs,
                             of.input_block,
                             of.output_block,
                             of.decay,
                             of.ridge,
                             of.sample_ridge,
                             of.data_inputs,
                             of.sample_every,
                             of.output_ridge,
                             of.follows});
    }
    lnb::refresh(refreshed.data(), static_cast<int64_t>(refreshed.size()), quintic, steps, threads);
}

template <typename Real>
void StepTables::direct_layers(const std::vector<StepFactor>& factors, int threads) {
    std::vector<TwoSidedLayer<Real>> two_sided;
    two_sided.reserve(layers_.size());
    const double* mean_square = mean_squares_.data();
    double* sums = sums_.data();
    for (size_t i = 0; i < layers_.size(); ++i) {
        const StepLayer& layer = layers_[i];
        const StepFactor& factor = factors[i];
        if (wide_type_of(layer) == kRealType<Real>) {
            auto* const bias = layer.bias < 0 ? nullptr : static_cast<Real*>(outputs_[layer.bias]);
            two_sided.push_back(
                {static_cast<Real*>(outputs_[layer.weight]), bias, static_cast<const Real*>(factor.inverse),
                 bias == nullptr ? nullptr : static_cast<const Real*>(factor.mean),
                 static_cast<const Real*>(factor.root), mean_square, sums, bias_weight(numbers_.input_size[i]),
                 layer.matrices, layer.rows, layer.inputs, factor.input_block, factor.output_block});
        }
        mean_square += layer.matrices * layer.rows;
        sums += 4 * layer.matrices;
    }
    two_sided_directions(two_sided.data(), static_cast<int64_t>(two_sided.size()), threads);
}

void StepTables::direct(const std::vector<StepFactor>& factors, int threads) {
    require_averages();
    direct_layers<float>(factors, threads);
    direct_layers<double>(factors, threads);
    std::vector<AdamTensor> moved;
    moved.reserve(others_.size());
    for (size_t k = 0; k < others_.size(); ++k) {
        const int64_t i = others_[k];
        const double correction = 1 - std::pow(settings_.b_others, static_cast<double>(numbers_.steps[i]));
        moved.push_back(
            {outputs_[i], squares_[k], gradients_[i], parameters_[i].type, parameters_[i].size, correction});
    }
    adam(moved.data(), static_cast<int64_t>(moved.size()), settings_.b_others, settings_.epsilon,
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

std::vector<double> StepTables::measure(const std::vector<int64_t>& due, const std::vector<double>& rates,
                                        int threads) {
    std::vector<double> factors(due.size());
    const std::vector<double> totals = sums();
    for (const Type type : kAllTypes) {
        std::vector<Pair> weights;
        std::vector<size_t> of_type;
        for (size_t k = 0; k < due.size(); ++k) {
            const StepParameter& weight = parameters_[layers_[due[k]].weight];
            if (weight.type != type) continue;
            weights.push_back({weight.values, weight.values, weight.size});
            of_type.push_back(k);
        }
        std::vector<double> squares(weights.size());
        dot(weights.data(), static_cast<int64_t>(weights.size()), type, type, squares.data(), threads);
        for (size_t j = 0; j < of_type.size(); ++j) {
            const size_t k = of_type[j];
            const int64_t i = due[k];
            const LayerSums of_layer{totals[4 * i], totals[4 * i + 1], totals[4 * i + 2], totals[4 * i + 3]};
            factors[k] = take_back(std::sqrt(squares[j]), of_layer, numbers_.steps[layers_[i].weight], rates[k],
                                   settings_.radius, numbers_.weight_norm[i], numbers_.growth[i], numbers_.radius[i],
                                   numbers_.coherence[i]);
        }
    }
    return factors;
}

std::vector<double> StepTables::bound(const std::vector<double>& rates) {
    std::vector<BoundedLayer> bounded;
    bounded.reserve(layers_.size());
    const std::vector<double> totals = sums();
    for (size_t i = 0; i < layers_.size(); ++i) {
        bounded.push_back({&totals[4 * i], &expected_[i], numbers_.weight_norm + i, numbers_.growth + i,
                           numbers_.radius + i, numbers_.coherence + i, numbers_.steps + layers_[i].weight,
                           numbers_.input_size + i, layers_[i].usual_norm, rates[i]});
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
    for (const Type type : kAllTypes) {
        for (const bool with_master : {false, true}) {
            std::vector<Pair> pairs;
            std::vector<void*> copies;
            std::vector<double> scales, of_type;
            for (size_t k = 0; k < places.size(); ++k) {
                const int64_t i = places[k];
                const StepParameter& moved = parameters_[i];
                if (moved.type != type || (moved.master != nullptr) != with_master) continue;
                pairs.push_back({with_master ? moved.master : moved.values, outputs_[i], moved.size});
                copies.push_back(moved.values);
                scales.push_back(scales_[i]);
                of_type.push_back(decays[k]);
            }
            const auto count = static_cast<int64_t>(pairs.size());
            if (count == 0) continue;
            if (with_master) {
                lnb::apply_master(pairs.data(), copies.data(), count, type, scales.data(), lr, of_type.data(), threads);
            } else {
                lnb::apply(pairs.data(), count, type, wide_type(type), scales.data(), lr, of_type.data(), threads);
            }
        }
    }
}

}  // namespace lnb
