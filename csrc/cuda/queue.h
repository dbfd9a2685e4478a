// What the bindings share: addresses as pointers, and calls on a stream of a device, without Python's lock.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <utility>

#include "device.h"

namespace lnb::cuda {

using Where = std::pair<int, uintptr_t>;  // device, and a stream of it

template <typename T, typename Address>
T* pointer(Address address) {
    return reinterpret_cast<T*>(address);
}

template <typename F>
void on(const Where& where, F f) {
    const pybind11::gil_scoped_release release;
    const OnDevice device(where.first);
    f(pointer<void>(where.second));
}

}  // namespace lnb::cuda
