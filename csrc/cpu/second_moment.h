// S = [X 1]' [X 1]: the second moment of samples with a column of ones.
#pragma once

#include <cstdint>

#include "../types.h"

namespace lnb {

// Samples, the rows of X, of consecutive entries, `stride` bytes apart; float64 is not supported.
struct Samples {
    const void* data;
    Type type;
    int64_t count, features, stride;
};

// s [d+1, d+1] <- S, in float32. With `round`, entries count as rounded to bfloat16. Sums run in an order that depends
// on the sizes alone, so every run gives the same bits on any number of threads. Throws std::bad_alloc.
void second_moment(const Samples& x, bool round, float* s, int threads);

}  // namespace lnb
