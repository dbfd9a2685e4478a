// Second moments of the patches of 16-bit images whose rows are contiguous, pixel by pixel or channel by channel.
#pragma once

#include <cstdint>

#include "../types.h"

namespace lnb::cuda {

constexpr int kLargestPatch = 144;  // entries of a patch of one group

constexpr int kConvTile = 16, kConvTileFloats = kConvTile * kConvTile;
constexpr int kConvWarpTiles = 7;  // that a warp holds
constexpr int kConvWarps = 8;      // of a thread block, at most: they hold all tiles of the largest patch
constexpr int kConvPack = 8;       // elements of 16 bytes

// What is asked for. An image is [batch, groups * channels, height, width].
struct ConvShape {
    int64_t image_stride, channel_stride, row_stride;  // in elements
    int32_t pixel_stride;                              // 1, or the channels of an image that lie side by side
    int32_t batch, groups, channels, height, width;
    int32_t out_height, out_width, kernel_height, kernel_width, step_y, step_x, pad_top, pad_left;
};

// How it is cut. A stage is what a thread block multiplies at a time: `rows` rows of outputs of `images` images side by
// side, or where an image is wider than a stage, `columns` columns of one image.
struct ConvPlan {
    int32_t entries;  // D, of a patch
    int32_t tiles;    // of 16 entries, per side
    int32_t sums;     // tiles of sums: row by row of the lower triangle, each row ending with its product with ones
    int32_t parts, slices;    // warps that share out the tiles, and those that share out the positions
    int32_t images, columns;  // of a stage; columns of one image
    int32_t steps;            // of 16 positions in a row of a stage
    int32_t rows;             // of outputs
    int32_t image_rows;       // that a row of outputs is away from the next, in shared memory
    int32_t staged_rows;      // of an image
    int32_t pitch;            // of a row in shared memory, in elements
    int32_t groups_of_images, strips, chunks;
    int32_t splits;  // of the stages
    int32_t fan;     // splits that are added by one thread block at a time
    int32_t shared_bytes;
};

// For about this many thread blocks in all. `splits` is 0 for a shape that the kernel does not take.
ConvPlan conv_plan(const ConvShape& shape, int64_t blocks);

// Floats that the thread blocks leave for those that add them up, and counters of these, which are zero before and
// after.
int64_t conv_partial_floats(const ConvShape& shape, const ConvPlan& plan);
int64_t conv_counters(const ConvShape& shape, const ConvPlan& plan);

// s [groups, D + 1, D + 1] <- sum over positions of [p 1]'[p 1], p [D] in the weight's order: channel, row, column.
// x, of bfloat16 or float16, lies at a multiple of 16 bytes, and whole 16 bytes around each of its entries can be read.
void conv_moments(const void* x, Type type, const ConvShape& shape, const ConvPlan& plan, float* partials,
                  int* counters, float* s, void* stream);

}  // namespace lnb::cuda
