#pragma once

#include <pybind11/pybind11.h>

namespace lnb::cuda {

// Adds the second moments of convolutions to the module.
void define_conv(pybind11::module_& m);

}  // namespace lnb::cuda
