// The element types of tensors that the kernels take.
#pragma once

#include <cstdint>

namespace lnb {

enum class Type : int { kFloat64, kFloat32, kBFloat16, kFloat16 };
constexpr int kTypes = 4;
constexpr int64_t kWidth[kTypes] = {8, 4, 2, 2};  // bytes of an element

constexpr int64_t width(Type type) {
    return kWidth[static_cast<int>(type)];
}

}  // namespace lnb
