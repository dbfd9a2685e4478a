#include "refresh_bindings.h"

#include <pybind11/stl.h>

#include <array>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "../address_checks.h"
#include "newton_schulz.h"
#include "queue.h"
#include "refresh.h"
#include "spd_inverse.h"

namespace lnb::cuda {
namespace {

constexpr int kLargestSide = 144;

void check_side(const std::string& name, int64_t side) {
    if (side < 1 || side > kLargestSide) {
        throw std::invalid_argument(name + " is " + std::to_string(side) + "; allowed are 1 to " +
                                    std::to_string(kLargestSide));
    }
}

// A count that the kernels keep in 32 bits.
int32_t counted(const std::string& name, int64_t value, int64_t least) {
    if (value < least || value > INT32_MAX) {
        throw std::invalid_argument(name + " is " + std::to_string(value) + "; allowed are " + std::to_string(least) +
                                    " to 2147483647");
    }
    return static_cast<int32_t>(value);
}

void check(const std::string& name, int64_t address, int64_t size, Type type = Type::kFloat32) {
    check_memory(name, static_cast<uintptr_t>(address), size, type);
}

void check_optional(const std::string& name, int64_t address, int64_t size, Type type = Type::kFloat32) {
    if (address != 0) check(name, address, size, type);
}

void check_share(const std::string& name, double share) {
    if (!(share >= 0 && share < 1)) {
        throw std::invalid_argument(name + " is " + std::to_string(share) + "; allowed are 0 to below 1");
    }
}

void spd_inverses_at(uintptr_t matrices, uintptr_t inverses, uintptr_t failed, int64_t count, int64_t side,
                     const Where& where) {
    check_side("n", side);
    counted("count", count, 0);
    const int64_t size = entries("matrices", {count, side, side});
    check_memory("matrices", matrices, size, Type::kFloat32);
    check_memory("inverses", inverses, size, Type::kFloat32);
    if (count > 0 && failed == 0) throw std::invalid_argument("failed has entries but a null pointer");
    on(where, [&](void* stream) {
        spd_inverses(pointer<const float>(matrices), pointer<float>(inverses), pointer<bool>(failed), count,
                     static_cast<int>(side), stream);
    });
}

using Coefficients = std::array<double, 3>;

Quintic quintic(const Coefficients& c) {
    return {static_cast<float>(c[0]), static_cast<float>(c[1]), static_cast<float>(c[2])};
}

void check_steps(int64_t steps) {
    counted("steps", steps, 1);
}

void newton_schulz_roots_at(uintptr_t powers, uintptr_t roots, int64_t count, int64_t side,
                            const Coefficients& coefficients, int64_t steps, const Where& where) {
    check_side("n", side);
    check_steps(steps);
    counted("count", count, 0);
    const int64_t size = entries("powers", {count, side, side});
    check_memory("powers", powers, size, Type::kFloat32);
    check_memory("roots", roots, size, Type::kFloat32);
    on(where, [&](void* stream) {
        newton_schulz_roots(pointer<const float>(powers), pointer<float>(roots), count, static_cast<int>(side),
                            quintic(coefficients), static_cast<int>(steps), stream);
    });
}

// Addresses and sizes, then numbers, in the order of the struct's members.
using InputFields = std::tuple<std::array<int64_t, 11>, std::array<double, 5>>;

std::vector<InputLayer> input_layers(const std::vector<InputFields>& fields, uintptr_t sums, uintptr_t facts) {
    std::vector<InputLayer> layers;
    int64_t all_entries = 0;
    for (const auto& [integers, numbers] : fields) {
        const auto& [gathered, squarable, average, steps, inverse, mean, stride, side, groups, blocks, relative] =
            integers;
        const auto& [decay, ridge, sample_ridge, data_inputs, sample_every] = numbers;
        const std::string layer = label("layers", layers.size()) + ": ";
        check_side(layer + "side", side);
        const int32_t group_count = counted(layer + "groups", groups, 1);
        const int32_t block_count = counted(layer + "blocks", blocks, 1);
        counted(layer + "group_stride", stride, 0);
        const int64_t count = entries(layer + "blocks", {groups, blocks}), moments = (side + 1) * (side + 1);
        counted(layer + "blocks of all groups", count, 1);
        check_share(layer + "decay", decay);
        if (!(sample_every >= 1)) throw std::invalid_argument(layer + "sample_every is less than 1");
        if ((steps == 0) != (decay == 0)) {
            throw std::invalid_argument(layer + "steps and a decay come together");
        }
        check(layer + "gathered", gathered, blocks * moments);
        check(layer + "average", average, entries(layer + "average", {count, moments}));
        check_optional(layer + "steps", steps, 1);
        check(layer + "inverse", inverse, count * side * side);
        check_optional(layer + "mean", mean, count * side);
        layers.push_back({pointer<const float>(gathered), pointer<const bool>(squarable), pointer<float>(average),
                          pointer<float>(steps), pointer<float>(inverse), pointer<float>(mean), stride, decay, ridge,
                          sample_ridge, data_inputs, sample_every, static_cast<int32_t>(side), group_count, block_count,
                          static_cast<int32_t>(relative != 0)});
        all_entries += count;
    }
    check_memory("sums", sums, 2 * all_entries, Type::kFloat64);
    check_memory("facts", facts, kFacts * static_cast<int64_t>(layers.size()), Type::kFloat32);
    return layers;
}

void average_moments_at(const std::vector<InputFields>& fields, uintptr_t ok, uintptr_t sums, uintptr_t facts,
                        const Where& where) {
    const auto layers = input_layers(fields, sums, facts);
    on(where, [&](void* stream) {
        average_moments(layers.data(), static_cast<int64_t>(layers.size()), pointer<const bool>(ok),
                        pointer<double>(sums), pointer<float>(facts), stream);
    });
}

void input_metrics_at(const std::vector<InputFields>& fields, double noise, uintptr_t sums, uintptr_t facts,
                      const Where& where) {
    const auto layers = input_layers(fields, sums, facts);
    on(where, [&](void* stream) {
        input_metrics(layers.data(), static_cast<int64_t>(layers.size()), noise, pointer<const double>(sums),
                      pointer<float>(facts), stream);
    });
}

// A gradient's address, its average's and its share's or 0, and the types of the first and the last.
using GradientFields = std::tuple<int64_t, int64_t, int64_t, Type, Type>;
using OutputFields = std::tuple<GradientFields, GradientFields, std::array<int64_t, 13>, std::array<double, 4>>;

Gradient gradient(const std::string& name, const GradientFields& fields, int64_t size) {
    const auto& [g, m, share, type, share_type] = fields;
    if (type == Type::kFloat64) throw std::invalid_argument(name + " is float64; there is no kernel for it");
    if (share_type != Type::kFloat32 && share_type != Type::kFloat64) {
        throw std::invalid_argument(name + ": its share must be float32 or float64");
    }
    if ((m == 0) != (share == 0)) throw std::invalid_argument(name + ": an average and a share come together");
    check(name, g, size, type);
    check_optional(name + ": average", m, size);
    check_optional(name + ": share", share, 1, share_type);
    return {pointer<const void>(g), type, pointer<const float>(m), pointer<const void>(share), share_type};
}

std::vector<OutputLayer> output_layers(const std::vector<OutputFields>& fields, uintptr_t facts, int64_t facts_count) {
    std::vector<OutputLayer> layers;
    for (const auto& [weight, bias, integers, numbers] : fields) {
        const auto& [partials, scales, inverse, mean, average, root, input_size, index, groups, rows, inputs, side,
                     input_side] = integers;
        const auto& [momentum, take, decay, ridge] = numbers;
        const std::string layer = label("layers", layers.size()) + ": ";
        check_side(layer + "side", side);
        check_side(layer + "input_side", input_side);
        if (counted(layer + "rows", rows, 1) % side != 0)
            throw std::invalid_argument(layer + "side does not divide rows");
        if (counted(layer + "inputs", inputs, 1) % input_side != 0) {
            throw std::invalid_argument(layer + "input_side does not divide inputs");
        }
        if (index < 0 || index >= facts_count) throw std::invalid_argument(layer + "it has no facts");
        check_share(layer + "decay", decay);
        check_share(layer + "momentum", momentum);
        if (!(ridge >= 0)) throw std::invalid_argument(layer + "ridge is not at least 0");
        if ((average == 0) != (decay == 0)) throw std::invalid_argument(layer + "an average and a decay come together");
        const bool with_bias = std::get<0>(bias) != 0;
        if (with_bias != (mean != 0)) throw std::invalid_argument(layer + "bias and mean come together");
        const int64_t neurons = entries(layer + "rows", {counted(layer + "groups", groups, 1), rows});
        OutputLayer made{};
        made.weight = gradient(layer + "weight", weight, entries(layer + "weight", {neurons, inputs}));
        if (with_bias) made.bias = gradient(layer + "bias", bias, neurons);
        made.inverse = pointer<const float>(inverse);
        made.mean = pointer<const float>(mean);
        made.average = pointer<float>(average);
        made.root = pointer<float>(root);
        check_optional(layer + "input_size", input_size, 1, Type::kFloat64);
        made.input_size = pointer<double>(input_size);
        made.partials = pointer<float>(partials);
        made.scales = pointer<double>(scales);
        made.momentum = static_cast<float>(momentum);
        made.take = static_cast<float>(take);
        made.decay = decay;
        made.ridge = static_cast<float>(ridge);
        made.layer = static_cast<int32_t>(index);
        made.groups = static_cast<int32_t>(groups);
        made.rows = static_cast<int32_t>(rows);
        made.inputs = static_cast<int32_t>(inputs);
        made.side = static_cast<int32_t>(side);
        made.input_side = static_cast<int32_t>(input_side);
        made.parts = parts_of(made.inputs, made.input_side);
        counted(layer + "blocks", partial_count(made), 1);
        check(layer + "inverse", inverse, groups * inputs * input_side);
        check_optional(layer + "mean", mean, groups * inputs);
        check_optional(layer + "output average", average, neurons * side);
        check(layer + "root", root, neurons * side);
        check(layer + "partials", partials, partial_floats(made));
        check(layer + "scales", scales, 2 * partial_count(made), Type::kFloat64);
        layers.push_back(made);
    }
    check_memory("facts", facts, kFacts * facts_count, Type::kFloat32);
    return layers;
}

void output_moments_at(const std::vector<OutputFields>& fields, uintptr_t facts, int64_t facts_count,
                       const Where& where) {
    const auto layers = output_layers(fields, facts, facts_count);
    on(where, [&](void* stream) {
        output_moments(layers.data(), static_cast<int64_t>(layers.size()), pointer<const float>(facts), stream);
    });
}

void output_roots_at(const std::vector<OutputFields>& fields, const Coefficients& coefficients, int64_t steps,
                     uintptr_t facts, int64_t facts_count, const Where& where) {
    check_steps(steps);
    const auto layers = output_layers(fields, facts, facts_count);
    on(where, [&](void* stream) {
        output_roots(layers.data(), static_cast<int64_t>(layers.size()), quintic(coefficients), static_cast<int>(steps),
                     pointer<const float>(facts), stream);
    });
}

// How many parts the moments of a layer's neurons come in, and how many floats these are.
std::pair<int64_t, int64_t> partial_sizes(int64_t groups, int64_t rows, int64_t inputs, int64_t side,
                                          int64_t input_side) {
    check_side("side", side);
    check_side("input_side", input_side);
    OutputLayer layer{};
    layer.groups = counted("groups", groups, 1);
    layer.rows = counted("rows", rows, 1);
    layer.inputs = counted("inputs", inputs, 1);
    layer.side = static_cast<int32_t>(side);
    layer.parts = parts_of(layer.inputs, static_cast<int32_t>(input_side));
    return {partial_count(layer), partial_floats(layer)};
}

}  // namespace

void define_refresh(pybind11::module_& m) {
    m.attr("LARGEST_SIDE") = kLargestSide;
    m.attr("FACTS") = kFacts;
    m.def("largest_side", [](int device) { return largest_side(shared_memory(device)); });
    m.def("spd_inverses", &spd_inverses_at);
    m.def("newton_schulz_roots", &newton_schulz_roots_at);
    m.def("partial_sizes", &partial_sizes);
    m.def("average_moments", &average_moments_at);
    m.def("input_metrics", &input_metrics_at);
    m.def("output_moments", &output_moments_at);
    m.def("output_roots", &output_roots_at);
}

}  // namespace lnb::cuda
