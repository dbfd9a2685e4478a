// The refresh of layers of the trust region "two_sided": from the second moments that a step gathered, and its averaged
// gradients, to the blocks of C^-1 and P^(-1/2), for many layers in one call. Derivations:
// python/lnb/statistics/factored.py, python/lnb/statistics/running.py and python/lnb/trust_regions/two_sided.py, whose
// general form python/lnb/statistics/refresh.py calls.
//
// Blocks are handed out to threads in four rounds: averages of second moments; inverses; output moments; roots. What a
// round needs of all blocks of a matrix, a mean of diagonals, is formed between them, so that the result does not
// depend on the number of threads.
//
// Work for a matrix [rows, inputs] with blocks of n inputs and m outputs: about 4 inputs n^2 for inverses, rows inputs
// (2 n + m) for output moments, 17 rows m^2 for roots, in multiplications and additions; the averages are read and
// written once.
#pragma once

#include <cstdint>

#include "newton_schulz.h"

namespace lnb {

// Contiguous float32 arrays of one layer, which is `matrices` independent matrices.
struct RefreshedLayer {
    const float* gathered;  // sums of [x 1]'[x 1] [matrices, inputs / input_block, input_block + 1, input_block + 1]
    float* second_moment;   // their average, from zero, of the same shape
    float* counted;         // how many steps that counts []
    float* inverse;         // the blocks of C^-1 [matrices, inputs / input_block, input_block, input_block]
    float* mean;            // of the inputs [matrices, inputs]; null without a bias
    float* output_moment;   // the average of P, from zero [matrices, rows / output_block, output_block, output_block]
    float* root;            // the blocks of P^(-1/2), of the same shape
    const float* weight;    // the averaged gradient [matrices, rows, inputs]
    const float* bias;      // of the bias [matrices, rows]; null without one
    double* input_size;     // the root of the mean diagonal of the metric, over all matrices []; or null
    int64_t matrices, rows, inputs, input_block, output_block;
    double decay;         // of both averages
    double ridge;         // relative to the mean variance of the inputs
    double sample_ridge;  // what the ridge grows by, times inputs of a block per sample that the average counts
    double data_inputs;   // what it grows by, divided by the samples of this step
    double sample_every;  // one of how many samples was read
    double output_ridge;  // added to each block of P, relative to its mean diagonal
    bool follows;         // another of the layers has the same gathered, second_moment, counted, inverse and mean
};

// A layer that gathered no samples keeps what it has.
void refresh(const RefreshedLayer* layers, int64_t count, const Quintic& quintic, int64_t steps, int threads);

}  // namespace lnb
