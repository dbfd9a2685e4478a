#include "step_numbers.h"

#include <algorithm>

namespace lnb {

void advance(float* steps, int64_t count, const Momentum& momentum, double* shares) {
    for (int64_t i = 0; i < count; ++i) {
        steps[i] += 1;
        shares[i] = momentum.share(steps[i]);
    }
}

void observe_agreement(const AgreementLayer* layers, int64_t count, double b_rows, const Momentum& momentum) {
    for (const AgreementLayer* layer = layers; layer != layers + count; ++layer) {
        const double t = std::max(1.0f, *layer->step);
        const double correction = 1 - std::pow(b_rows, t);
        double fresh = 0;
        for (int64_t row = 0; row < layer->rows; ++row) {
            double square = layer->squares[row];
            if (layer->bias != nullptr) square += layer->bias_weight * layer->bias[row];
            fresh += least(square, kMostSquare);
            layer->row_square[row] = averaged_square(layer->row_square[row], square, b_rows);
            layer->mean_square[row] = judged_square(layer->row_square[row] / correction, square);
        }
        *layer->expected = expect_independent(*layer->independent, fresh, t, momentum);
    }
}

void bound_steps(const BoundedLayer* layers, int64_t count, double change, double largest, const RadiusRule& rule,
                 double* products, double* scales) {
    for (int64_t i = 0; i < count; ++i) {
        const BoundedLayer& layer = layers[i];
        const LayerSums sums{layer.sums[0], layer.sums[1], layer.sums[2], layer.sums[3]};
        products[i] = sums.product;
        scales[i] = bounded_scale(sums, *layer.expected, std::max(1.0f, *layer.step), *layer.weight_norm,
                                  layer.usual_norm, *layer.input_size, layer.rate, change, largest, rule, *layer.growth,
                                  *layer.radius, *layer.coherence);
    }
}

}  // namespace lnb
