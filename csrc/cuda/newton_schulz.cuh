// Newton-Schulz steps on one symmetric matrix of a thread block, on chip: the power, the factor and the root lie in
// shared memory by tiles, 143 KB for a side of 144. All are polynomials of one matrix, so that products are symmetric
// too and only tiles on and below the diagonal are formed.
#pragma once

#include "newton_schulz.h"
#include "symmetric.cuh"

namespace lnb::cuda {

__host__ __device__ constexpr size_t newton_schulz_floats(int side) {  // of shared memory
    return static_cast<size_t>(3) * lower_tiles(compiled_tiles(side)) * kPaddedTile;
}

__device__ __forceinline__ int thread_place() {
    return static_cast<int>(threadIdx.x) / kTile * (kTile + 1) + static_cast<int>(threadIdx.x) % kTile;
}

// Where a thread finds entries (k, place) of one matrix, for the 16 rows k of a tile.
struct Strip {
    int first, step;

    // Tile (row, column), transposed where it lies above the diagonal.
    __device__ __forceinline__ Strip(int row, int column, int place)
        : first(row >= column ? tile_number(row, column) * kPaddedTile + place
                              : tile_number(column, row) * kPaddedTile + place * (kTile + 1)),
          step(row >= column ? kTile + 1 : 1) {}
};

// sum <- x y, for matrices in shared memory that commute.
template <int kTiles>
__device__ __forceinline__ void multiply(const float* x, const float* y, int side, Lower<kTiles>& sum) {
    const int of_row = static_cast<int>(threadIdx.x) / kTile, of_column = static_cast<int>(threadIdx.x) % kTile;
    for_places<kTiles>([&](int tile, int, int) { sum[tile] = 0; });
    const int tiles = tiles_of(side);
    for (int k_tile = 0; k_tile < tiles; ++k_tile) {
        const float* x_at[kTiles];
        const float* y_at[kTiles];
        int step[kTiles];
        LNB_UNROLL
        for (int i = 0; i < kTiles; ++i) {
            const Strip of_x(k_tile, i, of_row), of_y(k_tile, i, of_column);
            x_at[i] = x + of_x.first;
            y_at[i] = y + of_y.first;
            step[i] = of_x.step;
        }
        for (int k = 0; k < kTile; ++k) {
            float xs[kTiles], ys[kTiles];
            LNB_UNROLL
            for (int i = 0; i < kTiles; ++i) {
                xs[i] = x_at[i][k * step[i]];
                ys[i] = y_at[i][k * step[i]];
            }
            LNB_UNROLL
            for (int i = 0; i < kTiles; ++i) {
                LNB_UNROLL
                for (int j = 0; j <= i; ++j) sum[tile_number(i, j)] = fmaf(xs[i], ys[j], sum[tile_number(i, j)]);
            }
        }
    }
}

// to <- what the threads hold, between two barriers.
template <int kTiles>
__device__ __forceinline__ void store_tiles(float* to, const Lower<kTiles>& a) {
    __syncthreads();
    for_places<kTiles>([&](int tile, int, int) { to[tile * kPaddedTile + thread_place()] = a[tile]; });
    __syncthreads();
}

// a <- the product of the factors for the power `a`; `memory` [newton_schulz_floats(side)] is shared. At least one
// step.
template <int kTiles>
__device__ __forceinline__ void newton_schulz_root(Lower<kTiles>& a, int side, const Quintic& quintic, int steps,
                                                   float* memory) {
    float* const power = memory;
    float* const factor = power + lower_tiles(kTiles) * kPaddedTile;
    float* const root = factor + lower_tiles(kTiles) * kPaddedTile;
    const int place = thread_place();
    store_tiles<kTiles>(power, a);
    // One product after another by the same code: to unroll the four of a step would take four times as long to
    // compile.
    for (int number = 0;; ++number) {
        const int step = number / 4, stage = number % 4;
        const float* const left = stage == 0 || stage == 3 ? power : factor;
        const float* const right = stage == 0 || stage == 2 ? power : stage == 1 ? root : factor;
        if (stage != 1 || step > 0) multiply<kTiles>(left, right, side, a);
        float* to = power;  // T A, and then T A T
        if (stage == 0) {
            for_places<kTiles>([&](int tile, int row, int column) {
                const float linear = quintic.b * power[tile * kPaddedTile + place];
                a[tile] = fmaf(quintic.c, a[tile], linear) + (row == column && row < side ? quintic.a : 0);
            });
            to = factor;
        } else if (stage == 1) {  // the first root is the factor, which the threads still hold
            if (step + 1 == steps) return;
            to = root;
        }
        store_tiles<kTiles>(to, a);
    }
}

}  // namespace lnb::cuda
