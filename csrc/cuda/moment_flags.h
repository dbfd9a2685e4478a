// The checks of the second moments that a step gathered, before it uses them.
#pragma once

#include <cstdint>

namespace lnb::cuda {

constexpr int kMoments = 1024;  // of one launch

// Matrices [count, side, side] of one layer, side by side, float32.
struct Moments {
    const float* values;
    int64_t count;
    int64_t side;
};

// For each layer i, sums[i] <- false where an entry of a matrix's last row is NaN or infinite, the sums of the inputs;
// and squares[i] <- false where one of a diagonal is. Else nothing is written.
void moment_flags(const Moments* layers, int64_t count, bool* sums, bool* squares, void* stream);

}  // namespace lnb::cuda
