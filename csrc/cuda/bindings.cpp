// The module `lnb_kernels._cuda_module`: addresses on the device, sizes and a stream in, nothing of torch. Importing it
// touches no driver. Python code does the checks that need to know tensors; what is checked here is what would crash.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "address_checks.h"
#include "cuda/device.h"
#include "cuda/multi_tensor.h"
#include "cuda/pcg.h"
#include "cuda/queue.h"
#include "cuda/refresh_bindings.h"

namespace py = pybind11;

namespace {

using lnb::Addresses;
using lnb::bytes;
using lnb::check_addresses;
using lnb::check_memory;
using lnb::entries;
using lnb::require_disjoint_writes;
using lnb::Sizes;
using lnb::Type;
using lnb::cuda::on;
using lnb::cuda::Pair;
using lnb::cuda::pointer;
using lnb::cuda::Where;

std::vector<Pair> pairs(const char* x_name, const Addresses& x, Type x_type, const char* y_name, const Addresses& y,
                        Type y_type, const Sizes& sizes, const Sizes& slots) {
    if (!lnb::cuda::supported(x_type, y_type)) throw std::invalid_argument("no kernel for this pair of dtypes");
    check_addresses(x_name, x, sizes, x_type);
    check_addresses(y_name, y, sizes, y_type);
    if (slots.size() != sizes.size()) throw std::invalid_argument("slots: one per tensor");
    for (const int64_t slot : slots) entries("slots", {slot});
    std::vector<Pair> result(sizes.size());
    for (size_t i = 0; i < sizes.size(); ++i) {
        result[i] = {pointer<void>(x[i]), pointer<const void>(y[i]), nullptr, sizes[i], slots[i]};
    }
    return result;
}

int64_t count(const std::vector<Pair>& work) {
    return static_cast<int64_t>(work.size());
}

// Whether a call reads or writes what belongs to its tensors: without elements it starts no kernel.
int64_t some(const Sizes& sizes) {
    return std::any_of(sizes.begin(), sizes.end(), [](int64_t size) { return size > 0; });
}

void ema(const Addresses& averages, Type average_type, const Addresses& values, Type value_type, const Sizes& sizes,
         const Sizes& slots, double beta, uintptr_t ok, uintptr_t partials, const Where& where) {
    const auto work = pairs("averages", averages, average_type, "values", values, value_type, sizes, slots);
    require_disjoint_writes({{"averages", averages, bytes(sizes, average_type), true},
                             {"values", values, bytes(sizes, value_type), false}});
    if (partials != 0) check_memory("partials", partials, some(sizes), Type::kFloat64);
    on(where, [&](void* stream) {
        lnb::cuda::ema(work.data(), count(work), average_type, value_type, beta, pointer<const bool>(ok),
                       pointer<double>(partials), stream);
    });
}

void ema_combined(const Addresses& averages, Type average_type, const Addresses& values, Type value_type,
                  const Addresses& outputs, const Sizes& sizes, const Sizes& slots, double beta, uintptr_t shares,
                  Type share_type, double take, uintptr_t ok, const Where& where) {
    auto work = pairs("averages", averages, average_type, "values", values, value_type, sizes, slots);
    if (!lnb::cuda::combines(average_type, value_type))
        throw std::invalid_argument("no kernel for this pair of dtypes");
    check_addresses("out", outputs, sizes, average_type);
    check_memory("shares", shares, some(sizes), share_type);
    require_disjoint_writes({{"averages", averages, bytes(sizes, average_type), true},
                             {"values", values, bytes(sizes, value_type), false},
                             {"out", outputs, bytes(sizes, average_type), true}});
    for (size_t i = 0; i < work.size(); ++i) work[i].copy = pointer<void>(outputs[i]);
    on(where, [&](void* stream) {
        lnb::cuda::ema_combined(work.data(), count(work), average_type, value_type, beta, pointer<const void>(shares),
                                share_type, take, pointer<const bool>(ok), stream);
    });
}

void dot(const Addresses& xs, Type x_type, const Addresses& ys, Type y_type, const Sizes& sizes, const Sizes& slots,
         uintptr_t partials, const Where& where) {
    const auto work = pairs("xs", xs, x_type, "ys", ys, y_type, sizes, slots);
    check_memory("partials", partials, some(sizes), Type::kFloat64);
    on(where, [&](void* stream) {
        lnb::cuda::dot(work.data(), count(work), x_type, y_type, pointer<double>(partials), stream);
    });
}

void segment_sums(const Sizes& first, uintptr_t partials, uintptr_t out, const Where& where) {
    if (first.empty() || first.front() < 0 || !std::is_sorted(first.begin(), first.end())) {
        throw std::invalid_argument("first: the segments' beginnings and the end, in order");
    }
    check_memory("partials", partials, first.back() - first.front(), Type::kFloat64);
    check_memory("out", out, static_cast<int64_t>(first.size()) - 1, Type::kFloat64);
    on(where, [&](void* stream) {
        lnb::cuda::segment_sums(first.data(), static_cast<int64_t>(first.size()) - 1, pointer<const double>(partials),
                                pointer<double>(out), stream);
    });
}

using Scalar = std::tuple<double, uintptr_t, Type>;

lnb::cuda::Scalar scalar(const char* name, const Scalar& scalar) {
    const auto& [value, address, type] = scalar;
    if (address != 0) check_memory(name, address, 1, type);
    return {value, pointer<const void>(address), type};
}

void apply(const Addresses& params, Type param_type, const Addresses& directions, Type direction_type,
           const Sizes& sizes, const Sizes& slots, uintptr_t scales, Type scale_type, const Scalar& lr,
           const Scalar& decay, uintptr_t ok, const Where& where) {
    const auto work = pairs("params", params, param_type, "directions", directions, direction_type, sizes, slots);
    require_disjoint_writes({{"params", params, bytes(sizes, param_type), true},
                             {"directions", directions, bytes(sizes, direction_type), false}});
    check_memory("scales", scales, some(sizes), scale_type);
    on(where, [&](void* stream) {
        lnb::cuda::apply(work.data(), count(work), param_type, direction_type, pointer<const void>(scales), scale_type,
                         scalar("lr", lr), scalar("weight_decay", decay), pointer<const bool>(ok), stream);
    });
}

void apply_master(const Addresses& masters, const Addresses& params, Type param_type, const Addresses& directions,
                  Type direction_type, const Sizes& sizes, const Sizes& slots, uintptr_t scales, Type scale_type,
                  const Scalar& lr, const Scalar& decay, uintptr_t ok, const Where& where) {
    auto work = pairs("masters", masters, Type::kFloat32, "directions", directions, direction_type, sizes, slots);
    check_addresses("params", params, sizes, param_type);
    require_disjoint_writes({{"masters", masters, bytes(sizes, Type::kFloat32), true},
                             {"params", params, bytes(sizes, param_type), true},
                             {"directions", directions, bytes(sizes, direction_type), false}});
    check_memory("scales", scales, some(sizes), scale_type);
    for (size_t i = 0; i < work.size(); ++i) work[i].copy = pointer<void>(params[i]);
    on(where, [&](void* stream) {
        lnb::cuda::apply_master(work.data(), count(work), param_type, direction_type, pointer<const void>(scales),
                                scale_type, scalar("lr", lr), scalar("weight_decay", decay), pointer<const bool>(ok),
                                stream);
    });
}

void all_finite(const Addresses& tensors, Type type, const Sizes& sizes, uintptr_t finite, const Where& where) {
    const auto work = pairs("tensors", tensors, type, "tensors", tensors, type, sizes, sizes);
    if (some(sizes) != 0 && finite == 0) throw std::invalid_argument("finite has an entry but a null pointer");
    on(where,
       [&](void* stream) { lnb::cuda::all_finite(work.data(), count(work), type, pointer<bool>(finite), stream); });
}

// Addresses and sizes of one layer, in the order of the structs' members.
template <size_t kCount>
using Fields = std::array<int64_t, kCount>;

void check_layer(const std::string& layer, int64_t m, int64_t d, int64_t columns, int64_t most_columns) {
    if (m < 0 || m > lnb::cuda::kLayerRows) {
        throw std::invalid_argument(layer + " has " + std::to_string(m) + " rows; allowed are at most " +
                                    std::to_string(lnb::cuda::kLayerRows));
    }
    if (d < 0 || columns < 1 || columns > most_columns || (columns != d && columns != d + 1)) {
        throw std::invalid_argument(layer + " has " + std::to_string(columns) + " columns for " + std::to_string(d) +
                                    " features; allowed are as many or one more, and at most " +
                                    std::to_string(most_columns));
    }
}

// Named float32 tensors: an address, entries, and whether it may be null.
struct Operand {
    const char* name;
    int64_t address, entries;
    bool optional = false;
};

void check_operands(const std::string& layer, const std::vector<Operand>& operands) {
    for (const auto& [name, address, entries, optional] : operands) {
        if (address == 0 && optional) continue;
        check_memory(layer + ": " + name, static_cast<uintptr_t>(address), entries, Type::kFloat32);
    }
}

void pcg_rows(const std::vector<Fields<11>>& problems, int iterations, double ridge, double stop, const Where& where) {
    if (iterations < 0) throw std::invalid_argument("iterations is negative");
    std::vector<lnb::cuda::RowProblem> work;
    for (const auto& [s, g, h0, mu, var, h, norms, norm_stride, m, d, columns] : problems) {
        const std::string layer = lnb::label("layers", work.size());
        check_layer(layer, m, d, columns, lnb::cuda::kRowColumns);
        if ((mu == 0) != (var == 0)) throw std::invalid_argument(layer + ": mu and var come together");
        if (norm_stride < m) throw std::invalid_argument(layer + ": norm_stride is less than the rows");
        const int64_t size = m * columns, features = m > 0 ? d : 0;
        check_operands(layer, {{"s", s, m},
                               {"g", g, size},
                               {"h0", h0, size, true},
                               {"mu", mu, features, true},
                               {"var", var, features, true},
                               {"h", h, size},
                               {"norms", norms, m}});
        work.push_back({pointer<const float>(s), pointer<const float>(g), pointer<const float>(h0),
                        pointer<const float>(mu), pointer<const float>(var), pointer<float>(h), pointer<float>(norms),
                        norm_stride, static_cast<int32_t>(m), static_cast<int32_t>(d), static_cast<int32_t>(columns)});
    }
    on(where, [&](void* stream) {
        lnb::cuda::pcg_rows(work.data(), static_cast<int64_t>(work.size()), iterations, static_cast<float>(ridge),
                            static_cast<float>(stop), stream);
    });
}

lnb::CgSums sums(const char* name, const Fields<6>& addresses, int64_t rows) {
    for (const int64_t address : addresses) check_memory(name, static_cast<uintptr_t>(address), rows, Type::kFloat64);
    const auto& [gg, old_rr, rr, old_rz, rz, pap] = addresses;
    return {pointer<double>(gg),
            {pointer<double>(old_rr), pointer<double>(rr)},
            {pointer<double>(old_rz), pointer<double>(rz)},
            pointer<double>(pap)};
}

void pcg_phase(lnb::CgPhase phase, const std::vector<Fields<12>>& problems, bool unit_per_row, const Fields<6>& units,
               const Fields<6>& rows, double stop, const Where& where) {
    std::vector<lnb::cuda::VectorProblem> work;
    int64_t all_rows = 0;
    for (const auto& [g, mu, var, h, r, p, ap, first_row, unit, m, d, columns] : problems) {
        const std::string layer = lnb::label("layers", work.size());
        check_layer(layer, m, d, columns, lnb::cuda::kVectorColumns);
        if ((mu == 0) != (var == 0)) throw std::invalid_argument(layer + ": mu and var come together");
        if (first_row < 0 || unit < 0) throw std::invalid_argument(layer + ": first_row or unit is negative");
        const int64_t size = m * columns, features = m > 0 ? d : 0;
        check_operands(layer, {{"g", g, size},
                               {"mu", mu, features, true},
                               {"var", var, features, true},
                               {"h", h, size},
                               {"r", r, size},
                               {"p", p, size},
                               {"ap", ap, size, phase == lnb::CgPhase::kStart}});
        all_rows += m;
        work.push_back({pointer<const float>(g), pointer<const float>(mu), pointer<const float>(var), pointer<float>(h),
                        pointer<float>(r), pointer<float>(p), pointer<float>(ap), first_row, unit,
                        static_cast<int32_t>(m), static_cast<int32_t>(d), static_cast<int32_t>(columns)});
    }
    const auto of_units = sums("units", units, all_rows), of_rows = sums("rows", rows, all_rows);
    on(where, [&](void* stream) {
        lnb::cuda::pcg_phase(phase, work.data(), static_cast<int64_t>(work.size()), unit_per_row, of_units, of_rows,
                             stop, stream);
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
    m.attr("LAYER_ROWS") = lnb::cuda::kLayerRows;
    m.attr("VECTOR_COLUMNS") = lnb::cuda::kVectorColumns;
    m.def("failure", &lnb::cuda::failure, "Why the kernels cannot run on a device; empty if they can.");
    m.def("runtime_version", &lnb::cuda::runtime_version);
    m.def("supported", &lnb::cuda::supported);
    py::class_<lnb::Memory>(m, "Memory", py::module_local())
        .def(py::init<std::string, lnb::Addresses, lnb::Sizes, bool>(),
             "A list: name, addresses, bytes, whether it is written.");
    m.def("require_disjoint_writes", &require_disjoint_writes);
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
    lnb::cuda::define_refresh(m);
}
