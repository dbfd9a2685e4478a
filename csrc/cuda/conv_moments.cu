// One launch for all groups: products of patches on tensor cores, then the sum of what the thread blocks found.
//
// A thread block copies rows of the image to shared memory once for each column of the kernel, shifted by it: row
// (image row, channel, kernel column) holds that entry of the patch for all positions of a row of outputs. With the
// entries of a patch in the order (kernel row, channel, kernel column), the patches of output row y are the rows from
// y * step * channels * kernel columns on: a matrix [entries, positions] with one pitch, of which tensor cores read
// tiles in place. Only the moment's lower triangle is formed, and a column of products with ones for the sums.
//
// Bytes from memory: the image, about once, in 16-byte accesses; FLOPs on tensor cores: tiles (tiles + 3) * 256 per
// position.
#include <type_traits>

#include "arrival.cuh"
#include "conv_rows.cuh"
#include "launch.h"
#include "matrix_units.cuh"
#include "reduce.cuh"

namespace lnb::cuda {
namespace {

static_assert(kConvTile == kUnit);

struct Place {
    int row, column;  // column == row + 1: ones
};

__device__ __forceinline__ Place place_of(int tile) {
    int row = 0;
    while (tile > row + 1) tile -= row++ + 2;
    return {row, tile};
}

template <typename T>
struct Products {
    using Left = nvcuda::wmma::fragment<nvcuda::wmma::matrix_a, kUnit, kUnit, kUnit, T, nvcuda::wmma::row_major>;
    using Right = nvcuda::wmma::fragment<nvcuda::wmma::matrix_b, kUnit, kUnit, kUnit, T, nvcuda::wmma::col_major>;
    using Sums = nvcuda::wmma::fragment<nvcuda::wmma::accumulator, kUnit, kUnit, kUnit, float>;
};

// An entry of the patch in the weight's order, of one in the order of the rows.
__device__ __forceinline__ int entry_of(const ConvShape& shape, int row) {
    const int column = row % shape.kernel_width, rest = row / shape.kernel_width;
    const int channel = rest % shape.channels, line = rest / shape.channels;
    return (channel * shape.kernel_height + line) * shape.kernel_width + column;
}

using Four = Pack<float, 4>;

// The sums of `count` splits, `stride` apart: f(index of the first, four of them).
template <typename F>
__device__ __forceinline__ void add_splits(const ConvPlan& plan, const float* from, int stride, int count, F f) {
    const int64_t floats = static_cast<int64_t>(plan.sums) * kConvTileFloats;
    for (int i = threadIdx.x * 4; i < floats; i += blockDim.x * 4) {
        Four total{};
        LNB_UNROLL
        for (int k = 0; k < count; ++k) {
            const Four part = read_fresh(reinterpret_cast<const Four*>(from + k * stride * floats + i));
            LNB_UNROLL
            for (int e = 0; e < 4; ++e) total.value[e] += part.value[e];
        }
        f(i, total);
    }
}

// An entry of the moment from place `at` among its tiles of sums, and its mirror image.
__device__ __forceinline__ void write_entry(const ConvShape& shape, int d, Place tile, int at, float value, float* s) {
    const int row = tile.row * kUnit + at / kUnit, column = tile.column * kUnit + at % kUnit;
    const bool is_sum = tile.column > tile.row;  // all its columns are one
    if (row >= d || (is_sum ? at % kUnit != 0 : column > row)) return;
    const int of_row = entry_of(shape, row), of_column = is_sum ? d : entry_of(shape, column);
    write(s + of_row * (d + 1) + of_column, value);
    write(s + of_column * (d + 1) + of_row, value);
}

// s [groups, D + 1, D + 1] <- the sums of all splits, by the last of a group's thread blocks to arrive; where there are
// many, the last of each `fan` of them adds these first, in place. counters [groups, 1 + fans].
__device__ __forceinline__ void finish(const ConvShape& shape, const ConvPlan& plan, int group, int split,
                                       float* partials, int* counters, float* s) {
    const int64_t floats = static_cast<int64_t>(plan.sums) * kConvTileFloats;
    const int fans = (plan.splits + plan.fan - 1) / plan.fan, own = split / plan.fan, first = own * plan.fan;
    float* const of_group = partials + static_cast<int64_t>(group) * plan.splits * floats;
    int* const counter = counters + static_cast<int64_t>(group) * (1 + fans);
    const int members = plan.splits - first < plan.fan ? plan.splits - first : plan.fan;
    if (!last_to_arrive(counter + 1 + own, members)) return;
    if (fans > 1) {
        float* const to = of_group + first * floats;
        add_splits(plan, to, 1, members, [&](int i, const Four& total) { write_pack(to + i, total); });
        if (!last_to_arrive(counter, fans)) return;
    }
    const int d = plan.entries;
    float* const out = s + static_cast<int64_t>(group) * (d + 1) * (d + 1);
    add_splits(plan, of_group, fans > 1 ? plan.fan : 1, fans > 1 ? fans : members, [&](int i, const Four& total) {
        const Place tile = place_of(i / kConvTileFloats);
        LNB_UNROLL
        for (int e = 0; e < 4; ++e) write_entry(shape, d, tile, i % kConvTileFloats + e, total.value[e], out);
    });
    if (threadIdx.x == 0) {
        write(out + static_cast<int64_t>(d + 1) * (d + 1) - 1,
              static_cast<float>(static_cast<double>(shape.batch) * shape.out_height * shape.out_width));
    }
}

// partials [groups, splits, tiles of sums, 16, 16] <- the products of the thread block's stages, and of these, s.
template <typename T, bool kInterleaved>
__global__ void __launch_bounds__(kConvWarps* kWarp, 2)
    conv_moments_kernel(const T* x, LNB_PARAMETER(ConvShape) shape, LNB_PARAMETER(ConvPlan) plan, float* partials,
                        int* counters, float* s) {
    using Left = typename Products<T>::Left;
    using Right = typename Products<T>::Right;
    using Sums = typename Products<T>::Sums;
    LNB_DYNAMIC_SHARED(T, rows);
    const int group = static_cast<int>(blockIdx.x) / plan.splits, split = static_cast<int>(blockIdx.x) % plan.splits;
    const int warp = static_cast<int>(threadIdx.x) / kWarp, slice = warp / plan.parts;
    const int first_tile = warp % plan.parts * kConvWarpTiles;
    const int own_tiles = plan.sums - first_tile < kConvWarpTiles ? plan.sums - first_tile : kConvWarpTiles;

    Sums sums[kConvWarpTiles];
    int left_row[kConvWarpTiles], right_row[kConvWarpTiles];  // in shared memory; -1 for ones
    LNB_UNROLL
    for (int t = 0; t < kConvWarpTiles; ++t) {
        nvcuda::wmma::fill_fragment(sums[t], 0.0f);
        const Place place = place_of(first_tile + t);
        left_row[t] = place.row * kUnit * plan.pitch;
        right_row[t] = place.column > place.row ? -1 : place.column * kUnit * plan.pitch;
    }
    T one;
    narrow(1.0f, one);
    Right ones;
    nvcuda::wmma::fill_fragment(ones, one);

    const int64_t stages = static_cast<int64_t>(plan.groups_of_images) * plan.strips * plan.chunks;
    const int64_t begin = stages * split / plan.splits, end = stages * (split + 1) / plan.splits;
    const int from_row_to_row = plan.image_rows * shape.channels * shape.kernel_width * plan.pitch;
    for (int64_t number = begin; number < end; ++number) {
        const Stage stage = stage_of(shape, plan, number);
        stage_rows<T, kInterleaved>(x, {shape, plan, stage, group, reach_of(shape, stage)}, rows);
        for (int step = slice; step < stage.rows * plan.steps; step += plan.slices) {
            const T* patches = rows + step / plan.steps * from_row_to_row + step % plan.steps * kUnit;
            Left left;
            LNB_UNROLL
            for (int t = 0; t < kConvWarpTiles; ++t) {
                if (t >= own_tiles) break;
                if (t == 0 || right_row[t - 1] < 0) {
                    load_shared(left, patches + left_row[t], plan.pitch);
                }
                if (right_row[t] < 0) {
                    nvcuda::wmma::mma_sync(sums[t], left, ones, sums[t]);
                } else {
                    Right right;
                    load_shared(right, patches + right_row[t], plan.pitch);
                    nvcuda::wmma::mma_sync(sums[t], left, right, sums[t]);
                }
            }
        }
        __syncthreads();
    }

    // The slices one after another add their sums in shared memory.
    float* const found = reinterpret_cast<float*>(rows);  // [plan.sums, 16, 16]
    float* const scratch = found + (plan.sums + warp) * kConvTileFloats;
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
    for (int turn = 0; turn < plan.slices; ++turn) {
        if (turn == slice) {
            LNB_UNROLL
            for (int t = 0; t < kConvWarpTiles; ++t) {
                if (t >= own_tiles) break;
                nvcuda::wmma::store_matrix_sync(scratch, sums[t], kUnit, nvcuda::wmma::mem_row_major);
                __syncwarp();
                float* const to = found + (first_tile + t) * kConvTileFloats;
                LNB_UNROLL
                for (int i = lane; i < kConvTileFloats; i += kWarp) to[i] = turn == 0 ? scratch[i] : to[i] + scratch[i];
                __syncwarp();
            }
        }
        __syncthreads();
    }
    float* const out = partials + static_cast<int64_t>(blockIdx.x) * plan.sums * kConvTileFloats;
    for (int i = threadIdx.x * 4; i < plan.sums * kConvTileFloats; i += blockDim.x * 4) {
        Four pack;
        LNB_UNROLL
        for (int e = 0; e < 4; ++e) pack.value[e] = found[i + e];
        write_pack(out + i, pack);
    }
    finish(shape, plan, group, split, partials, counters, s);
}

}  // namespace

void conv_moments(const void* x, Type type, const ConvShape& shape, const ConvPlan& plan, float* partials,
                  int* counters, float* s, void* stream) {
    const Geometry geometry{static_cast<int64_t>(shape.groups) * plan.splits, plan.parts * plan.slices * kWarp,
                            static_cast<size_t>(plan.shared_bytes)};
    const auto start = [&](const auto* image) {
        using T = std::decay_t<decltype(*image)>;
        launch("conv_moments", shape.pixel_stride == 1 ? conv_moments_kernel<T, false> : conv_moments_kernel<T, true>,
               geometry, stream, image, shape, plan, partials, counters, s);
    };
    if (type == Type::kBFloat16) {
        start(static_cast<const BFloat16*>(x));
    } else {
        start(static_cast<const Half*>(x));
    }
}

}  // namespace lnb::cuda
