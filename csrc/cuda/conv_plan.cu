// How the second moments of a convolution are cut into what thread blocks, warps and their shared memory take.
#include <algorithm>
#include <cmath>

#include "conv_moments.h"

namespace lnb::cuda {
namespace {

constexpr int kStageColumns = 128;
constexpr int kStageBytes = 80 * 1024;  // two thread blocks share a multiprocessor's memory

int64_t ceil_div(int64_t a, int64_t b) {
    return (a + b - 1) / b;
}

}  // namespace

ConvPlan conv_plan(const ConvShape& shape, int64_t blocks) {
    ConvPlan plan{};
    const int64_t entries = static_cast<int64_t>(shape.channels) * shape.kernel_height * shape.kernel_width;
    if (entries < 1 || entries > kLargestPatch) return plan;
    plan.entries = static_cast<int32_t>(entries);
    plan.tiles = (plan.entries + kConvTile - 1) / kConvTile;
    plan.sums = plan.tiles * (plan.tiles + 3) / 2;
    plan.parts = (plan.sums + kConvWarpTiles - 1) / kConvWarpTiles;
    plan.slices = kConvWarps / plan.parts;
    plan.image_rows = std::min(shape.step_y, shape.kernel_height);
    const int of_row = shape.channels * shape.kernel_width;  // rows in shared memory of one image row
    // Tiles begin at any of the rows, and at multiples of 32 bytes: where the distance between rows is an odd number of
    // 16 bytes, which keeps eight rows in different banks, only even rows do.
    const int odd = plan.image_rows * of_row % 2 == 0 ? kConvPack : kConvTile;
    for (int columns = kStageColumns; columns >= kConvTile; columns /= 2) {
        plan.images = static_cast<int32_t>(std::clamp<int64_t>(columns / shape.out_width, 1, shape.batch));
        plan.columns = std::min(shape.out_width, columns);
        plan.steps = static_cast<int32_t>(ceil_div(static_cast<int64_t>(plan.images) * plan.columns, kConvTile));
        plan.pitch = plan.steps * kConvTile + odd;
        const int64_t row_bytes = static_cast<int64_t>(of_row) * plan.pitch * 2;
        // The last tiles of the last patches reach beyond them.
        const int64_t beyond = int64_t{2} * (plan.tiles * kConvTile - plan.entries) * plan.pitch;
        const int64_t fitting = (kStageBytes - beyond) / row_bytes;
        if (fitting < shape.kernel_height) continue;
        const int64_t rows = (fitting - shape.kernel_height) / plan.image_rows + 1;
        plan.strips = static_cast<int32_t>(ceil_div(shape.out_height, std::min<int64_t>(rows, shape.out_height)));
        plan.rows = static_cast<int32_t>(ceil_div(shape.out_height, plan.strips));
        plan.staged_rows = (plan.rows - 1) * plan.image_rows + shape.kernel_height;
        plan.groups_of_images = static_cast<int32_t>(ceil_div(shape.batch, plan.images));
        plan.chunks = static_cast<int32_t>(ceil_div(shape.out_width, plan.columns));
        const int64_t staged = plan.staged_rows * row_bytes + beyond;
        const int64_t added = int64_t{4} * (plan.sums + plan.parts * plan.slices) * kConvTileFloats;
        plan.shared_bytes = static_cast<int32_t>(std::max(staged, added));
        const int64_t stages = static_cast<int64_t>(plan.groups_of_images) * plan.strips * plan.chunks;
        plan.splits = static_cast<int32_t>(std::clamp<int64_t>(blocks / shape.groups, 1, stages));
        // Adding few at once, a block adds all; else about twice their square root, in two turns.
        plan.fan = plan.splits <= 4 ? plan.splits : static_cast<int32_t>(std::ceil(std::sqrt(plan.splits)));
        return plan;
    }
    return plan;
}

int64_t conv_partial_floats(const ConvShape& shape, const ConvPlan& plan) {
    return static_cast<int64_t>(shape.groups) * plan.splits * plan.sums * kConvTileFloats;
}

int64_t conv_counters(const ConvShape& shape, const ConvPlan& plan) {
    return shape.groups * (1 + ceil_div(plan.splits, plan.fan));
}

}  // namespace lnb::cuda
