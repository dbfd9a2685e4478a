// Products of a strip of rows with a tile, by the warps of one block together. Operands come in chunks of kChunk
// columns of the left and rows of the right one, through buffers in shared memory in which they are rounded to what the
// tensor cores take, with zeros where a block ends. What comes from memory is fetched one chunk ahead.
#pragma once

#include "matrix_units.cuh"
#include "pack.cuh"
#include "reduce.cuh"

namespace lnb::cuda {

constexpr int kStrip = 64;  // rows whose sums are in registers at once
constexpr int kStripUnits = kStrip / kUnit;
constexpr int kColumnUnits = 9;  // of the widest tile
constexpr int kChunk = 16;
constexpr int kPack = 4;  // floats of one access
constexpr int kTileWarps = 8;
constexpr int kTileThreads = kTileWarps * kWarp;

constexpr __host__ __device__ int round_up(int count, int to) {
    return (count + to - 1) / to * to;
}

// A square block in memory, contiguous.
struct SquareBlock {
    const float* data;
    int side;
    bool vectors;  // rows begin at addresses for packs

    // Entries column ... column + 3 of a row; 0 beyond the block.
    __device__ __forceinline__ Pack<float, kPack> four(int row, int column) const {
        Pack<float, kPack> result{};
        if (row >= side) return result;
        const float* from = data + row * side + column;
        if (vectors) {
            if (column < side) result = unpack(read_words<kPack>(from));
        } else {
            LNB_UNROLL
            for (int k = 0; k < kPack; ++k) {
                if (column + k < side) result.value[k] = read(from + k);
            }
        }
        return result;
    }
};

// The buffers of the chunks of one product. Rows of the left one are of kChunk entries and some that keep rows in
// different banks.
template <typename P>
struct Chunks {
    using Element = typename P::Element;
    static constexpr int kLeftPitch = kChunk + 16 / static_cast<int>(sizeof(Element));

    Element* left;   // [kStrip, kLeftPitch]
    Element* right;  // [kChunk, right_pitch]
    int right_pitch;
    int row_units, column_units;  // tiles of sums

    __device__ __forceinline__ void place(Element* to, const Pack<float, kPack>& values) const {
        LNB_UNROLL
        for (int k = 0; k < kPack; ++k) to[k] = P::narrow(values.value[k]);
    }
};

// Left operands: the thread's row of the strip, and column of the chunk, of which it has one pack.
static_assert(kStrip * kChunk == kTileThreads * kPack);
struct LeftPlace {
    int row = threadIdx.x / (kChunk / kPack), column = threadIdx.x % (kChunk / kPack) * kPack;
};

// Rows first_row ... of a block in memory, times a factor.
template <typename P>
struct LeftBlock {
    SquareBlock block;
    int first_row;
    float factor;
    LeftPlace own;
    Pack<float, kPack> next;

    __device__ __forceinline__ void fetch(int chunk) { next = block.four(first_row + own.row, chunk + own.column); }
    __device__ __forceinline__ void place(const Chunks<P>& chunks, int) {
        LNB_UNROLL
        for (int k = 0; k < kPack; ++k) next.value[k] *= factor;
        chunks.place(chunks.left + own.row * Chunks<P>::kLeftPitch + own.column, next);
    }
};

// A strip in shared memory, of whole tiles.
template <typename P>
struct LeftStrip {
    const float* strip;
    int pitch;
    LeftPlace own;

    __device__ __forceinline__ void fetch(int) {}
    __device__ __forceinline__ void place(const Chunks<P>& chunks, int chunk) {
        if (own.row >= chunks.row_units * kUnit) return;
        const float* from = strip + own.row * pitch + chunk + own.column;
        chunks.place(chunks.left + own.row * Chunks<P>::kLeftPitch + own.column,
                     *reinterpret_cast<const Pack<float, kPack>*>(from));
    }
};

// Right operands: the thread's row of the chunk, and the packs that it has of it.
constexpr int kRightLanes = kTileThreads / kChunk;  // that share a row
constexpr int kRightPacks = round_up(kColumnUnits * kUnit / kPack, kRightLanes) / kRightLanes;

// Calls f(i, row, column) for each of them.
template <typename P, typename F>
__device__ __forceinline__ void for_right_packs(const Chunks<P>& chunks, F f) {
    LNB_UNROLL
    for (int i = 0; i < kRightPacks; ++i) {
        const int column = (threadIdx.x % kRightLanes + i * kRightLanes) * kPack;
        if (column < chunks.column_units * kUnit) f(i, threadIdx.x / kRightLanes, column);
    }
}

template <typename P>
struct RightBlock {
    const Chunks<P>& chunks;
    SquareBlock block;
    Pack<float, kPack> next[kRightPacks];

    __device__ __forceinline__ void fetch(int chunk) {
        for_right_packs(chunks, [&](int i, int row, int column) { next[i] = block.four(chunk + row, column); });
    }
    __device__ __forceinline__ void place(const Chunks<P>&, int) {
        for_right_packs(chunks, [&](int i, int row, int column) {
            chunks.place(chunks.right + row * chunks.right_pitch + column, next[i]);
        });
    }
};

// A tile [rows, columns] in shared memory.
template <typename P>
struct RightTile {
    const float* tile;
    int pitch, rows, columns;

    __device__ __forceinline__ void fetch(int) {}
    __device__ __forceinline__ void place(const Chunks<P>& chunks, int chunk) {
        for_right_packs(chunks, [&](int, int row, int column) {
            Pack<float, kPack> values{};
            const float* from = tile + (chunk + row) * pitch + column;
            LNB_UNROLL
            for (int k = 0; k < kPack; ++k) {
                if (chunk + row < rows && column + k < columns) values.value[k] = from[k];
            }
            chunks.place(chunks.right + row * chunks.right_pitch + column, values);
        });
    }
};

// What each warp has of a strip of sums: the units below each other in its columns, and of a ninth column of units,
// which would cost a round of its own, one unit.
template <typename P>
struct StripSums {
    typename P::Sums own[kStripUnits], ninth;
    int warp, row_units;
    bool has_own, has_ninth;

    __device__ __forceinline__ explicit StripSums(const Chunks<P>& chunks)
        : warp(threadIdx.x / kWarp),
          row_units(chunks.row_units),
          has_own(warp < chunks.column_units),
          has_ninth(chunks.column_units > kTileWarps && warp < chunks.row_units) {}

    __device__ __forceinline__ void clear() {
        LNB_UNROLL
        for (int i = 0; i < kStripUnits; ++i) nvcuda::wmma::fill_fragment(own[i], 0.0f);
        nvcuda::wmma::fill_fragment(ninth, 0.0f);
    }

    // Adds the product of the chunks.
    __device__ __forceinline__ void add(const Chunks<P>& chunks) {
        LNB_ROLLED
        for (int k = 0; k < kChunk; k += P::kDepth) {
            const auto* const left = chunks.left + k;
            const auto* const right = chunks.right + k * chunks.right_pitch;
            constexpr int kPitch = Chunks<P>::kLeftPitch;
            typename P::Left of_left;
            typename P::Right of_right;
            if (has_own) {
                P::load(of_right, right + warp * kUnit, chunks.right_pitch);
                LNB_UNROLL
                for (int i = 0; i < kStripUnits; ++i) {
                    if (i >= row_units) continue;
                    P::load(of_left, left + i * kUnit * kPitch, kPitch);
                    P::add_product(own[i], of_left, of_right);
                }
            }
            if (has_ninth) {
                P::load(of_right, right + kTileWarps * kUnit, chunks.right_pitch);
                P::load(of_left, left + warp * kUnit * kPitch, kPitch);
                P::add_product(ninth, of_left, of_right);
            }
        }
    }

    // Stores row i of units; `i` is known when this is compiled.
    __device__ __forceinline__ void store(int i, float* rows, int pitch) const {
        using nvcuda::wmma::store_matrix_sync;
        if (i >= row_units) return;
        if (has_own) store_matrix_sync(rows + warp * kUnit, own[i], pitch, nvcuda::wmma::mem_row_major);
        if (has_ninth && warp == i) {
            store_matrix_sync(rows + kTileWarps * kUnit, ninth, pitch, nvcuda::wmma::mem_row_major);
        }
    }
};

// sums <- the product of a strip of `depth` columns and a tile of as many rows.
template <typename P, typename Left, typename Right>
__device__ __forceinline__ void multiply(StripSums<P>& sums, int depth, const Chunks<P>& chunks, Left& left,
                                         Right& right) {
    sums.clear();
    left.fetch(0);
    right.fetch(0);
    for (int chunk = 0; chunk < depth; chunk += kChunk) {
        __syncthreads();  // nobody reads the former chunk any more
        left.place(chunks, chunk);
        right.place(chunks, chunk);
        __syncthreads();
        if (chunk + kChunk < depth) {
            left.fetch(chunk + kChunk);
            right.fetch(chunk + kChunk);
        }
        sums.add(chunks);
    }
}

}  // namespace lnb::cuda
