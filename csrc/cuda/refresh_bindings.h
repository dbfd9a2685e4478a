#pragma once

#include <pybind11/pybind11.h>

namespace lnb::cuda {

// Adds the refresh of the two-sided metric, and the ops whose kernels it shares, to the module.
void define_refresh(pybind11::module_& m);

}  // namespace lnb::cuda
