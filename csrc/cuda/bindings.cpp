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
#include "cuda/conv_bindings.h"
#include "cuda/device.h"
#include "cuda/fused_apply_bindings.h"
#include "cuda/fused_step.h"
#include "cuda/moment_flags.h"
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

int64_t count(const std::vector<Pair>& paired) {
    return static_cast<int64_t>(paired.size());
}

// Whether a call reads or writes what belongs to its tensors: without elements it starts no kernel.
int64_t some(const Sizes& sizes) {
    return std::any_of(sizes.begin(), sizes.end(), [](int64_t size) { return size > 0; });
}

void ema_combined(const Addresses& averages, Type average_type, const Addresses& values, Type value_type,
                  const Addresses& outputs, const Sizes& sizes, const Sizes& slots, double beta, uintptr_t shares,
                  Type share_type, double take, uintptr_t ok, const Where& where) {
    auto paired = pairs("averages", averages, average_type, "values", values, value_type, sizes, slots);
    if (!lnb::cuda::combines(average_type, value_type))
        throw std::invalid_argument("no kernel for this pair of dtypes");
    check_addresses("out", outputs, sizes, average_type);
    check_memory("shares", shares, some(sizes), share_type);
    require_disjoint_writes({{"averages", averages, bytes(sizes, average_type), true},
                             {"values", values, bytes(sizes, value_type), false},
                             {"out", outputs, bytes(sizes, average_type), true}});
    for (size_t i = 0; i < paired.size(); ++i) paired[i].copy = pointer<void>(outputs[i]);
    on(where, [&](void* stream) {
        lnb::cuda::ema_combined(paired.data(), count(paired), average_type, value_type, beta,
                                pointer<const void>(shares), share_type, take, pointer<const bool>(ok), stream);
    });
}

void dot(const Addresses& xs, Type x_type, const Addresses& ys, Type y_type, const Sizes& sizes, const Sizes& slots,
         uintptr_t partials, const Where& where) {
    const auto paired = pairs("xs", xs, x_type, "ys", ys, y_type, sizes, slots);
    check_memory("partials", partials, some(sizes), Type::kFloat64);
    on(where, [&](void* stream) {
        lnb::cuda::dot(paired.data(), count(paired), x_type, y_type, pointer<double>(partials), stream);
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
    const auto paired = pairs("params", params, param_type, "directions", directions, direction_type, sizes, slots);
    require_disjoint_writes({{"params", params, bytes(sizes, param_type), true},
                             {"directions", directions, bytes(sizes, direction_type), false}});
    check_memory("scales", scales, some(sizes), scale_type);
    on(where, [&](void* stream) {
        lnb::cuda::apply(paired.data(), count(paired), param_type, direction_type, pointer<const void>(scales),
                         scale_type, scalar("lr", lr), scalar("weight_decay", decay), pointer<const bool>(ok), stream);
    });
}

void apply_master(const Addresses& masters, const Addresses& params, Type param_type, const Addresses& directions,
                  Type direction_type, const Sizes& sizes, const Sizes& slots, uintptr_t scales, Type scale_type,
                  const Scalar& lr, const Scalar& decay, uintptr_t ok, const Where& where) {
    auto paired = pairs("masters", masters, Type::kFloat32, "directions", directions, direction_type, sizes, slots);
    check_addresses("params", params, sizes, param_type);
    require_disjoint_writes({{"masters", masters, bytes(sizes, Type::kFloat32), true},
                             {"params", params, bytes(sizes, param_type), true},
                             {"directions", directions, bytes(sizes, direction_type), false}});
    check_memory("scales", scales, some(sizes), scale_type);
    for (size_t i = 0; i < paired.size(); ++i) paired[i].copy = pointer<void>(params[i]);
    on(where, [&](void* stream) {
        lnb::cuda::apply_master(paired.data(), count(paired), param_type, direction_type, pointer<const void>(scales),
                                scale_type, scalar("lr", lr), scalar("weight_decay", decay), pointer<const bool>(ok),
                                stream);
    });
}

void all_finite(const Addresses& tensors, Type type, const Sizes& sizes, uintptr_t finite, const Where& where) {
    const auto paired = pairs("tensors", tensors, type, "tensors", tensors, type, sizes, sizes);
    if (some(sizes) != 0 && finite == 0) throw std::invalid_argument("finite has an entry but a null pointer");
    on(where,
       [&](void* stream) { lnb::cuda::all_finite(paired.data(), count(paired), type, pointer<bool>(finite), stream); });
}

void moment_flags(const Addresses& moments, const Sizes& counts, const Sizes& sides, uintptr_t sums, uintptr_t squares,
                  const Where& where) {
    if (counts.size() != moments.size() || sides.size() != moments.size()) {
        throw std::invalid_argument("moments: a count and a side each");
    }
    std::vector<lnb::cuda::Moments> layers(moments.size());
    for (size_t i = 0; i < moments.size(); ++i) {
        const std::string name = lnb::label("moments", i);
        if (counts[i] < 1 || counts[i] > INT32_MAX || sides[i] < 1 || sides[i] > INT32_MAX) {
            throw std::invalid_argument(name + " has " + std::to_string(counts[i]) + " matrices of side " +
                                        std::to_string(sides[i]) + "; allowed are 1 to 2147483647 of each");
        }
        check_memory(name, moments[i], entries(name, {counts[i], sides[i], sides[i]}), Type::kFloat32);
        layers[i] = {pointer<const float>(moments[i]), counts[i], sides[i]};
    }
    if (!layers.empty() && (sums == 0 || squares == 0)) {
        throw std::invalid_argument("sums and squares have entries but a null pointer");
    }
    on(where, [&](void* stream) {
        lnb::cuda::moment_flags(layers.data(), static_cast<int64_t>(layers.size()), pointer<bool>(sums),
                                pointer<bool>(squares), stream);
    });
}

void fused_apply(const std::vector<lnb::cuda::MoveFields>& entries, const std::vector<lnb::cuda::RateFields>& lr,
                 const std::vector<lnb::cuda::RateFields>& decay, const lnb::cuda::MoveCall& call, const Where& where) {
    const auto checked = lnb::cuda::move_entries(entries, lr, decay, call);
    const auto numbers = lnb::cuda::move_numbers(call);
    on(where, [&](void* stream) {
        lnb::cuda::fused_apply(checked.data(), static_cast<int64_t>(checked.size()), numbers, stream);
    });
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

void pcg_rows(const std::vector<Fields<11>>& equations, int iterations, double ridge, double stop, const Where& where) {
    if (iterations < 0) throw std::invalid_argument("iterations is negative");
    std::vector<lnb::cuda::RowEquation> checked;
    for (const auto& [s, g, h0, mu, var, h, norms, norm_stride, m, d, columns] : equations) {
        const std::string layer = lnb::label("layers", checked.size());
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
        checked.push_back({pointer<const float>(s), pointer<const float>(g), pointer<const float>(h0),
                           pointer<const float>(mu), pointer<const float>(var), pointer<float>(h),
                           pointer<float>(norms), norm_stride, static_cast<int32_t>(m), static_cast<int32_t>(d),
                           static_cast<int32_t>(columns)});
    }
    on(where, [&](void* stream) {
        lnb::cuda::pcg_rows(checked.data(), static_cast<int64_t>(checked.size()), iterations, static_cast<float>(ridge),
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

void pcg_phase(lnb::CgPhase phase, const std::vector<Fields<12>>& equations, bool unit_per_row, const Fields<6>& units,
               const Fields<6>& rows, double stop, const Where& where) {
    std::vector<lnb::cuda::VectorEquation> checked;
    int64_t all_rows = 0;
    for (const auto& [g, mu, var, h, r, p, ap, first_row, unit, m, d, columns] : equations) {
        const std::string layer = lnb::label("layers", checked.size());
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
        checked.push_back({pointer<const float>(g), pointer<const float>(mu), pointer<const float>(var),
                           pointer<float>(h), pointer<float>(r), pointer<float>(p), pointer<float>(ap), first_row, unit,
                           static_cast<int32_t>(m), static_cast<int32_t>(d), static_cast<int32_t>(columns)});
    }
    const auto of_units = sums("units", units, all_rows), of_rows = sums("rows", rows, all_rows);
    on(where, [&](void* stream) {
        lnb::cuda::pcg_phase(phase, checked.data(), static_cast<int64_t>(checked.size()), unit_per_row, of_units,
                             of_rows, stop, stream);
    });
}

// A layer of fused_direct, in the order of the struct's members, and the entries of `partials` and `mixed_biases`.
void fused_direct(const std::vector<Fields<16>>& layers, Type gradient_type, Type direction_type,
                  lnb::cuda::Precision precision, uintptr_t partials, int64_t partial_count, uintptr_t mixed_biases,
                  int64_t rows_of_all, const std::array<uintptr_t, 2>& shares, int64_t share_count, double decay,
                  double take, uintptr_t ok, const Where& where) {
    if (!lnb::cuda::directs(gradient_type, direction_type)) {
        throw std::invalid_argument("no kernel for this pair of dtypes");
    }
    check_memory("partials", partials, partial_count, Type::kFloat64);
    check_memory("mixed_biases", mixed_biases, rows_of_all, Type::kFloat64);
    check_memory("shares", shares[0], share_count, Type::kFloat64);
    std::vector<lnb::cuda::DirectLayer> checked;
    std::vector<lnb::Memory> memory{{"directions", {}, {}, true},
                                    {"momentum", {}, {}, true},
                                    {"gradients", {}, {}, false},
                                    {"partials", {partials}, {8 * partial_count}, true},
                                    {"mixed_biases", {mixed_biases}, {8 * rows_of_all}, true}};
    for (const auto& [gradient, momentum, direction, bias_gradient, bias_momentum, inverse, mean, root, first_row,
                      first_entry, matrices, rows, inputs, size, side, slot] : layers) {
        const std::string layer = lnb::label("layers", checked.size());
        const auto block = [&](const char* name, int64_t side_of, int64_t of) {
            if (side_of >= 1 && side_of <= lnb::cuda::kLargestBlock && of >= 1 && of <= INT32_MAX &&
                of % side_of == 0) {
                return;
            }
            throw std::invalid_argument(layer + ": " + name + " has blocks of side " + std::to_string(side_of) +
                                        " for " + std::to_string(of) + "; allowed are divisors up to " +
                                        std::to_string(lnb::cuda::kLargestBlock));
        };
        block("inverse", size, inputs);
        block("root", side, rows);
        if (matrices < 1 || matrices > INT32_MAX) throw std::invalid_argument(layer + ": has no matrices, or too many");
        const int64_t all_rows = entries(layer, {matrices, rows}), all = entries(layer, {all_rows, inputs});
        const int64_t sums = entries(layer, {all_rows, inputs / size, lnb::cuda::kSums});
        if (first_row < 0 || all_rows > rows_of_all - first_row || first_entry < 0 ||
            sums > partial_count - first_entry || slot < 0 || slot >= share_count) {
            throw std::invalid_argument(layer + ": its sums, rows or shares are not among those of all layers");
        }
        const bool biased = mean != 0;
        if (biased != (bias_gradient != 0) || biased != (bias_momentum != 0)) {
            throw std::invalid_argument(layer + ": mean, bias_gradient and bias_momentum come together");
        }
        check_memory(layer + ": gradient", static_cast<uintptr_t>(gradient), all, gradient_type);
        check_memory(layer + ": direction", static_cast<uintptr_t>(direction), all, direction_type);
        check_operands(layer, {{"momentum", momentum, all},
                               {"bias_momentum", bias_momentum, all_rows, true},
                               {"inverse", inverse, entries(layer, {matrices, inputs, size})},
                               {"mean", mean, matrices * inputs, true},
                               {"root", root, entries(layer, {all_rows, side})}});
        if (biased) {
            check_memory(layer + ": bias_gradient", static_cast<uintptr_t>(bias_gradient), all_rows, gradient_type);
            check_memory("bias_shares", shares[1], share_count, Type::kFloat64);
        }
        const std::array<int64_t, 3> addresses{direction, momentum, gradient};
        const std::array<Type, 3> types{direction_type, Type::kFloat32, gradient_type};
        for (size_t k = 0; k < addresses.size(); ++k) {
            memory[k].addresses.push_back(static_cast<uintptr_t>(addresses[k]));
            memory[k].bytes.push_back(all * lnb::width(types[k]));
        }
        checked.push_back({pointer<const void>(gradient), pointer<float>(momentum), pointer<void>(direction),
                           pointer<const void>(bias_gradient), pointer<const float>(bias_momentum),
                           pointer<const float>(inverse), pointer<const float>(mean), pointer<const float>(root),
                           first_row, first_entry, static_cast<int32_t>(matrices), static_cast<int32_t>(rows),
                           static_cast<int32_t>(inputs), static_cast<int32_t>(size), static_cast<int32_t>(side),
                           static_cast<int32_t>(slot)});
    }
    require_disjoint_writes(memory);
    const lnb::cuda::DirectNumbers numbers{pointer<double>(partials),
                                           pointer<double>(mixed_biases),
                                           pointer<const double>(shares[0]),
                                           pointer<const double>(shares[1]),
                                           decay,
                                           take,
                                           pointer<const bool>(ok)};
    on(where, [&](void* stream) {
        lnb::cuda::direct_layers(checked.data(), static_cast<int64_t>(checked.size()), gradient_type, direction_type,
                                 precision, numbers, stream);
    });
}

// A layer of fused_finish: its fields in the order of the struct's members, the least norm, and its rate.
using FinishLayer = std::tuple<Fields<9>, double, Scalar>;

// The addresses of what all layers have in common, in the order of FinishNumbers.
void fused_finish(const std::vector<FinishLayer>& layers, Type gradient_type, const std::array<uintptr_t, 17>& numbers,
                  int64_t partial_count, int64_t rows_of_all, int64_t slots, int64_t steps,
                  const std::array<double, 19>& settings, uintptr_t ok, const Where& where) {
    constexpr std::array<const char*, 17> kNames{
        "row_scales",   "row_square", "independent", "growth",      "radius",  "coherence",
        "sums",         "scales",     "products",    "weight_norm", "shorter", "partials",
        "mixed_biases", "input_size", "steps",       "bias_shares", "norms"};
    const std::array<int64_t, 17> counts{rows_of_all,
                                         rows_of_all,
                                         slots,
                                         slots,
                                         slots,
                                         slots,
                                         4 * slots,
                                         slots,
                                         slots,
                                         slots,
                                         slots,
                                         partial_count,
                                         rows_of_all,
                                         slots,
                                         steps,
                                         0,
                                         numbers[16] == 0 ? 0 : slots};
    for (size_t k = 0; k < kNames.size(); ++k) {
        const bool narrow = k == 0 || k == 14;
        check_memory(kNames[k], numbers[k], counts[k], narrow ? Type::kFloat32 : Type::kFloat64);
    }
    if (numbers[11] % 16 != 0) {
        throw std::invalid_argument("partials is not aligned to 16 bytes; use .clone() to get one that is");
    }
    std::vector<lnb::cuda::FinishLayer> checked;
    for (const auto& [fields, usual_norm, rate] : layers) {
        const auto& [bias_momentum, bias_direction, bias_gradient, first_row, first_entry, rows, column_blocks, slot,
                     step] = fields;
        const std::string layer = lnb::label("layers", checked.size());
        const int64_t sums = entries(layer, {rows, column_blocks, lnb::cuda::kSums});
        if (rows < 1 || column_blocks < 1 || column_blocks > INT32_MAX || first_row < 0 ||
            rows > rows_of_all - first_row || first_entry < 0 || first_entry % lnb::cuda::kSums != 0 ||
            sums > partial_count - first_entry || slot < 0 || slot >= slots || step < 0 || step >= steps) {
            throw std::invalid_argument(layer + ": its sums, rows, numbers or step are not among those of all layers");
        }
        const bool biased = bias_gradient != 0;
        if (biased != (bias_momentum != 0) || biased != (bias_direction != 0)) {
            throw std::invalid_argument(layer + ": bias_momentum, bias_direction and bias_gradient come together");
        }
        if (biased) {
            check_operands(layer, {{"bias_momentum", bias_momentum, rows}, {"bias_direction", bias_direction, rows}});
            check_memory(layer + ": bias_gradient", static_cast<uintptr_t>(bias_gradient), rows, gradient_type);
            check_memory("bias_shares", numbers[15], slots, Type::kFloat64);
        }
        checked.push_back({pointer<float>(bias_momentum), pointer<float>(bias_direction),
                           pointer<const void>(bias_gradient), first_row, first_entry, rows,
                           static_cast<int32_t>(column_blocks), static_cast<int32_t>(slot), step, usual_norm,
                           scalar("rates", rate)});
    }
    const auto wide = [&](size_t k) { return pointer<double>(numbers[k]); };
    const lnb::cuda::FinishNumbers all{pointer<float>(numbers[0]),
                                       wide(1),
                                       wide(2),
                                       wide(3),
                                       wide(4),
                                       wide(5),
                                       wide(6),
                                       wide(7),
                                       wide(8),
                                       wide(9),
                                       wide(10),
                                       wide(11),
                                       wide(12),
                                       wide(13),
                                       pointer<const float>(numbers[14]),
                                       wide(15),
                                       wide(16),
                                       pointer<const bool>(ok)};
    const auto& [decay, nesterov, b_rows, change, largest, opposed, shrink, grow, least, b_coherence, quiet, loud, calm,
                 floor, recover, opening, turning, telling, interval] = settings;
    const lnb::cuda::FinishSettings rules{{decay, nesterov != 0},
                                          b_rows,
                                          change,
                                          largest,
                                          {opposed, shrink, grow, least, b_coherence, quiet, loud, calm, floor, recover,
                                           opening, turning, telling, interval}};
    on(where, [&](void* stream) {
        lnb::cuda::finish_layers(checked.data(), static_cast<int64_t>(checked.size()), gradient_type, all, rules,
                                 stream);
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
    py::enum_<lnb::cuda::Precision>(m, "Precision", py::module_local())
        .value("TF32", lnb::cuda::Precision::kTf32)
        .value("TF32X3", lnb::cuda::Precision::kTf32x3)
        .value("BF16", lnb::cuda::Precision::kBf16);
    m.attr("LAYERS_PER_LAUNCH") = lnb::cuda::kDirectLayers;
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
    m.def("combines", &lnb::cuda::combines);
    m.def("ema_combined", &ema_combined);
    m.def("dot", &dot);
    m.def("segment_sums", &segment_sums);
    m.def("apply", &apply);
    m.def("apply_master", &apply_master);
    m.def("all_finite", &all_finite);
    m.def("moment_flags", &moment_flags);
    py::class_<lnb::cuda::MoveCall>(m, "MoveCall", py::module_local())
        .def(py::init<uintptr_t, uintptr_t, uintptr_t, uintptr_t, uintptr_t, uintptr_t, int64_t, int64_t, double,
                      double, double, double, double>(),
             "Addresses of scales, shorter, shares, corrections, finite and ok (0 for none); entries of scales; number "
             "of "
             "other parameters; beta, take, b_others, epsilon, and the largest entry whose square counts.");
    py::enum_<lnb::cuda::Move>(m, "Move", py::module_local())
        .value("WEIGHT", lnb::cuda::Move::kWeight)
        .value("BIAS", lnb::cuda::Move::kBias)
        .value("OTHER", lnb::cuda::Move::kOther);
    m.def("moves", &lnb::cuda::moves);
    m.def("check_moves", &lnb::cuda::check_moves, "What fused_apply checks of its arguments.");
    m.def("fused_apply", &fused_apply);
    m.def("fused_direct", &fused_direct);
    m.def("fused_finish", &fused_finish);
    m.def("pcg_rows", &pcg_rows);
    m.def("pcg_phase", &pcg_phase);
    lnb::cuda::define_refresh(m);
    lnb::cuda::define_conv(m);
}
