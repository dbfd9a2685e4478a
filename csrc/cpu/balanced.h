// The directions of the trust region "balanced", for many layers in one call.
//
// With a gradient G [rows, inputs], b [rows] of its bias, C^-1 and P^(-1/2) block-diagonal, and mu the inputs' mean:
//
//     M = P^(-1/2) G,  c = P^(-1/2) b,  M <- M - c mu',  H = M C^-1,  h = c - H mu
//
// and every row of (H, h) is divided by the root of its <H, M> + c^2; where that is not positive, the row is zero. What
// a step's size and its check for finite numbers need, <H, G> + <h, b>, is summed while rows of both are in the cache.
// Every row of H needs one block of rows of G and nothing else, so rows are handed out to threads, and M, which is a
// few rows at a time, stays in the cache.
//
// Work: 2 rows inputs (input_block + output_block) multiplications and additions; G read, H written once.
#pragma once

#include <cstdint>

namespace lnb {

// Contiguous float32 arrays of one layer, which is `matrices` independent matrices.
struct BalancedLayer {
    const float* weight;    // G [matrices, rows, inputs]
    const float* bias;      // b [matrices, rows], or null
    const float* inverse;   // the blocks of C^-1 [matrices, inputs / input_block, input_block, input_block]
    const float* mean;      // mu [matrices, inputs]; null without a bias
    const float* root;      // the blocks of P^(-1/2) [matrices, rows / output_block, output_block, output_block]
    float* direction;       // H, like G
    float* bias_direction;  // h, like b
    double* products;       // <H, G> + <h, b> of every matrix [matrices]
    int64_t matrices, rows, inputs, input_block, output_block;
};

void balanced_directions(const BalancedLayer* layers, int64_t count, int threads);

}  // namespace lnb
