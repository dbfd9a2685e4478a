// Conjugate gradients on the GPU, over layers of different shapes in the same launches.
// The method is that of cg_phase.h, and masks are evaluated on the device.
#pragma once

#include <cstdint>

#include "../cg_phase.h"

namespace lnb::cuda {

// Rows of one layer at most: their numbers are 32-bit, and so are those of a block's rows beyond the last.
constexpr int kLayerRows = INT32_MAX - 31;

// --- All iterations in one launch, for an explicit A = S / N + ridge diag(1..1, 0) and a unit per row.

constexpr int kRowColumns = 129;    // of g at most: 128 features and a bias
constexpr int kRowEquations = 128;  // of one launch

struct RowEquation {
    const float* s;    // [d + 1, d + 1] with N last
    const float* g;    // [m, columns], columns = d, or d + 1 with a bias
    const float* h0;   // like g, or null for zero
    const float* mu;   // [d], or null for P = I
    const float* var;  // [d], or null
    float* h;          // [m, columns]
    float* norms;      // ||r|| after k steps of row i at [k * norm_stride + i]
    int64_t norm_stride;
    int32_t m, d, columns;
};

void pcg_rows(const RowEquation* equations, int64_t count, int iterations, float ridge, float stop, void* stream);

// --- The vectors' part of an iteration, between the products with A, which are the caller's.

constexpr int kVectorColumns = 4096;   // of g at most
constexpr int kVectorEquations = 256;  // of one launch

// One layer of contiguous float32 tensors; `unit` is that of all its rows, or of its first row where each row is one.
struct VectorEquation {
    const float* g;
    const float* mu;  // [d], or null for P = I
    const float* var;
    float *h, *r, *p, *ap;
    int64_t first_row;  // of all rows of the call
    int64_t unit;
    int32_t m, d, columns;
};

void pcg_phase(CgPhase phase, const VectorEquation* equations, int64_t count, bool unit_per_row, const CgSums& units,
               const CgSums& rows, double stop, void* stream);

}  // namespace lnb::cuda
