// The few numbers per layer and per row that decide how long a step is: what lies between the passes over tensors.
#pragma once

#include <cstdint>

#include "../step_rules.h"

namespace lnb {

// steps[i] <- steps[i] + 1, and shares[i] <- the share of the average i.
void advance(float* steps, int64_t count, const Momentum& momentum, double* shares);

// One layer's entries of the statistics by which the agreement of its gradients is judged.
struct AgreementLayer {
    const double* squares;  // of this step's gradient, the squared norm of each row [rows]
    const double* bias;     // the squares of the bias's gradient [rows]; or null
    double* row_square;     // its average of decay b_rows, from zero [rows]
    double* mean_square;    // the same, corrected for that start [rows]
    double* independent;    // the sum of |g_s|^2 times the squared weight of g_s in m []
    double* expected;       // of |g~|^2, were all gradients independent []
    const float* step;      // t, which counts this step
    double bias_weight;     // what the bias's squares count
    int64_t rows;
};

void observe_agreement(const AgreementLayer* layers, int64_t count, double b_rows, const Momentum& momentum);

// One layer's numbers.
struct BoundedLayer {
    const double* sums;         // <h, g~>, |h|^2, |h|^2 before agreement, |g~|^2 [4]
    const double* expected;     // of |g~|^2
    const double* weight_norm;  // measured last
    double* growth;             // of the weights since
    double* radius;
    double* coherence;
    const float* step;         // t, which counts this step
    const double* input_size;  // the root of the mean diagonal of its metric
    double usual_norm;         // the least norm that a weight counts as having
    double rate;               // lr
};

// For each layer: products[i] <- <h, g~>, and scales[i] <- what its direction is multiplied by beside lr, so that its
// step is at most the share min(change, largest / rate) of the weights' norm per unit of lr, times its radius. The
// scale is 0 where the product is not finite.
void bound_steps(const BoundedLayer* layers, int64_t count, double change, double largest, const RadiusRule& rule,
                 double* products, double* scales);

}  // namespace lnb
