// One block's pass over its piece of a tensor pair, in 16-byte accesses with a scalar tail.
#pragma once

#include "element.cuh"
#include "pack.cuh"
#include "table.h"

namespace lnb::cuda {

constexpr int kThreads = 256;
constexpr int kBlocks = 4;  // of these at once on a multiprocessor: at most 64 registers per thread
constexpr int kUnroll = 4;  // vectors that a thread has in flight

template <typename X, typename Y>
using Real = decltype(widen(X{}) + widen(Y{}));  // of a pair's arithmetic

// As many elements as make 16 bytes of the wider type. The narrower type's access is then of 8 bytes, and both are
// contiguous over the threads of a warp.
template <typename X, typename Y>
constexpr int kVector = 16 / (sizeof(X) > sizeof(Y) ? sizeof(X) : sizeof(Y));

// Calls f(i, xs, ys) for every run of elements i, i + 1, ... that a thread takes: packs of kVector elements where
// `vectors` says that all pointers are aligned to them, else of one. With `write_x`, xs is then written back.
// A thread has kAhead packs of each tensor in flight. A piece is small, so Index may be narrow, which leaves registers
// to the data.
template <int kAhead = kUnroll, typename Index = int64_t, typename X, typename Y, typename F>
__device__ __forceinline__ void sweep(X* x, const Y* y, int64_t size, bool vectors, bool write_x, F& f) {
    constexpr int N = kVector<X, Y>;
    const Index end = static_cast<Index>(size), packs = vectors ? end / N : 0;
    for (Index first = static_cast<Index>(threadIdx.x); first < packs; first += kAhead * kThreads) {
        Words<X, N> x_words[kAhead];
        Words<Y, N> y_words[kAhead];
        // All loads before the first use: that many are in flight.
        LNB_UNROLL
        for (int u = 0; u < kAhead; ++u) {
            const Index pack = first + u * kThreads;
            if (pack < packs) {
                x_words[u] = read_words<N>(x + pack * N);
                y_words[u] = read_words<N>(y + pack * N);
            }
        }
        LNB_UNROLL
        for (int u = 0; u < kAhead; ++u) {
            const Index pack = first + u * kThreads;
            if (pack < packs) {
                Pack<X, N> xs = unpack(x_words[u]);
                f(pack * N, xs, unpack(y_words[u]));
                if (write_x) write_pack<N>(x + pack * N, xs);
            }
        }
    }
    for (Index i = packs * N + static_cast<Index>(threadIdx.x); i < end; i += kThreads) {
        Pack<X, 1> xs{{read(x + i)}};
        f(i, xs, Pack<Y, 1>{{read(y + i)}});
        if (write_x) write(x + i, xs.value[0]);
    }
}

// The same for a tensor that is only read: calls f(xs).
template <typename X, typename F>
__device__ __forceinline__ void sweep(const X* x, int64_t size, F& f) {
    constexpr int N = kVector<X, X>;
    const int64_t packs = aligned<N>(x) ? size / N : 0;
    for (int64_t first = threadIdx.x; first < packs; first += kUnroll * kThreads) {
        Words<X, N> x_words[kUnroll];
        LNB_UNROLL
        for (int u = 0; u < kUnroll; ++u) {
            const int64_t pack = first + u * kThreads;
            if (pack < packs) x_words[u] = read_words<N>(x + pack * N);
        }
        LNB_UNROLL
        for (int u = 0; u < kUnroll; ++u) {
            if (first + u * kThreads < packs) f(unpack(x_words[u]));
        }
    }
    for (int64_t i = packs * N + threadIdx.x; i < size; i += kThreads) f(Pack<X, 1>{{read(x + i)}});
}

}  // namespace lnb::cuda
