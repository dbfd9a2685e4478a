// The step of the trust region "two_sided": directions of all layers, and how far they go, in a launch each.
//
// The mathematics is that of cpu/two_sided.cpp and cpu/step_numbers.h; what each call reads and writes is told in
// lnb_kernels/fused_step/op.py. Sums are the same bits in every run. A call throws std::runtime_error, naming the
// kernel, where a launch fails.
#pragma once

#include <cstdint>

#include "../step_rules.h"
#include "multi_tensor.h"

namespace lnb::cuda {

constexpr int kDirectLayers = 256;  // of one launch
constexpr int kFinishLayers = 256;  // of one launch
constexpr int kLargestBlock = 144;  // side of a diagonal block
constexpr int kSums = 6;            // partial sums of a row in a tile: <H, M>, |H|^2, H mu, <H, g~>, |g~|^2 and |g|^2

enum class Precision : int { kTf32, kTf32x3, kBf16 };

// Independent matrices [rows, inputs] of one layer, dense, one after the other.
struct DirectLayer {
    const void* gradient;
    float* momentum;
    void* direction;
    const void* bias_gradient;  // [matrices, rows], or null without a bias
    const float* bias_momentum;
    const float* inverse;  // [matrices, inputs / size, size, size]
    const float* mean;     // [matrices, inputs], or null without a bias
    const float* root;     // [matrices, rows / side, side, side]
    int64_t first_row;     // among the rows of all layers
    int64_t first_entry;   // of `partials`
    int32_t matrices, rows, inputs, size, side;
    int32_t slot;  // of its shares

    LNB_EVERYWHERE int column_blocks() const { return inputs / size; }
    LNB_EVERYWHERE int row_blocks() const { return rows / side; }
};

// What all layers have in common.
struct DirectNumbers {
    double* partials;
    double* mixed_biases;
    const double* shares;
    const double* bias_shares;  // may be null where no layer has a bias
    double decay, take;
    const bool* ok;
};

void direct_layers(const DirectLayer* layers, int64_t count, Type gradient, Type direction, Precision precision,
                   const DirectNumbers& numbers, void* stream);

// Whether it takes gradients and directions of these types.
bool directs(Type gradient, Type direction);

struct FinishLayer {
    float* bias_momentum;  // [rows], or null without a bias
    float* bias_direction;
    const void* bias_gradient;
    int64_t first_row;
    int64_t first_entry;
    int64_t rows;  // of all matrices
    int32_t column_blocks;
    int32_t slot;  // of its numbers
    int64_t step;  // its place in `steps`
    double usual_norm;
    Scalar rate;
};

struct FinishNumbers {
    float* row_scales;
    double *row_square, *independent, *growth, *radius, *coherence, *sums, *scales, *products, *weight_norm, *shorter;
    const double *partials, *mixed_biases, *input_size;
    const float* steps;
    const double *bias_shares, *norms;  // may be null
    const bool* ok;
};

struct FinishSettings {
    Momentum momentum;
    double b_rows;
    double change, largest;
    RadiusRule radius;
};

void finish_layers(const FinishLayer* layers, int64_t count, Type gradient, const FinishNumbers& numbers,
                   const FinishSettings& settings, void* stream);

}  // namespace lnb::cuda
