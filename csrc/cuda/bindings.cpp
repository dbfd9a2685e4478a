// The module `lnb_kernels._cuda_module`: addresses on the device, sizes and a stream in, nothing of torch. Importing it
// touches no driver. Python code does the checks that need to know tensors; what is checked here is what would crash.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "address_checks.h"
#include "cuda/device.h"
#include "cuda/multi_tensor.h"
#include "cuda/pcg.h"

namespace py = pybind11;

namespace {

using lnb::Addresses;
using lnb::check_addresses;
using lnb::Sizes;
using lnb::Type;
using lnb::cuda::OnDevice;
using lnb::cuda::Pair;
using Where = std::pair<int, uintptr_t>;  // device, and a stream of it

template <typename T>
T* pointer(uintptr_t address) {
    return reinterpret_cast<T*>(address);
}

template <typename F>
void on(const Where& where, F f) {
    const py::gil_scoped_release release;
    const OnDevice device(where.first);
    f(pointer<void>(where.second));
}

std::vector<Pair> pairs(const char* x_name, const Addresses& x, Type x_type, const char* y_name, const Addresses& y,
                        Type y_type, const Sizes& sizes, const Sizes& slots) {
    if (!lnb::cuda::supported(x_type, y_type)) throw std::invalid_argument("no kernel for this pair of dtypes");
    check_addresses(x_name, x, sizes, x_type);
    check_addresses(y_name, y, sizes, y_type);
    if (slots.size() != sizes.size()) throw std::invalid_argument("slots: one per tensor");
    std::vector<Pair> result(sizes.size());
    for (size_t i = 0; i < sizes.size(); ++i) {
        result[i] = {pointer<void>(x[i]), pointer<const void>(y[i]), nullptr, sizes[i], slots[i]};
    }
    return result;
}

int64_t count(const std::vector<Pair>& work) {
    return static_cast<int64_t>(work.size());
}

void ema(const Addresses& averages, Type average_type, const Addresses& values, Type value_type, const Sizes& sizes,
         const Sizes& slots, double beta, uintptr_t ok, uintptr_t partials, const Where& where) {
    const auto work = pairs("averages", averages, average_type, "values", values, value_type, sizes, slots);
    on(where, [&](void* stream) {
        lnb::cuda::ema(work.data(), count(work), average_type, value_type, beta, pointer<const bool>(ok),
                       pointer<double>(partials), stream);
    });
}

void ema_combined(const Addresses& averages, Type average_type, const Addresses& values, Type value_type,
                  const Addresses& outputs, const Sizes& sizes, const Sizes& slots, double beta, uintptr_t shares,
                  Type share_type, double take, uintptr_t ok, const Where& where) {
    auto work = pairs("averages", averages, average_type, "values", values, value_type, sizes, slots);
    check_addresses("outputs", outputs, sizes, average_type);
    for (size_t i = 0; i < work.size(); ++i) work[i].copy = pointer<void>(outputs[i]);
    on(where, [&](void* stream) {
        lnb::cuda::ema_combined(work.data(), count(work), average_type, value_type, beta, pointer<const void>(shares),
                                share_type, take, pointer<const bool>(ok), stream);
    });
}

void dot(const Addresses& xs, Type x_type, const Addresses& ys, Type y_type, const Sizes& sizes, const Sizes& slots,
         uintptr_t partials, const Where& where) {
    const auto work = pairs("xs", xs, x_type, "ys", ys, y_type, sizes, slots);
    on(where, [&](void* stream) {
        lnb::cuda::dot(work.data(), count(work), x_type, y_type, pointer<double>(partials), stream);
    });
}

void segment_sums(const Sizes& first, uintptr_t partials, uintptr_t out, Type out_type, const Where& where) {
    if (first.empty()) throw std::invalid_argument("first: the segments' beginnings and the end");
    on(where, [&](void* stream) {
        lnb::cuda::segment_sums(first.data(), static_cast<int64_t>(first.size()) - 1, pointer<const double>(partials),
                                pointer<void>(out), out_type, stream);
    });
}

using Scalar = std::tuple<double, uintptr_t, Type>;

lnb::cuda::Scalar scalar(const Scalar& value) {
    return {std::get<0>(value), pointer<const void>(std::get<1>(value)), std::get<2>(value)};
}

void apply(const Addresses& params, Type param_type, const Addresses& directions, Type direction_type,
           const Sizes& sizes, const Sizes& slots, uintptr_t scales, Type scale_type, const Scalar& lr,
           const Scalar& decay, uintptr_t ok, const Where& where) {
    const auto work = pairs("params", params, param_type, "directions", directions, direction_type, sizes, slots);
    on(where, [&](void* stream) {
        lnb::cuda::apply(work.data(), count(work), param_type, direction_type, pointer<const void>(scales), scale_type,
                         scalar(lr), scalar(decay), pointer<const bool>(ok), stream);
    });
}

void apply_master(const Addresses& masters, const Addresses& params, Type param_type, const Addresses& directions,
                  Type direction_type, const Sizes& sizes, const Sizes& slots, uintptr_t scales, Type scale_type,
                  const Scalar& lr, const Scalar& decay, uintptr_t ok, const Where& where) {
    auto work = pairs("masters", masters, Type::kFloat32, "directions", directions, direction_type, sizes, slots);
    check_addresses("params", params, sizes, param_type);
    for (size_t i = 0; i < work.size(); ++i) work[i].copy = pointer<void>(params[i]);
    on(where, [&](void* stream) {
        lnb::cuda::apply_master(work.data(), count(work), param_type, direction_type, pointer<const void>(scales),
                                scale_type, scalar(lr), scalar(decay), pointer<const bool>(ok), stream);
    });
}

void all_finite(const Addresses& tensors, Type type, const Sizes& sizes, uintptr_t finite, const Where& where) {
    const auto work = pairs("tensors", tensors, type, "tensors", tensors, type, sizes, sizes);
    on(where,
       [&](void* stream) { lnb::cuda::all_finite(work.data(), count(work), type, pointer<bool>(finite), stream); });
}

// Addresses and sizes of one layer, in the order of the structs' members.
template <size_t kCount>
using Fields = std::array<int64_t, kCount>;

template <typename T>
T* pointer(int64_t address) {
    return reinterpret_cast<T*>(address);
}

void pcg_rows(const std::vector<Fields<11>>& problems, int iterations, double ridge, double stop, const Where& where) {
    std::vector<lnb::cuda::RowProblem> work;
    for (const auto& [s, g, h0, mu, var, h, norms, norm_stride, m, d, columns] : problems) {
        work.push_back({pointer<const float>(s), pointer<const float>(g), pointer<const float>(h0),
                        pointer<const float>(mu), pointer<const float>(var), pointer<float>(h), pointer<float>(norms),
                        norm_stride, static_cast<int32_t>(m), static_cast<int32_t>(d), static_cast<int32_t>(columns)});
    }
    on(where, [&](void* stream) {
        lnb::cuda::pcg_rows(work.data(), static_cast<int64_t>(work.size()), iterations, static_cast<float>(ridge),
                            static_cast<float>(stop), stream);
    });
}

lnb::CgSums sums(const Fields<6>& addresses) {
    const auto& [gg, old_rr, rr, old_rz, rz, pap] = addresses;
    return {pointer<double>(gg),
            {pointer<double>(old_rr), pointer<double>(rr)},
            {pointer<double>(old_rz), pointer<double>(rz)},
            pointer<double>(pap)};
}

void pcg_phase(lnb::CgPhase phase, const std::vector<Fields<12>>& problems, bool unit_per_row, const Fields<6>& units,
               const Fields<6>& rows, double stop, const Where& where) {
    std::vector<lnb::cuda::VectorProblem> work;
    for (const auto& [g, mu, var, h, r, p, ap, first_row, unit, m, d, columns] : problems) {
        work.push_back({pointer<const float>(g), pointer<const float>(mu), pointer<const float>(var), pointer<float>(h),
                        pointer<float>(r), pointer<float>(p), pointer<float>(ap), first_row, unit,
                        static_cast<int32_t>(m), static_cast<int32_t>(d), static_cast<int32_t>(columns)});
    }
    on(where, [&](void* stream) {
        lnb::cuda::pcg_phase(phase, work.data(), static_cast<int64_t>(work.size()), unit_per_row, sums(units),
                             sums(rows), stop, stream);
    });
}

}  // namespace

PYBIND11_MODULE(_cuda_module, m) {
    py::enum_<Type>(m, "Type", py::module_local())
        .value("FLOAT64", Type::kFloat64)
        .value("FLOAT32", Type::kFloat32)
        .value("BFLOAT16", Type::kBFloat16)
        .value("FLOAT16", Type::kFloat16);
    py::enum_<lnb::CgPhase>(m, "Phase", py::module_local())
        .value("START", lnb::CgPhase::kStart)
        .value("PRODUCT", lnb::CgPhase::kProduct)
        .value("MOVE", lnb::CgPhase::kMove)
        .value("DIRECTION", lnb::CgPhase::kDirection)
        .value("STEP", lnb::CgPhase::kStep);
    m.attr("TENSORS_PER_LAUNCH") = lnb::cuda::kTensors;
    m.attr("PIECE_SIZE") = lnb::cuda::kPieceSize;
    m.attr("ROW_COLUMNS") = lnb::cuda::kRowColumns;
    m.attr("VECTOR_COLUMNS") = lnb::cuda::kVectorColumns;
    m.def("failure", &lnb::cuda::failure, "Why the kernels cannot run on a device; empty if they can.");
    m.def("runtime_version", &lnb::cuda::runtime_version);
    m.def("supported", &lnb::cuda::supported);
    py::class_<lnb::Memory>(m, "Memory", py::module_local())
        .def(py::init<std::string, lnb::Addresses, lnb::Sizes, bool>(),
             "A list: name, addresses, bytes, whether it is written.");
    m.def("require_disjoint_writes", &lnb::require_disjoint_writes);
    m.def("ema", &ema);
    m.def("combines", &lnb::cuda::combines);
    m.def("ema_combined", &ema_combined);
    m.def("dot", &dot);
    m.def("segment_sums", &segment_sums);
    m.def("apply", &apply);
    m.def("apply_master", &apply_master);
    m.def("all_finite", &all_finite);
    m.def("pcg_rows", &pcg_rows);
    m.def("pcg_phase", &pcg_phase);
}
