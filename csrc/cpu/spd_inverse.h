// Inverses of many small symmetric positive definite matrices.
//
// A = U'U by blocks of kPanel columns, V = U^-1, A^-1 = V V'; everything but the diagonal blocks by products. Matrices
// are handed out to threads whole: a library's threaded factorisation of one small matrix spends its time waiting.
//
// Work per matrix of side n: about 2 n^3 multiplications and additions; A read, its inverse written once.
#pragma once

#include <cstdint>

namespace lnb {

// One matrix [n, n]: false where it is not positive definite in float32, and the inverse is not written. Only its upper
// triangle is read.
bool spd_inverse(const float* matrix, float* inverse, int64_t n);

// `matrices` and `inverses` are [count, n, n], contiguous. Where a matrix is not positive definite in float32,
// `failed` is 1 and the inverse is not written; only the upper triangles are read.
void spd_inverses(const float* matrices, float* inverses, uint8_t* failed, int64_t count, int64_t n, int threads);

}  // namespace lnb
