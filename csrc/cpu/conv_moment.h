// Second moment of convolution patches with a column of ones, stride 1, from products of shifted channels.
#pragma once

#include <cstdint>

#include "../types.h"

namespace lnb {

// An image batch [batch, channels, height, width]; strides in bytes, float64 is not supported.
struct Images {
    const void* data;
    Type type;
    int64_t batch, channels, height, width;
    int64_t batch_stride, channel_stride, row_stride, pixel_stride;
};

// One axis of a convolution: tap t of output o reads pixel o + t * dilation - before; zero outside the image.
struct ConvAxis {
    int64_t taps, dilation, before, outputs;
};

// s [groups, D+1, D+1] <- the second moments, D = channels / groups * taps, in float32; rows and columns of s in the
// order (channel, tap row, tap column). With `round`, entries count as rounded to bfloat16. The same bits in every run,
// on any number of threads. Throws std::bad_alloc.
void conv_moment(const Images& x, const ConvAxis& rows, const ConvAxis& columns, int64_t groups, bool round, float* s,
                 int threads);

}  // namespace lnb
