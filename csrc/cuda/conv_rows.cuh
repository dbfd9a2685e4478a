// Rows of images in shared memory, once for each column of the kernel, shifted by it.
#pragma once

#include "conv_moments.h"
#include "pack.cuh"

namespace lnb::cuda {

// A stage of the thread block, in outputs and images.
struct Stage {
    int image, images, row, rows, column, columns;
};

__device__ __forceinline__ Stage stage_of(const ConvShape& shape, const ConvPlan& plan, int64_t number) {
    const int chunk = static_cast<int>(number % plan.chunks);
    const int64_t rest = number / plan.chunks;
    Stage stage{static_cast<int>(rest / plan.strips) * plan.images,
                plan.images,
                static_cast<int>(rest % plan.strips) * plan.rows,
                plan.rows,
                chunk * plan.columns,
                plan.columns};
    if (stage.images > shape.batch - stage.image) stage.images = shape.batch - stage.image;
    if (stage.rows > shape.out_height - stage.row) stage.rows = shape.out_height - stage.row;
    if (stage.columns > shape.out_width - stage.column) stage.columns = shape.out_width - stage.column;
    return stage;
}

// The first column of the image that the stage's outputs reach, and how many they reach.
struct Reach {
    int first, count;
};

__device__ __forceinline__ Reach reach_of(const ConvShape& shape, const Stage& stage) {
    const int low = stage.column * shape.step_x - shape.pad_left;
    const int high = low + (stage.columns - 1) * shape.step_x + shape.kernel_width;
    const int first = low < 0 ? 0 : low;
    return {first, (high < shape.width ? high : shape.width) - first};
}

// Where a run of pixels of one image row begins, and which pixels.
struct Run {
    int64_t begin, end;       // elements
    int image, channel, row;  // of the stage; the channel is that of the first element
    bool there;
};

template <bool kInterleaved>
struct Rows {
    const ConvShape& shape;
    const ConvPlan& plan;
    const Stage& stage;
    int group;
    Reach reach;

    __device__ __forceinline__ int runs() const {
        return stage.images * plan.staged_rows * (kInterleaved ? 1 : shape.channels);
    }
    __device__ __forceinline__ int packs() const {  // of a run, however it lies
        return (reach.count * (kInterleaved ? shape.pixel_stride : 1) + 2 * kConvPack - 2) / kConvPack;
    }
    __device__ __forceinline__ Run run(int number) const {
        const int channel = kInterleaved ? 0 : number % shape.channels;
        const int rest = kInterleaved ? number : number / shape.channels;
        const int row = rest % plan.staged_rows, image = rest / plan.staged_rows;
        const int y =
            stage.row * shape.step_y - shape.pad_top + row / plan.image_rows * shape.step_y + row % plan.image_rows;
        const int64_t begin =
            (stage.image + image) * shape.image_stride + y * shape.row_stride +
            (static_cast<int64_t>(group) * shape.channels + channel) * (kInterleaved ? 0 : shape.channel_stride) +
            static_cast<int64_t>(reach.first) * shape.pixel_stride;
        const int64_t elements = static_cast<int64_t>(reach.count) * shape.pixel_stride;
        return {begin, begin + elements, image, channel, row, y >= 0 && y < shape.height && reach.count > 0};
    }

    // Writes element `value` of a run, number `element` from its beginning, wherever a patch has it.
    template <typename T>
    __device__ __forceinline__ void spread(const Run& run, int element, T value, T* rows) const {
        int channel = run.channel, pixel = element;
        if constexpr (kInterleaved) {
            pixel = element / shape.pixel_stride;
            channel = element - pixel * shape.pixel_stride - group * shape.channels;
            if (channel < 0 || channel >= shape.channels) return;
        }
        const int place = reach.first + pixel + shape.pad_left;
        int output = place / shape.step_x - stage.column;
        int tap = place - place / shape.step_x * shape.step_x;
        T* row =
            rows + (run.row * shape.channels + channel) * shape.kernel_width * plan.pitch + run.image * plan.columns;
        for (; tap < shape.kernel_width; tap += shape.step_x, --output) {
            if (output >= 0 && output < stage.columns) row[tap * plan.pitch + output] = value;
        }
    }
};

// The stage's shifted rows, zeros where a patch reaches beyond the image or there is no position.
template <typename T, bool kInterleaved>
__device__ __forceinline__ void stage_rows(const T* x, const Rows<kInterleaved>& source, T* rows) {
    constexpr int kInFlight = 2;
    const int threads = blockDim.x;
    const int all = source.plan.staged_rows * source.shape.channels * source.shape.kernel_width * source.plan.pitch;
    for (int i = threadIdx.x * kConvPack; i < all; i += threads * kConvPack) {
        *reinterpret_cast<Words<T, kConvPack>*>(rows + i) = Words<T, kConvPack>{};
    }
    __syncthreads();
    const int packs = source.packs(), count = source.runs() * packs;
    for (int begin = threadIdx.x; begin < count; begin += kInFlight * threads) {
        Words<T, kConvPack> words[kInFlight];
        LNB_UNROLL
        for (int u = 0; u < kInFlight; ++u) {
            const int number = begin + u * threads;
            if (number >= count) continue;
            const Run run = source.run(number / packs);
            const int64_t at = (run.begin / kConvPack + number % packs) * kConvPack;
            if (run.there && at < run.end) words[u] = read_words<kConvPack>(x + at);
        }
        LNB_UNROLL
        for (int u = 0; u < kInFlight; ++u) {
            const int number = begin + u * threads;
            if (number >= count) continue;
            const Run run = source.run(number / packs);
            const int64_t at = (run.begin / kConvPack + number % packs) * kConvPack;
            if (!run.there || at >= run.end) continue;
            const auto pack = unpack(words[u]);
            LNB_UNROLL
            for (int e = 0; e < kConvPack; ++e) {
                if (at + e >= run.begin && at + e < run.end) {
                    source.spread(run, static_cast<int>(at + e - run.begin), pack.value[e], rows);
                }
            }
        }
    }
    __syncthreads();
}

}  // namespace lnb::cuda
