// Elements of tensors, and their conversion to what is computed in and back.
#pragma once

#include "portable.h"

#ifdef LNB_CUSIM
#include "cpu/float16.h"
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#endif

namespace lnb::cuda {

#ifdef LNB_CUSIM

using lnb::BFloat16;
using lnb::Half;
using lnb::narrow;
using lnb::widen;

#else

using BFloat16 = __nv_bfloat16;
using Half = __half;

__device__ __forceinline__ double widen(double x) {
    return x;
}
__device__ __forceinline__ float widen(float x) {
    return x;
}
__device__ __forceinline__ float widen(BFloat16 x) {
    return __bfloat162float(x);
}
__device__ __forceinline__ float widen(Half x) {
    return __half2float(x);
}

// Rounding to nearest, ties to even.
__device__ __forceinline__ void narrow(double x, double& out) {
    out = x;
}
__device__ __forceinline__ void narrow(float x, float& out) {
    out = x;
}
__device__ __forceinline__ void narrow(float x, BFloat16& out) {
    out = __float2bfloat16_rn(x);
}
__device__ __forceinline__ void narrow(float x, Half& out) {
    out = __float2half_rn(x);
}

#endif

}  // namespace lnb::cuda
