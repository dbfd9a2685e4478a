// The inverse of a symmetric positive definite matrix in registers, by Gauss-Jordan elimination without pivoting: one
// sweep per row. Sweep k subtracts u u' with u = column k / sqrt(pivot), then puts u / sqrt(pivot) in place of row and
// column k, and -1 / pivot at their crossing. The pivots are those of Cholesky's factorisation, and so is the order of
// the error (Peters and Wilkinson, 1975). u u' has the same bits on both sides of the diagonal.
#pragma once

#include "symmetric.cuh"

namespace lnb::cuda {

// a <- -a^-1; `columns` [2, kTiles * 16] is shared memory. False, in all threads, where a pivot is not positive and
// finite: then `a` is undefined, and `columns` may be used again after a barrier.
template <int kTiles>
__device__ __forceinline__ bool sweep_inverse(Lower<kTiles>& a, int side, float* columns) {
    const int y = static_cast<int>(threadIdx.x) / kTile, x = static_cast<int>(threadIdx.x) % kTile;
    LNB_UNROLL
    for (int k_tile = 0; k_tile < kTiles; ++k_tile) {
        const int rest = side - k_tile * kTile, count = rest < kTile ? rest : kTile;
        for (int k = 0; k < count; ++k) {
            // Two columns take turns: one barrier keeps a sweep's readers apart from the next one's writers.
            float* column = columns + k % 2 * kTiles * kTile;
            LNB_UNROLL
            for (int i = 0; i < kTiles; ++i) {
                if (i >= k_tile && x == k) column[i * kTile + y] = a[tile_number(i, k_tile)];
                if (i < k_tile && y == k) column[i * kTile + x] = a[tile_number(k_tile, i)];
            }
            __syncthreads();
            const float pivot = column[k_tile * kTile + k];
            if (!(pivot > 0 && pivot <= 3.4028234e38f)) return false;
            const float root = 1 / sqrtf(pivot);
            float of_row[kTiles], of_column[kTiles];
            LNB_UNROLL
            for (int i = 0; i < kTiles; ++i) {
                of_row[i] = column[i * kTile + y] * root;
                of_column[i] = column[i * kTile + x] * root;
            }
            LNB_UNROLL
            for (int i = 0; i < kTiles; ++i) {
                LNB_UNROLL
                for (int j = 0; j <= i; ++j) {
                    float& entry = a[tile_number(i, j)];
                    entry = fmaf(-of_row[i], of_column[j], entry);
                    if (j == k_tile && x == k) entry = of_row[i] * root;
                    if (i == k_tile && y == k) entry = j == k_tile && x == k ? -root * root : of_column[j] * root;
                }
            }
        }
    }
    return true;
}

}  // namespace lnb::cuda
