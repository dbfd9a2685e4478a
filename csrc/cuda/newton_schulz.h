// Products of Newton-Schulz factors on the GPU, one thread block for each matrix.
#pragma once

#include <cstdint>

namespace lnb::cuda {

struct Quintic {
    float a, b, c;
};

// roots[i] <- the product of the steps' factors T = a + b A + c A^2, A starting as powers[i], symmetric, and becoming
// T A T; for sides up to 144 and at least one step, in one launch. Only lower triangles are read.
void newton_schulz_roots(const float* powers, float* roots, int64_t count, int side, const Quintic& quintic, int steps,
                         void* stream);

}  // namespace lnb::cuda
