// Numbers that a kernel finds on the device, of a type known at run time.
#pragma once

#include "element.cuh"
#include "multi_tensor.h"

namespace lnb::cuda {

__device__ __forceinline__ double load(const void* address, Type type, int64_t i) {
    switch (type) {
        case Type::kFloat64:
            return read(static_cast<const double*>(address) + i);
        case Type::kFloat32:
            return read(static_cast<const float*>(address) + i);
        case Type::kBFloat16:
            return widen(read(static_cast<const BFloat16*>(address) + i));
        default:
            return widen(read(static_cast<const Half*>(address) + i));
    }
}

__device__ __forceinline__ double load(const Scalar& scalar) {
    return scalar.device == nullptr ? scalar.value : load(scalar.device, scalar.type, 0);
}

}  // namespace lnb::cuda
