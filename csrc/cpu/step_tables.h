// The stages of a step of the default preset between refreshes, over tables that are made once: from the gradients'
// addresses to moved parameters in a handful of calls, however many layers there are.
#pragma once

#include <cstdint>
#include <vector>

#include "multi_tensor.h"
#include "refresh.h"
#include "step_numbers.h"
#include "two_sided.h"

namespace lnb {

struct StepSettings {
    Momentum momentum;
    double b_rows;           // of agreement
    double change, largest;  // of the weights' bound
    RadiusRule radius;
    double b_others, epsilon, others_scale;  // of Adam's rule
};

// The type of averages, directions and factors of a parameter.
constexpr Type wide_type(Type type) {
    return type == Type::kFloat64 ? Type::kFloat64 : Type::kFloat32;
}

// A parameter that moves, and its gradient, of type `type`; its average is of the wide type.
struct StepParameter {
    void* values;
    void* momentum;
    float* master;  // of 16-bit parameters that move through one; else null
    int64_t size;
    Type type;
};

// A layer: its weight and bias (or -1) among the parameters, and its statistics.
struct StepLayer {
    int64_t weight, bias;
    double* row_square;
    double usual_norm;
    int64_t matrices, rows, inputs;
};

// What a refresh makes of a layer, as two_sided_directions() takes it.
struct StepFactor {
    const void *inverse, *mean, *root;  // of the wide type
    int64_t input_block, output_block;
};

// A layer of float32 averages whose second moments this step gathered, as refresh() takes it: its place, and all but
// what the tables know.
struct StepMoments {
    int64_t layer;
    const float* gathered;
    float *second_moment, *counted, *inverse, *mean, *output_moment, *root;
    int64_t input_block, output_block;
    double decay, ridge, sample_ridge, data_inputs, sample_every, output_ridge;
    bool follows, sized;
};

// The numbers of all layers, each [layers], and of all parameters.
struct StepNumbers {
    float* steps;  // [parameters]
    double *independent, *weight_norm, *growth, *radius, *coherence, *input_size;
};

class StepTables {
  public:
    // Parameters that no layer names move by Adam's rule; `squares` [others] are their averages of squared gradients.
    StepTables(std::vector<StepParameter> parameters, std::vector<StepLayer> layers, std::vector<void*> squares,
               const StepNumbers& numbers, const StepSettings& settings);

    int64_t parameters() const { return static_cast<int64_t>(parameters_.size()); }
    int64_t layers() const { return static_cast<int64_t>(layers_.size()); }
    const StepParameter& parameter(int64_t i) const { return parameters_[i]; }
    const StepLayer& layer(int64_t i) const { return layers_[i]; }

    // Updates the gradients' averages; the averaged gradients of this step go to `outputs`.
    void average(const std::vector<const void*>& gradients, const std::vector<void*>& outputs, int threads);
    // Updates the squares by which agreement is judged.
    void observe(int threads);
    // Makes the factors of some layers anew, from the averaged gradients.
    void refresh(const std::vector<StepMoments>& due, const Quintic& quintic, int64_t steps, int threads) const;
    // Puts directions in place of the averaged gradients.
    void direct(const std::vector<StepFactor>& factors, int threads);
    // For every layer <h, g~>, |h|^2, |h|^2 before agreement, and |g~|^2 [layers, 4].
    std::vector<double> sums() const;
    // Measures the weights' norms of the layers `due`, of learning rates `rates`, as the weights are; returns the
    // factors by which the step multiplies the weights to take their growth back. Comes before bound().
    std::vector<double> measure(const std::vector<int64_t>& due, const std::vector<double>& rates, int threads);
    // Decides how far they go; returns <h, g~> of layers, then of other parameters.
    std::vector<double> bound(const std::vector<double>& rates);
    // Moves the parameters at these places.
    void apply(const std::vector<int64_t>& places, double lr, const std::vector<double>& decays, int threads) const;

    Type wide_type_of(const StepLayer& layer) const { return wide_type(parameters_[layer.weight].type); }

  private:
    void require_averages() const;
    template <typename Real>
    void direct_layers(const std::vector<StepFactor>& factors, int threads);

    std::vector<StepParameter> parameters_;
    std::vector<StepLayer> layers_;
    std::vector<void*> squares_;
    std::vector<int64_t> others_;
    StepNumbers numbers_;
    StepSettings settings_;
    std::vector<const void*> gradients_;
    std::vector<void*> outputs_;
    std::vector<double> mean_squares_, expected_, sums_, other_products_, scales_;
};

}  // namespace lnb
