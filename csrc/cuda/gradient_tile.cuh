// A tile of an averaged gradient in shared memory, formed on the way there: no tensor of a weight's size is made.
#pragma once

#include <cstdint>

#include "element.cuh"
#include "pack.cuh"
#include "refresh.h"
#include "symmetric.cuh"

namespace lnb::cuda {

// The bits of |x|: they are in the order of the numbers, infinity and NaN above all of them.
__device__ __forceinline__ uint32_t size_bits(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits & 0x7fffffffu;
}

// The power of two that is larger than |x| < 2^128, given by the bits of |x|, or the least one: 0 for what is not
// finite.
__device__ __forceinline__ int exponent_of(uint32_t bits) {
    const int field = static_cast<int>(bits >> 23);
    return field == 255 ? 0 : field - 126;
}

// g~ entry by entry.
template <typename G>
struct Averaged {
    const G* g;
    const float* m;
    float momentum, share, take;

    __device__ __forceinline__ float operator()(float of_g, float of_m) const {
        return m == nullptr ? of_g : share * (momentum * of_m + (1 - momentum) * of_g) + take * of_g;
    }
    __device__ __forceinline__ float at(int64_t i) const {
        return (*this)(widen(read(g + i)), m == nullptr ? 0 : read(m + i));
    }
};

// Calls f(averaged) for the type of the gradient.
template <typename F>
__device__ __forceinline__ void with_gradient(const Gradient& gradient, float momentum, float take, F f) {
    float share = 1;
    if (gradient.m != nullptr) {
        share = gradient.share_type == Type::kFloat64
                    ? static_cast<float>(read(static_cast<const double*>(gradient.share)))
                    : read(static_cast<const float*>(gradient.share));
    }
    switch (gradient.type) {
        case Type::kBFloat16:
            return f(Averaged<BFloat16>{static_cast<const BFloat16*>(gradient.g), gradient.m, momentum, share, take});
        case Type::kFloat16:
            return f(Averaged<Half>{static_cast<const Half*>(gradient.g), gradient.m, momentum, share, take});
        default:
            return f(Averaged<float>{static_cast<const float*>(gradient.g), gradient.m, momentum, share, take});
    }
}

// Where a tile lies in its tensor, and what surrounds it in shared memory.
struct Tile {
    int64_t first, stride;  // of its first entry, and from row to row
    int rows, columns;
    int padded_rows, padded_columns, pitch;  // in shared memory, zeros where the tensor has no entry
};

// tile <- the entries. Returns the largest size_bits that this thread saw.
template <typename G>
__device__ __forceinline__ uint32_t load_tile(const Averaged<G>& averaged, const Tile& at, float* tile) {
    constexpr int kPack = 4, kInFlight = 4;
    const bool vectors =
        at.stride % kPack == 0 && aligned<kPack>(averaged.g + at.first) && aligned<kPack>(averaged.m + at.first);
    const int packs = at.padded_columns / kPack, count = at.padded_rows * packs;
    uint32_t largest = 0;
    for (int begin = threadIdx.x; begin < count; begin += kInFlight * kTileThreads) {
        float values[kInFlight][kPack];
        LNB_UNROLL
        for (int u = 0; u < kInFlight; ++u) {
            const int pack = begin + u * kTileThreads, row = pack / packs, column = pack % packs * kPack;
            const int64_t i = at.first + row * at.stride + column;
            const bool there = pack < count && row < at.rows;
            if (there && vectors && column + kPack <= at.columns) {
                const auto gs = unpack(read_words<kPack>(averaged.g + i));
                Pack<float, kPack> ms{};
                if (averaged.m != nullptr) ms = unpack(read_words<kPack>(averaged.m + i));
                LNB_UNROLL
                for (int k = 0; k < kPack; ++k) values[u][k] = averaged(widen(gs.value[k]), ms.value[k]);
            } else {
                LNB_UNROLL
                for (int k = 0; k < kPack; ++k)
                    values[u][k] = there && column + k < at.columns ? averaged.at(i + k) : 0;
            }
        }
        LNB_UNROLL
        for (int u = 0; u < kInFlight; ++u) {
            const int pack = begin + u * kTileThreads;
            if (pack >= count) break;
            float* to = tile + pack / packs * at.pitch + pack % packs * kPack;
            LNB_UNROLL
            for (int k = 0; k < kPack; ++k) {
                to[k] = values[u][k];
                const uint32_t bits = size_bits(values[u][k]);
                if (bits > largest) largest = bits;
            }
        }
    }
    return largest;
}

}  // namespace lnb::cuda
