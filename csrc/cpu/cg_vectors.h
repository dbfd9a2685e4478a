// The vectors' part of conjugate gradients (cg_phase.h) on the CPU.
//
// z is never stored: a phase that needs it forms it again from r. A step with one unit per row is one phase, in which a
// row stays in the first cache; with one unit per layer it is three, which read 9 vectors and write 3.
#pragma once

#include <cstdint>

#include "../cg_phase.h"

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

// There is a unit for every `rows_per_unit` rows.
void cg_phase(CgPhase phase, const CgVectors& vectors, int64_t rows_per_unit, const CgSums& units, const CgSums& rows,
              double stop, int threads);

}  // namespace lnb
