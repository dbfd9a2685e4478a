// Inverse roots of many small symmetric matrices by Newton-Schulz steps: the product of the factors T = a + b A + c
// A^2, A starting as the matrix and becoming T A T.
//
// All of A, T and their products are polynomials of one matrix: they commute, and every product is symmetric. Only the
// lower triangles are computed, and mirrored. Matrices are handed out to threads whole and stay in the first caches.
//
// Work per matrix of side n and step: about 4 n^3 multiplications and additions in pairs, less in the first and last.
#pragma once

#include <cstdint>

namespace lnb {

struct Quintic {
    float a, b, c;
};

// One matrix [n, n]; `root` does not overlap it. `steps` is at least 1.
void newton_schulz_root(const float* matrix, float* root, int64_t n, const Quintic& quintic, int64_t steps);

// `matrices` and `roots` are [count, n, n], contiguous; they do not overlap. `steps` is at least 1.
void newton_schulz_roots(const float* matrices, float* roots, int64_t count, int64_t n, const Quintic& quintic,
                         int64_t steps, int threads);

}  // namespace lnb
