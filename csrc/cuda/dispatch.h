// From the types of tensors, known at run time, to the kernels compiled for them.
#pragma once

#include <stdexcept>

#include "../types.h"
#include "element.cuh"

namespace lnb::cuda {

// Calls f with a value of each type of the pair. False, without a call, for a pair that no kernel is compiled for.
template <typename F>
bool with_types(Type x, Type y, F f) {
    const auto is = [=](Type want_x, Type want_y) { return x == want_x && y == want_y; };
    if (is(Type::kFloat64, Type::kFloat64)) return f(double{}, double{}), true;
    if (is(Type::kFloat32, Type::kFloat32)) return f(float{}, float{}), true;
    if (is(Type::kFloat32, Type::kBFloat16)) return f(float{}, BFloat16{}), true;
    if (is(Type::kBFloat16, Type::kFloat32)) return f(BFloat16{}, float{}), true;
    if (is(Type::kBFloat16, Type::kBFloat16)) return f(BFloat16{}, BFloat16{}), true;
    if (is(Type::kFloat32, Type::kFloat16)) return f(float{}, Half{}), true;
    if (is(Type::kFloat16, Type::kFloat32)) return f(Half{}, float{}), true;
    if (is(Type::kFloat16, Type::kFloat16)) return f(Half{}, Half{}), true;
    return false;
}

inline void require_kernel(bool found) {
    if (!found) throw std::invalid_argument("no kernel for this pair of dtypes");
}

}  // namespace lnb::cuda
