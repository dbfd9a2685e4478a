#include "step_numbers.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace lnb {
namespace {

// The mean square of a row's gradients stays below this power of the largest number: an infinite one would never end.
const double kMostSquare = std::pow(std::numeric_limits<double>::max(), 0.75);

double finite_or_zero(double value) {
    return std::isfinite(value) ? value : 0;
}

}  // namespace

double Momentum::share(double t) const {
    return (nesterov ? decay : 1) / (1 - std::pow(decay, t));
}

void advance(float* steps, int64_t count, const Momentum& momentum, double* shares) {
    for (int64_t i = 0; i < count; ++i) {
        steps[i] += 1;
        shares[i] = momentum.share(steps[i]);
    }
}

void observe_agreement(const AgreementLayer* layers, int64_t count, double b_rows, const Momentum& momentum) {
    const double b = momentum.decay;
    for (const AgreementLayer* layer = layers; layer != layers + count; ++layer) {
        const double t = std::max(1.0f, *layer->step);
        const double correction = 1 - std::pow(b_rows, t);
        double fresh = 0;
        for (int64_t row = 0; row < layer->rows; ++row) {
            double square = layer->squares[row];
            if (layer->bias != nullptr) square += layer->bias[row];
            square = std::min(square, kMostSquare);
            fresh += square;
            double& average = layer->row_square[row];
            average += (1 - b_rows) * (square - average);
            layer->mean_square[row] = average / correction;
        }
        const double past = *layer->independent * b * b;
        *layer->independent = past + (1 - b) * (1 - b) * fresh;
        const double share = momentum.share(t);
        const double own = share * (1 - b) + momentum.take();
        *layer->expected = share * share * past + own * own * fresh;
    }
}

void bound_steps(const BoundedLayer* layers, int64_t count, double change, double largest, const RadiusRule& rule,
                 double* products, double* scales) {
    for (int64_t i = 0; i < count; ++i) {
        const BoundedLayer& layer = layers[i];
        const double* const total = layer.sums;
        const double damped = finite_or_zero(total[1]), free = finite_or_zero(total[2]),
                     average = finite_or_zero(total[3]);
        const double norm = std::max(*layer.weight_norm, layer.usual_norm);
        double scale = std::isfinite(total[0]) ? 1 : 0;
        const double length = std::max(scale * std::sqrt(free), std::numeric_limits<double>::min());
        scale *= std::min(1.0, std::min(change, largest / layer.rate) * norm / length);
        const double factor = average < rule.opposed * *layer.expected ? rule.shrink : rule.grow;
        *layer.radius = std::clamp(*layer.radius * factor, rule.least, 1.0);
        scale *= *layer.radius;
        const double relative = layer.rate * scale / norm;
        *layer.growth += finite_or_zero(0.5 * damped * relative * relative);
        products[i] = total[0];
        scales[i] = scale;
    }
}

}  // namespace lnb
