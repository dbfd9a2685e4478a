// The directions of the trust region "two_sided", for many layers in one call, in place of the gradients.
//
// With a gradient G [rows, inputs], b [rows] of its bias, C^-1 and P^(-1/2) block-diagonal, and mu the inputs' mean:
//
//     M = P^(-1/2) G,  c = P^(-1/2) b,  M <- M - c mu',  H = M C^-1,  h = c - H mu
//
// and every row of (H, h) is divided by the root of its <H, M> + c^2; where that is not positive, the row is zero. With
// v, the mean square of each row's gradient, the row is then multiplied by its agreement,
// min(1, sqrt((|G|^2 + w b^2) / v)), where w says what the bias counts. What a step's size and its check for finite
// numbers need, <H, G> + <h, b> and |H|^2, and |G|^2 + w |b|^2 are summed while rows of both are in the cache.
//
// A block of rows of H needs the same block of G and nothing else: blocks are handed out to threads, and each is
// overwritten once its M is formed. A caller that needs no gradient after its direction then has no second set of
// tensors, whose memory a CPU's allocator would take from the system, and the system make anew, in every step.
//
// Work: 2 rows inputs (input_block + output_block) multiplications and additions; G read, H written once.
#pragma once

#include <cstdint>

namespace lnb {

// Contiguous arrays of one layer, which is `matrices` independent matrices; Real is float or double.
template <typename Real>
struct TwoSidedLayer {
    Real* weight;           // G [matrices, rows, inputs], which becomes H
    Real* bias;             // b [matrices, rows], which becomes h; or null
    const Real* inverse;    // the blocks of C^-1 [matrices, inputs / input_block, input_block, input_block]
    const Real* mean;       // mu [matrices, inputs]; null without a bias
    const Real* root;       // the blocks of P^(-1/2) [matrices, rows / output_block, output_block, output_block]
    const double* squares;  // v [matrices, rows]; or null
    // <H, G> + <h, b>, |H|^2, the same were all agreements 1, and |G|^2 + w |b|^2 of every matrix [matrices, 4]
    double* sums;
    double bias_weight;  // w
    int64_t matrices, rows, inputs, input_block, output_block;
};

template <typename Real>
void two_sided_directions(const TwoSidedLayer<Real>* layers, int64_t count, int threads);

}  // namespace lnb
