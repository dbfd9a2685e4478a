// Sums over the threads of a warp or a block, the same bits in every run: the order depends on the thread numbers
// alone.
#pragma once

#include "portable.h"

namespace lnb::cuda {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;

template <typename T>
__device__ __forceinline__ T warp_sum(T value) {  // the sum, in every lane
    LNB_UNROLL
    for (int distance = kWarp / 2; distance > 0; distance /= 2) {
        value += __shfl_xor_sync(kAllLanes, value, distance);
    }
    return value;
}

// value[i] <- its sum over the block, in every thread. `scratch` [count * warps] is free for the next use after one
// more barrier.
template <int kCount, typename T>
__device__ __forceinline__ void block_sums(T (&value)[kCount], T* scratch) {
    const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
    const int warps = (blockDim.x + kWarp - 1) / kWarp;
    LNB_UNROLL
    for (int i = 0; i < kCount; ++i) {
        value[i] = warp_sum(value[i]);
        if (lane == 0) scratch[i * warps + warp] = value[i];
    }
    __syncthreads();
    LNB_UNROLL
    for (int i = 0; i < kCount; ++i) {
        value[i] = 0;
        for (int w = 0; w < warps; ++w) value[i] += scratch[i * warps + w];
    }
}

}  // namespace lnb::cuda
