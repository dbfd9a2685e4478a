// One block's pass over its piece of a tensor pair, in 16-byte accesses with a scalar tail.
#pragma once

#include "portable.h"
#include "table.h"

namespace lnb::cuda {

constexpr int kThreads = 256;
constexpr int kBlocks = 4;  // of these at once on a multiprocessor: at most 64 registers per thread
constexpr int kUnroll = 4;  // vectors that a thread has in flight

template <typename X, typename Y>
using Real = decltype(widen(X{}) + widen(Y{}));  // of a pair's arithmetic

template <typename T, int kSize>
struct alignas(sizeof(T) * kSize) Pack {
    T value[kSize];
};

// As many elements as make 16 bytes of the wider type. The narrower type's access is then of 8 bytes, and both are
// contiguous over the threads of a warp.
template <typename X, typename Y>
constexpr int kVector = 16 / (sizeof(X) > sizeof(Y) ? sizeof(X) : sizeof(Y));

template <int kSize, typename T>
__device__ __forceinline__ bool aligned(const T* address) {
    return reinterpret_cast<uintptr_t>(address) % (sizeof(T) * kSize) == 0;
}

template <int kSize, typename T>
__device__ __forceinline__ Pack<T, kSize> read_pack(const T* address) {
    return read(reinterpret_cast<const Pack<T, kSize>*>(address));
}

template <int kSize, typename T>
__device__ __forceinline__ void write_pack(T* address, const Pack<T, kSize>& pack) {
    write(reinterpret_cast<Pack<T, kSize>*>(address), pack);
}

// Calls f(i, xs, ys) for every run of elements i, i + 1, ... that a thread takes: packs of kVector elements where
// `vectors` says that all pointers are aligned to them, else of one. With `write_x`, xs is then written back.
template <typename X, typename Y, typename F>
__device__ __forceinline__ void sweep(X* x, const Y* y, int64_t size, bool vectors, bool write_x, F& f) {
    constexpr int N = kVector<X, Y>;
    const int64_t packs = vectors ? size / N : 0;
    for (int64_t first = threadIdx.x; first < packs; first += kUnroll * kThreads) {
        Pack<X, N> xs[kUnroll];
        Pack<Y, N> ys[kUnroll];
        // All loads before the first use: that many are in flight.
        LNB_UNROLL
        for (int u = 0; u < kUnroll; ++u) {
            const int64_t pack = first + u * kThreads;
            if (pack < packs) {
                xs[u] = read_pack<N>(x + pack * N);
                ys[u] = read_pack<N>(y + pack * N);
            }
        }
        LNB_UNROLL
        for (int u = 0; u < kUnroll; ++u) {
            const int64_t pack = first + u * kThreads;
            if (pack < packs) {
                f(pack * N, xs[u], ys[u]);
                if (write_x) write_pack<N>(x + pack * N, xs[u]);
            }
        }
    }
    for (int64_t i = packs * N + threadIdx.x; i < size; i += kThreads) {
        Pack<X, 1> xs = read_pack<1>(x + i);
        const Pack<Y, 1> ys = read_pack<1>(y + i);
        f(i, xs, ys);
        if (write_x) write_pack<1>(x + i, xs);
    }
}

// The same for a tensor that is only read: calls f(xs).
template <typename X, typename F>
__device__ __forceinline__ void sweep(const X* x, int64_t size, F& f) {
    constexpr int N = kVector<X, X>;
    const int64_t packs = aligned<N>(x) ? size / N : 0;
    for (int64_t first = threadIdx.x; first < packs; first += kUnroll * kThreads) {
        Pack<X, N> xs[kUnroll];
        LNB_UNROLL
        for (int u = 0; u < kUnroll; ++u) {
            const int64_t pack = first + u * kThreads;
            if (pack < packs) xs[u] = read_pack<N>(x + pack * N);
        }
        LNB_UNROLL
        for (int u = 0; u < kUnroll; ++u) {
            if (first + u * kThreads < packs) f(xs[u]);
        }
    }
    for (int64_t i = packs * N + threadIdx.x; i < size; i += kThreads) f(read_pack<1>(x + i));
}

}  // namespace lnb::cuda
