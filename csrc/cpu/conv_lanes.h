// The second moment of patches of a convolution whose groups have few channels, as depthwise ones have; and of images
// of few channels, gray or of three colours.
//
// The sums are those of conv_moment.cpp: products of shifted pixels over the cells of the image. Products between
// channels are few, so lanes of a vector are groups: 16 of them, each pixel times its shifted ones, without a matrix.
//
// Work: B H W C (C / groups) kh (2 kw - 1) multiplications; memory: x read once, a sample at a time.
#pragma once

#include <cstdint>

#include "conv_moment.h"

namespace lnb {

constexpr int64_t kLaneChannels = 2;       // of a group, up to which this is the faster way
constexpr int64_t kSampleChannels = 6;     // of an image, likewise
constexpr int64_t kLeastSamples = 6;       // of which fewer leave too many lanes empty
constexpr double kMostProducts = 1 << 17;  // of 16 lanes: 8 MiB

// As conv_moment(), for more than one group.
void conv_moment_by_lanes(const Images& x, const ConvAxis& rows, const ConvAxis& columns, int64_t groups, bool round,
                          float* s, int threads);

// As conv_moment() for one group: lanes are samples, and their moments are added. It pays for few channels and kernels
// of moderate size; is_for_samples() tells.
void conv_moment_by_samples(const Images& x, const ConvAxis& rows, const ConvAxis& columns, bool round, float* s,
                            int threads);
bool is_for_samples(const Images& x, const ConvAxis& rows, const ConvAxis& columns);

}  // namespace lnb
