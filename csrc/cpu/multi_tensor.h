// Whole-model updates: each call works through lists of tensors, in parts of equal work over the threads.
#pragma once

#include <cstdint>

#include "../types.h"

namespace lnb {

// Two dense tensors of one shape and memory order. `x` is written by ema_combined and apply; memory that is written
// overlaps nothing else of the call.
struct Pair {
    void* x;
    const void* y;
    int64_t size;
};

// Whether the functions below take `x` and `y` of these types: both float64, or neither.
bool supported(Type x, Type y);

// x <- beta x + (1 - beta) y, and of the new x also z <- shares[i] x + take y; without the term of y where take is 0. z
// [count] are as dense as x, of its type, and overlap nothing. Whether a z is read again soon is not known: from
// kStreamedBytes in all on they bypass the caches.
void ema_combined(const Pair* pairs, void* const* z, int64_t count, Type x, Type y, double beta, const double* shares,
                  double take, int threads);
bool combines(Type x, Type y);  // whether it takes these types: x not of 16 bits
constexpr int64_t kStreamedBytes = int64_t{16} << 20;

// products[i] <- sum(x_i * y_i), accumulated in float64 in an order that depends on the sizes alone.
void dot(const Pair* pairs, int64_t count, Type x, Type y, double* products, int threads);

// A matrix of contiguous rows.
struct Matrix {
    const void* x;
    Type type;
    int64_t rows, columns;
};

// The squared norms of all rows of all matrices, one after the other, accumulated in float64.
void squared_row_norms(const Matrix* matrices, int64_t count, double* norms, int threads);

// x <- x - lr (scales[i] y + decays[i] x).
void apply(const Pair* pairs, int64_t count, Type x, Type y, const double* scales, double lr, const double* decays,
           int threads);

// The same of float32 masters x; then copies[i], of type `copy`, <- x rounded to nearest.
void apply_master(const Pair* pairs, void* const* copies, int64_t count, Type copy, const double* scales, double lr,
                  const double* decays, int threads);

// One tensor that moves by Adam's rule, and 1 - decay^t of its average. `direction` and `square` are of float32, of
// float64 where `gradient` is.
struct AdamTensor {
    void* direction;       // the averaged gradient, which becomes the direction
    void* square;          // the average of decay `decay` of the squared gradient, from zero
    const void* gradient;  // of this step
    Type type;             // of the gradient
    int64_t size;
    double correction;
};

// square <- decay square + (1 - decay) gradient^2, direction <- direction / (sqrt(square / correction) + epsilon).
// Entries beyond what can be squared count as the largest that can, of either sign. products[i] <- <direction, averaged
// gradient>.
void adam(const AdamTensor* tensors, int64_t count, double decay, double epsilon, double* products, int threads);

// Whether no entry of any x is NaN or infinite; y is not read.
bool all_finite(const Pair* pairs, int64_t count, Type x, int threads);

}  // namespace lnb
