// Element types of tensors.
#pragma once

#include <cstdint>

namespace lnb {

enum class Type : int { kFloat64, kFloat32, kBFloat16, kFloat16 };
constexpr int kTypes = 4;
constexpr int64_t kWidth[kTypes] = {8, 4, 2, 2};  // bytes of an element

}  // namespace lnb
