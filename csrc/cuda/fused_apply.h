// The last pass of a step over a whole model: layers' weights and biases move along their directions, and all other
// parameters by Adam's rule, whose averages are updated in the same pass (lnb_kernels/fused_step/apply.py).
//
// Launches per call: one for every kTensors tensors of one kind of parameter (dtype, and whether it has a master);
// directions and gradients of all dtypes share them, and so do parameter groups.
#pragma once

#include <cstdint>

#include "multi_tensor.h"

namespace lnb::cuda {

enum class Move : int { kWeight, kBias, kOther };

// One parameter. All its tensors are dense, of `size` elements in one memory order, and what is written overlaps
// nothing else of the call.
struct MoveEntry {
    Move move;
    void* theta;     // the parameter, or its float32 master
    void* copy;      // the parameter that becomes its master, rounded; null where `theta` is the parameter
    const void* y;   // the direction of a weight or bias, the gradient of another parameter
    Type parameter;  // of the parameter
    Type y_type;
    const float* row_scales;  // of a weight: one for each `width` elements
    int64_t width;
    float* average;  // of another parameter: m
    float* square;   // of another parameter: v
    int64_t size;
    int32_t place;   // in `scales`, and of a weight in `shorter`
    int32_t number;  // of another parameter: place in `shares`, `corrections` and `finite`
    Scalar lr, decay;
};

// What all entries share, on the device.
struct MoveNumbers {
    const double* scales;
    const double* shorter;      // or null for no shortening
    const double* shares;       // of other parameters
    const double* corrections;  // of other parameters
    bool* finite;               // of other parameters; or null
    const bool* ok;             // or null
    float keep, add;            // m <- keep m + add g
    float take;                 // g~ = share m + take g
    float weight;               // v <- v + weight (g^2 - v)
    float epsilon;
    float most;  // larger entries count as this in Adam's rule
};

// Whether there is a kernel for such an entry: parameters are float32, or of 16 bits with or without a master.
bool moves(Move move, Type parameter, bool has_master, Type y);

// If ok is null or *ok, else nothing is written:
//   weight: theta <- theta - (lr scale row_scale y + ((1 - f) + f lr decay) theta), f = shorter[place] or 1
//   bias:   theta <- theta - (lr scale y + lr decay theta)
//   other:  m, v as above; theta <- theta - (lr scale clip(g~) / (sqrt(v / correction) + epsilon) + lr decay theta)
// A direction whose factor is 0 does not count, even if it is NaN; nor does an entry of Adam's direction that is not
// finite, which makes finite[number] false.
void fused_apply(const MoveEntry* entries, int64_t count, const MoveNumbers& numbers, void* stream);

}  // namespace lnb::cuda
