// The refresh of the two-sided metric on the GPU: four kernels, each in one launch for every kInputLayers or
// kOutputLayers layers, whatever their sizes; the host never waits. Blocks have sides of at most 144.
//
//   average_moments   second moments of the inputs, averaged
//   input_metrics     C^-1 and the mean from them
//   output_moments    per block of neurons the sum over input blocks of  G C^-1 G' + b b',  G = g~ - b mu'
//   output_roots      their average, of mean diagonal 1, to the power -1/2
//
// What one kernel leaves for the next: `sums` [entries, 2], sums over an entry of the diagonal and of the squares of
// the means; and `facts` [layers, kFacts], whether the layer's state may change, what corrects its average for its
// start at zero, a factor, its ridge, and the root of the mean diagonal of its metric, over all groups.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../types.h"
#include "newton_schulz.h"

namespace lnb::cuda {

constexpr int kInputLayers = 280;   // of one launch
constexpr int kOutputLayers = 172;  // of one launch
constexpr int kFacts = 4;           // numbers per layer

// The inputs of one layer: `groups` independent metrics of `blocks` diagonal blocks.
struct InputLayer {
    const float* gathered;  // [groups, blocks, side + 1, side + 1]: [X 1]'[X 1]; groups are group_stride entries apart
    const bool* squarable;  // whether squares of the inputs are in range; null for yes
    float* average;  // [groups, blocks, side + 1, side + 1]: of [X 1]'[X 1] / N; no average of before if decay is 0
    float* steps;    // [], how many the average counts; null if decay is 0
    float* inverse;  // [groups, blocks, side, side]: C^-1
    float* mean;     // [groups, blocks * side]; null where no bias takes part
    int64_t group_stride;
    double decay, ridge;
    double sample_ridge;  // what the ridge grows by, times inputs of a block per sample of the average
    double data_inputs;   // what it grows by, divided by the samples of this step
    double sample_every;  // samples of which one is in `gathered`
    int32_t side, groups, blocks, relative;  // relative: the ridge is one of the mean diagonal
};

// average <- its average with gathered / N, and steps + 1, where N > 0, *squarable and *ok hold; and sums and facts.
void average_moments(const InputLayer* layers, int64_t count, const bool* ok, double* sums, float* facts, void* stream);

// inverse and mean from the averages, of layers that may change. A block that has no inverse in float32 gets a ridge
// that is larger by its mean diagonal, and if that does not help, the inverse of its diagonal. `noise`: the variance,
// in units of the mean square, below which inputs do not vary.
void input_metrics(const InputLayer* layers, int64_t count, double noise, const double* sums, float* facts,
                   void* stream);

// An averaged gradient g~ = share (decay m + (1 - decay) g) + take g, or g itself where m is null.
struct Gradient {
    const void* g;
    Type type;          // of g: float32, bfloat16 or float16
    const float* m;     // the average before this step, or null
    const void* share;  // [], float32 or float64
    Type share_type;
};

// The outputs of one layer: a gradient [groups, rows, inputs] in blocks of `side` rows.
struct OutputLayer {
    Gradient weight, bias;  // bias.g null without one
    float* partials;        // [partial_floats], between the two kernels
    double* scales;         // [partial_count, 2], likewise
    const float* inverse;   // [groups, inputs / input_side, input_side, input_side]
    const float* mean;      // [groups, inputs], or null
    float* average;         // [groups, rows / side, side, side], or null
    float* root;            // [groups, rows / side, side, side]
    double* input_size;     // [], gets the root of the mean diagonal of the inputs' metric; null for none
    float momentum, take;   // of the gradients
    double decay;           // of the average
    float ridge;            // added to its diagonal, relative to the mean of each block's
    int32_t layer;          // whose facts they are
    int32_t groups, rows, inputs, side, input_side;
    int32_t parts;  // parts_of(inputs, input_side)
};

// The largest side of blocks that fit into this much shared memory of a thread block; 0 if none does.
int largest_side(size_t shared_bytes);

// Sums over this many input blocks are taken by one thread block; their number is that of a layer's parts.
constexpr int kInputBlocks = 6;

constexpr int32_t parts_of(int32_t inputs, int32_t input_side) {
    return (inputs / input_side + kInputBlocks - 1) / kInputBlocks;
}

// What output_moments leaves: of every block of neurons its parts, as the tiles of a lower triangle, and of each part
// its trace and the power of two that it has to be multiplied by.
int64_t partial_floats(const OutputLayer& layer);
int64_t partial_count(const OutputLayer& layer);

void output_moments(const OutputLayer* layers, int64_t count, const float* facts, void* stream);

// average, root and input_size, of layers that may change. A moment that has no root in float32, and a zero one, gets a
// multiple of the identity.
void output_roots(const OutputLayer* layers, int64_t count, const Quintic& quintic, int steps, const float* facts,
                  void* stream);

}  // namespace lnb::cuda
