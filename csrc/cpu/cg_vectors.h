// The vectors' part of conjugate gradients, between the products with A, which are the caller's.
//
// For every row of a right-hand side g: from h = h0, r = g - A h, z = P r, p = z, each step does alpha = <r, z> / <p, A
// p>, h += alpha p, r -= alpha A p, z = P r, beta = <r, z> / <r, z>_old, p = z + beta p. P is the arrow preconditioner:
// of a row (w, b), w1 = (w - mu b) / var and b1 = b - sum(mu w1); without a bias, w1 = w / (var + mu^2). A scope unit -
// a row, or all rows of a layer - is done where ||r|| <= stop ||g|| or <p, A p> <= 0: alpha is 0 then.
//
// z is never stored: a phase that needs it forms it again from r. A step with one unit per row is one phase, in which a
// row stays in the first cache; with one unit per layer it is three, which read 9 vectors and write 3.
#pragma once

#include <cstdint>

namespace lnb {

// Contiguous float32 tensors [layers, m, columns]; columns = d, or d + 1 with a bias.
struct CgVectors {
    const float* g;
    const float* mu;  // [layers, d], or null for P = I
    const float* var;
    float *h, *r, *p;
    const float* ap;  // the product of h (may be null for zero) or of p
    int64_t layers, m, columns, d;
};

// Of every unit, or of every row before they are added up.
struct CgSums {
    double* gg;     // <g, g>
    double* rr[2];  // <r, r>, before and after the step
    double* rz[2];  // <r, z>, likewise
    double* pap;    // <p, A p>
};

enum class CgPhase : int {
    kStart,      // r <- g - ap, p <- P r; gg, rr[1], rz[1] of rows
    kProduct,    // pap of rows
    kMove,       // h, r by alpha; rr[1], rz[1] of rows
    kDirection,  // p by beta
    kStep,       // the last three at once, where each row is a unit
};

// `units` holds the sums that the phase reads, one for every `rows_per_unit` rows, `rows` those that it writes; they
// are the same where each row is a unit.
void cg_phase(CgPhase phase, const CgVectors& vectors, int64_t rows_per_unit, const CgSums& units, const CgSums& rows,
              double stop, int threads);

}  // namespace lnb
