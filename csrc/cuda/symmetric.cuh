// Symmetric matrices of one thread block each, cut into tiles of 16 x 16. Only tiles on and below the diagonal are
// kept.
//
// A block has 256 threads, one for each place in a tile: in registers, a thread holds that place of every tile. In
// shared memory the tiles follow each other with rows of 17 entries, so that the rows and the columns of a tile both
// lie in different banks. Sides that are no multiple of 16 are padded with zeros.
#pragma once

#include "portable.h"

namespace lnb::cuda {

constexpr int kTile = 16;
constexpr int kTileThreads = kTile * kTile;
constexpr int kLargestSide = 9 * kTile;
constexpr int kPaddedTile = kTile * (kTile + 1);

__host__ __device__ constexpr int lower_tiles(int tiles) {
    return tiles * (tiles + 1) / 2;
}

// The number of tile (row, column), column <= row.
__host__ __device__ constexpr int tile_number(int row, int column) {
    return lower_tiles(row) + column;
}

__host__ __device__ constexpr int tiles_of(int side) {
    return (side + kTile - 1) / kTile;
}

// For how many tiles per side a kernel is compiled that serves `side`.
__host__ __device__ constexpr int compiled_tiles(int side) {
    const int tiles = tiles_of(side);
    return tiles == 9 ? 9 : tiles <= 2 ? 2 : (tiles + 1) / 2 * 2;
}

// What a thread holds of a matrix: its place in every tile.
template <int kTiles>
using Lower = float[lower_tiles(kTiles)];

// Calls f(tile, row, column) for the thread's place in every tile, padding included.
template <int kTiles, typename F>
__device__ __forceinline__ void for_places(F f) {
    const int y = static_cast<int>(threadIdx.x) / kTile, x = static_cast<int>(threadIdx.x) % kTile;
    LNB_UNROLL
    for (int i = 0; i < kTiles; ++i) {
        LNB_UNROLL
        for (int j = 0; j <= i; ++j) f(tile_number(i, j), i * kTile + y, j * kTile + x);
    }
}

// a <- entry(row, column), which is asked for row >= column only, and zeros in the padding.
template <int kTiles, typename F>
__device__ __forceinline__ void load_symmetric(Lower<kTiles>& a, int side, F entry) {
    const int y = static_cast<int>(threadIdx.x) / kTile, x = static_cast<int>(threadIdx.x) % kTile;
    const int low = x > y ? x : y, left = x > y ? y : x;  // in a tile on the diagonal
    LNB_UNROLL
    for (int i = 0; i < kTiles; ++i) {
        LNB_UNROLL
        for (int j = 0; j < i; ++j) {
            a[tile_number(i, j)] = i * kTile + y < side ? entry(i * kTile + y, j * kTile + x) : 0;
        }
        a[tile_number(i, i)] = i * kTile + low < side ? entry(i * kTile + low, i * kTile + left) : 0;
    }
}

// Calls f(row, column, value) for every entry on and below the diagonal.
template <int kTiles, typename F>
__device__ __forceinline__ void for_lower(const Lower<kTiles>& a, int side, F f) {
    for_places<kTiles>([&](int tile, int row, int column) {
        if (row < side && column <= row) f(row, column, a[tile]);
    });
}

// Writes `value` at (row, column) and (column, row) of a matrix [side, side].
__device__ __forceinline__ void write_mirrored(float* out, int side, int row, int column, float value) {
    write(out + row * side + column, value);
    if (column < row) write(out + column * side + row, value);
}

// Calls body.template run<kTiles>() for the compiled number of tiles that serves `side`.
template <typename Body>
__device__ __forceinline__ void with_tiles(int side, const Body& body) {
    switch (compiled_tiles(side)) {
        case 2:
            return body.template run<2>();
        case 4:
            return body.template run<4>();
        case 6:
            return body.template run<6>();
        case 8:
            return body.template run<8>();
        default:
            return body.template run<9>();
    }
}

}  // namespace lnb::cuda
