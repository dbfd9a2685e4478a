// The scalar rules that decide how long a step is: of an average, of a row and of a layer. The CPU's code and the CUDA
// kernels compile the same functions. Derivations: python/lnb/damping.py and python/lnb/weight_bound.py.
#pragma once

#include <cfloat>
#include <cmath>
#include <cstdint>

#ifdef __CUDACC__
#define LNB_EVERYWHERE __host__ __device__ __forceinline__
#else
#define LNB_EVERYWHERE inline
#endif

namespace lnb {

// The mean square of a row's gradients stays below DBL_MAX^(3/4): an infinite one would never end.
constexpr double kMostSquare = 0x1p768;

// The most that a relative ridge grows by for what few samples leave uncertain: the metric is nearly round then.
constexpr double kMostSampleRidge = 2;

LNB_EVERYWHERE double finite_or_zero(double value) {
    return std::isfinite(value) ? value : 0;
}

LNB_EVERYWHERE double least(double x, double y) {
    return y < x ? y : x;
}

LNB_EVERYWHERE double most(double x, double y) {
    return x < y ? y : x;
}

// The exponent e with which 2^e, a normal float, brings the largest entry into [0.5, 1), or what is too small or too
// large for that nearer to it; 0 where that entry is zero or not finite.
LNB_EVERYWHERE int unit_exponent(float largest) {
    if (!(largest > 0) || largest > FLT_MAX) return 0;
    int exponent;
    std::frexp(largest, &exponent);
    return exponent < -126 ? 126 : exponent > 126 ? -126 : -exponent;
}

// How gradients are averaged: m <- b m + (1 - b) g, and g~ = m / (1 - b^t), or with Nesterov's look-ahead
// b m / (1 - b^t) + (1 - b) g, after t steps.
struct Momentum {
    double decay;
    bool nesterov;

    LNB_EVERYWHERE double share(double t) const { return (nesterov ? decay : 1) / (1 - std::pow(decay, t)); }  // of m
    LNB_EVERYWHERE double take() const { return nesterov ? 1 - decay : 0; }                                    // of g
};

// The mean square of a row's gradients, its average of decay b_rows from zero, after this step's.
LNB_EVERYWHERE double averaged_square(double average, double square, double b_rows) {
    return average + (1 - b_rows) * (least(square, kMostSquare) - average);
}

// The number by which a row's average is judged: the mean square of its gradients, at least this step's. A gradient
// that is far longer than those before it is most of the average, and would look like many that agree.
LNB_EVERYWHERE double judged_square(double mean_square, double square) {
    return most(mean_square, least(square, kMostSquare));
}

// What the square of a bias's gradient counts beside those of the weights where agreement is judged. Data have units of
// their own: in layers that see data, of which the size of the inputs is known, it counts where all others are zero.
constexpr double kDataBias = 0x1p-100;

LNB_EVERYWHERE double bias_weight(double input_size) {
    return input_size > 0 ? kDataBias : 1;
}

// The divisor of a row: the root of <H, M> + c^2. 0 where that is not positive: it is no descent direction.
LNB_EVERYWHERE double inverse_norm(double product) {
    return product > 0 ? 1 / std::sqrt(product) : 0;
}

// How far a row's gradients agree, from |G|^2 + w b^2 of their average and the mean square of each.
LNB_EVERYWHERE double agreement(double square, double mean_square) {
    return mean_square > 0 ? least(1.0, std::sqrt(square / mean_square)) : 0;
}

// The sum of |g_s|^2 times the squared weight of g_s in m; returns |g~|^2, were all gradients independent. `fresh` is
// |g|^2 of this step.
LNB_EVERYWHERE double expect_independent(double& independent, double fresh, double t, const Momentum& momentum) {
    const double b = momentum.decay;
    const double past = independent * b * b;
    independent = past + (1 - b) * (1 - b) * fresh;
    const double share = momentum.share(t);
    const double own = share * (1 - b) + momentum.take();
    return share * share * past + own * own * fresh;
}

// How the radius, the share of its region that a layer uses, changes; it stays in [least, 1]. It is multiplied by
// `shrink`, down to `floor`, where |g~|^2 is below `opposed` times what independent gradients would make it. Else
// coherence, the average of decay b_coherence of that ratio, decides. In the first `opening` steps the radius grows, by
// `grow` where coherence is above `loud`, the less the nearer it is to `quiet`, and not at all below. After them,
// between `quiet` and `loud` gradients are noise, and the radius goes to `floor`, shrinking by `calm`; above, it grows
// the faster the more gradients agree, and below by recovery(). What made a radius smaller than `floor` is not judged
// here: it stays or grows. Where steps go back and forth, it goes to `floor` at once, and coherence starts anew: where
// the square of the weights' norm has changed by less than `turning` times what steps that are at right angles would
// change it by, and these by more than `telling`. The norm is measured every `interval` steps, and more
// often in the first ones, some of them a step apart: these are not judged.
struct RadiusRule {
    double opposed, shrink, grow, least;
    double b_coherence, quiet, loud, calm, floor, recover, opening, turning, telling, interval;
};

// One step's ratio counts as at most this in coherence; the radius grows by all of `grow` where coherence is above
// kPlain.
constexpr double kMostCoherence = 4, kPlainCoherence = 2;

// Coherence below the band of noise where radii begin to grow, where they grow by all of `recover`, the last where they
// do, and where they do no more.
constexpr double kGrows = 0.35, kGrowsMost = 0.4, kGrowsMostTo = 0.5, kGrowsTo = 0.6;

// The factor by which a radius grows below the band of noise: 1 for layers that see data, whose gradients have the
// data's noise in them however much those of other layers oppose each other.
LNB_EVERYWHERE double recovery(double coherence, double recover, bool sees_data) {
    if (sees_data) return 1;
    const double up = (coherence - kGrows) / (kGrowsMost - kGrows);
    const double down = (kGrowsTo - coherence) / (kGrowsTo - kGrowsMostTo);
    return 1 + (recover - 1) * most(0.0, least(1.0, least(up, down)));
}

// The new radius after step t, whose |g~|^2 is `gradient`; updates coherence.
LNB_EVERYWHERE double next_radius(double radius, double gradient, double expected, double t, bool sees_data,
                                  const RadiusRule& rule, double& coherence) {
    const double ratio = expected > 0 ? least(finite_or_zero(gradient) / expected, kMostCoherence) : 0;
    coherence += (1 - rule.b_coherence) * (ratio - coherence);
    const double mean = coherence / (1 - std::pow(rule.b_coherence, t));
    double next = radius * rule.grow;
    if (finite_or_zero(gradient) < rule.opposed * expected) {
        next = most(radius * rule.shrink, least(radius, rule.floor));
    } else if (t <= rule.opening) {
        const double opened = mean < rule.loud ? most(0.0, (mean - rule.quiet) / (rule.loud - rule.quiet)) : 1.0;
        next = radius * (1 + (rule.grow - 1) * opened);
    } else if (mean > rule.quiet && mean < rule.loud) {
        next = most(radius * rule.calm, least(next, rule.floor));
    } else if (mean >= rule.loud) {
        const double agreed = least(1.0, (mean - rule.loud) / (kPlainCoherence - rule.loud));
        next = radius * (1 + (rule.grow - 1) * agreed);
    } else {
        next = radius * recovery(mean, rule.recover, sees_data);
    }
    return least(most(next, rule.least), 1.0);
}

// A layer's <h, g~>, |h|^2, |h|^2 before agreement, and |g~|^2.
struct LayerSums {
    double product, norm, free_norm, gradient;
};

// A norm whose square changes by less than this, over what the steps' squares are, is not the steps': somebody holds
// it.
constexpr double kHeld = 1e-4;

// Whether the steps since the norm was measured last went back and forth. Relative to it, half the sum of their squares
// is `growth`.
LNB_EVERYWHERE bool turned_back(double measured, double norm, double growth, const RadiusRule& rule) {
    const double walked = 2 * growth, longer = measured / norm, change = std::fabs(longer * longer - 1);
    return walked > rule.telling && change < rule.turning * walked && change > kHeld * walked;
}

// What a step does that measured the norm of a layer's weights. It returns the factor by which it also multiplies them:
// the growth since the norm was measured last is taken back, unless there was none, or the layer stands still. The new
// norm is that after it. `t` counts the layer's steps with this one.
LNB_EVERYWHERE double take_back(double measured, const LayerSums& sums, double t, double rate, const RadiusRule& rule,
                                double& norm, double& growth, double& radius, double& coherence) {
    const double free = sums.free_norm;
    const bool moving = norm > 0 && std::isfinite(sums.product) && std::isfinite(free) && free != 0 && rate != 0;
    if (moving && t > rule.interval + 1 && turned_back(measured, norm, growth, rule)) {
        radius = least(radius, rule.floor);
        coherence = 0;
    }
    const double factor = moving ? 1 / std::sqrt(1 + 2 * growth) : 1;
    if (moving) growth = 0;
    norm = measured * factor;
    return factor;
}

// The size of the pre-activations that weights of the usual norm, sqrt(rows / 3), make of a layer's data, at least 1.
LNB_EVERYWHERE double output_size(double input_size) {
    return most(1.0, finite_or_zero(input_size / std::sqrt(3.0)));
}

// What a layer's direction is multiplied by beside lr, `rate`, so that its step changes pre-activations by their
// usual size, and is at most the share min(change, largest / rate) of the weights' norm per unit of lr, times its
// radius. 0 where the product is not finite. `t` counts the layer's steps with this one.
LNB_EVERYWHERE double bounded_scale(const LayerSums& sums, double expected, double t, double weight_norm,
                                    double usual_norm, double input_size, double rate, double change, double largest,
                                    const RadiusRule& rule, double& growth, double& radius, double& coherence) {
    const double norm = most(weight_norm, usual_norm);
    double scale = std::isfinite(sums.product) ? output_size(input_size) : 0;
    const double length = most(scale * std::sqrt(finite_or_zero(sums.free_norm)), DBL_MIN);
    scale *= least(1.0, least(change, largest / rate) * norm / length);
    radius = next_radius(radius, sums.gradient, expected, t, input_size > 0, rule, coherence);
    scale *= radius;
    const double relative = rate * scale / norm;
    growth += finite_or_zero(0.5 * finite_or_zero(sums.norm) * relative * relative);
    return scale;
}

}  // namespace lnb
