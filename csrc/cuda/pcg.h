// Conjugate gradients on the GPU, over layers of different shapes in the same launches.
//
// For every row of a right-hand side g: from h = h0, r = g - A h, z = P r, p = z, each step does alpha = <r, z> / <p, A
// p>, h += alpha p, r -= alpha A p, z = P r, beta = <r, z> / <r, z>_old, p = z + beta p. P is the arrow preconditioner:
// of a row (w, b), w1 = (w - mu b) / var and b1 = b - sum(mu w1); without a bias, w1 = w / (var + mu^2). A scope unit -
// a row, or all rows of a layer - is done where ||r|| <= stop ||g|| or <p, A p> <= 0: alpha is 0 then, on the device.
#pragma once

#include <cstdint>

namespace lnb::cuda {

// --- All iterations in one launch, for an explicit A = S / N + ridge diag(1..1, 0) and a unit per row.

constexpr int kRowColumns = 129;   // of g at most: 128 features and a bias
constexpr int kRowProblems = 128;  // of one launch

struct RowProblem {
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

void pcg_rows(const RowProblem* problems, int64_t count, int iterations, float ridge, float stop, void* stream);

// --- The vectors' part of an iteration, between the products with A, which are the caller's.

constexpr int kVectorColumns = 4096;  // of g at most
constexpr int kVectorProblems = 256;  // of one launch

// One layer of contiguous float32 tensors; `unit` is that of all its rows, or of its first row where each row is one.
struct VectorProblem {
    const float* g;
    const float* mu;  // [d], or null for P = I
    const float* var;
    float *h, *r, *p, *ap;
    int64_t first_row;  // of all rows of the call
    int64_t unit;
    int32_t m, d, columns;
};

// Sums of one unit, or before they are added up, of one row.
struct Sums {
    double* gg;     // <g, g>
    double* rr[2];  // <r, r>, before and after the step
    double* rz[2];  // <r, z>, likewise
    double* pap;    // <p, A p>
};

enum class Phase : int {
    kStart,      // r <- g - ap (the product with h0, if there is one), p <- P r; gg, rr[1], rz[1] of rows
    kProduct,    // pap of rows
    kMove,       // h, r by alpha; rr[1], rz[1] of rows
    kDirection,  // p by beta
    kStep,       // the last three at once, where each row is a unit
};

// `units` holds the sums that the phase reads, `rows` those that it writes; they are the same where each row is a unit.
void pcg_phase(Phase phase, const VectorProblem* problems, int64_t count, bool unit_per_row, const Sums& units,
               const Sums& rows, double stop, void* stream);

}  // namespace lnb::cuda
