// The module `lnb_kernels._native_module`: pointers and sizes in, nothing of torch. Python code does the checks that
// need to know tensors; what is checked here is what would crash.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <stdexcept>
#include <string>
#include <vector>

#include "address_checks.h"
#include "cpu/cg_vectors.h"
#include "cpu/conv_moment.h"
#include "cpu/isa.h"
#include "cpu/multi_tensor.h"
#include "cpu/newton_schulz.h"
#include "cpu/parallel.h"
#include "cpu/second_moment.h"
#include "cpu/spd_inverse.h"
#include "cpu/step_tables.h"
#include "cpu/two_sided.h"

namespace py = pybind11;

namespace {

using lnb::Addresses;
using lnb::bytes;
using lnb::check_addresses;
using lnb::check_memory;
using lnb::entries;
using lnb::require_disjoint_writes;
using lnb::Sizes;

std::vector<lnb::Pair> pairs(const char* x_name, const Addresses& x, lnb::Type x_type, const char* y_name,
                             const Addresses& y, lnb::Type y_type, const Sizes& sizes) {
    if (!lnb::supported(x_type, y_type)) throw std::invalid_argument("no kernel for this pair of dtypes");
    check_addresses(x_name, x, sizes, x_type);
    check_addresses(y_name, y, sizes, y_type);
    std::vector<lnb::Pair> result(sizes.size());
    for (size_t i = 0; i < sizes.size(); ++i) {
        result[i] = {reinterpret_cast<void*>(x[i]), reinterpret_cast<const void*>(y[i]), sizes[i]};
    }
    return result;
}

template <typename F>
void without_gil(F f) {
    const py::gil_scoped_release release;
    f();
}

void ema_combined(const Addresses& averages, lnb::Type average_type, const Addresses& values, lnb::Type value_type,
                  const Addresses& outputs, const Sizes& sizes, double beta, const std::vector<double>& shares,
                  double take, int threads) {
    const auto paired = pairs("averages", averages, average_type, "values", values, value_type, sizes);
    if (!lnb::combines(average_type, value_type)) throw std::invalid_argument("no kernel for this pair of dtypes");
    check_addresses("out", outputs, sizes, average_type);
    if (shares.size() != paired.size()) throw std::invalid_argument("shares: one per tensor");
    require_disjoint_writes({{"averages", averages, bytes(sizes, average_type), true},
                             {"values", values, bytes(sizes, value_type), false},
                             {"out", outputs, bytes(sizes, average_type), true}});
    std::vector<void*> targets(outputs.size());
    for (size_t i = 0; i < outputs.size(); ++i) targets[i] = reinterpret_cast<void*>(outputs[i]);
    without_gil([&] {
        lnb::ema_combined(paired.data(), targets.data(), static_cast<int64_t>(paired.size()), average_type, value_type,
                          beta, shares.data(), take, threads);
    });
}

std::vector<double> dot(const Addresses& xs, lnb::Type x_type, const Addresses& ys, lnb::Type y_type,
                        const Sizes& sizes, int threads) {
    const auto paired = pairs("xs", xs, x_type, "ys", ys, y_type, sizes);
    std::vector<double> products(paired.size());
    without_gil([&] {
        lnb::dot(paired.data(), static_cast<int64_t>(paired.size()), x_type, y_type, products.data(), threads);
    });
    return products;
}

// Writes the squared norms of all rows, float64, to `norms`.
void squared_row_norms(const Addresses& tensors, lnb::Type type, const Sizes& rows, const Sizes& columns,
                       uintptr_t norms, int threads) {
    if (rows.size() != tensors.size() || columns.size() != tensors.size()) {
        throw std::invalid_argument("rows, columns: one per tensor");
    }
    std::vector<lnb::Matrix> matrices;
    Sizes sizes;
    int64_t all_rows = 0;
    for (size_t i = 0; i < tensors.size(); ++i) {
        sizes.push_back(entries("tensors", {rows[i], columns[i]}));
        matrices.push_back({reinterpret_cast<const void*>(tensors[i]), type, rows[i], columns[i]});
        all_rows += rows[i];
    }
    check_addresses("tensors", tensors, sizes, type);
    check_memory("norms", norms, all_rows, lnb::Type::kFloat64);
    without_gil([&] {
        lnb::squared_row_norms(matrices.data(), static_cast<int64_t>(matrices.size()), reinterpret_cast<double*>(norms),
                               threads);
    });
}

void apply(const Addresses& params, lnb::Type param_type, const Addresses& directions, lnb::Type direction_type,
           const Sizes& sizes, const std::vector<double>& scales, double lr, double weight_decay, int threads) {
    const auto paired = pairs("params", params, param_type, "directions", directions, direction_type, sizes);
    if (scales.size() != paired.size()) throw std::invalid_argument("scales: one per tensor");
    require_disjoint_writes({{"params", params, bytes(sizes, param_type), true},
                             {"directions", directions, bytes(sizes, direction_type), false}});
    const std::vector<double> decays(paired.size(), weight_decay);
    without_gil([&] {
        lnb::apply(paired.data(), static_cast<int64_t>(paired.size()), param_type, direction_type, scales.data(), lr,
                   decays.data(), threads);
    });
}

bool all_finite(const Addresses& tensors, lnb::Type type, const Sizes& sizes, int threads) {
    const auto paired = pairs("tensors", tensors, type, "tensors", tensors, type, sizes);
    bool finite = true;
    without_gil([&] { finite = lnb::all_finite(paired.data(), static_cast<int64_t>(paired.size()), type, threads); });
    return finite;
}

// Results in memory that is still read would be wrong without a sign of it.
void require_apart(const char* name, uintptr_t address, int64_t size, const char* read_name, uintptr_t read,
                   int64_t read_size) {
    require_disjoint_writes({{name, {address}, {size}, true}, {read_name, {read}, {read_size}, false}});
}

// `stride` is in elements.
void second_moment(uintptr_t x, lnb::Type type, int64_t rows, int64_t columns, int64_t stride, bool round, uintptr_t s,
                   int threads) {
    if (type == lnb::Type::kFloat64) throw std::invalid_argument("x: no kernel for float64");
    if (rows < 0 || columns < 0 || stride < 0) throw std::invalid_argument("x has a negative size or stride");
    const int64_t width = lnb::width(type), read = entries("x", {rows, columns});
    const int64_t written = entries("s", {columns + 1, columns + 1});
    check_memory("x", x, read, type);
    check_memory("s", s, written, lnb::Type::kFloat32);
    const int64_t last_row = entries("x", {std::max<int64_t>(rows - 1, 0), stride, width});
    require_apart("s", s, written * 4, "x", x, read == 0 ? 0 : last_row + columns * width);
    const lnb::Samples all{reinterpret_cast<const void*>(x), type, rows, columns, stride * width};
    without_gil([&] { lnb::second_moment(all, round, reinterpret_cast<float*>(s), threads); });
}

using Four = std::array<int64_t, 4>;

// `shape` and `strides` (in elements) are [batch, channels, height, width]; `rows` and `columns` are those of ConvAxis.
void conv_moment(uintptr_t x, lnb::Type type, const Four& shape, const Four& strides, const Four& rows,
                 const Four& columns, int64_t groups, bool round, uintptr_t s, int threads) {
    if (type == lnb::Type::kFloat64) throw std::invalid_argument("x: no kernel for float64");
    for (int i = 0; i < 4; ++i) {
        if (shape[i] < 0 || strides[i] < 0) throw std::invalid_argument("x has a negative size or stride");
    }
    for (const auto& [taps, dilation, before, outputs] : {rows, columns}) {
        if (taps < 1 || dilation < 1 || before < 0 || outputs < 0) throw std::invalid_argument("no such convolution");
    }
    if (groups < 1 || shape[1] % groups != 0) throw std::invalid_argument("groups must divide the channels");
    const int64_t width = lnb::width(type), d = entries("s", {shape[1] / groups, rows[0], columns[0]});
    const int64_t read = entries("x", {shape[0], shape[1], shape[2], shape[3]});
    const int64_t written = entries("s", {groups, d + 1, d + 1});
    check_memory("x", x, read, type);
    check_memory("s", s, written, lnb::Type::kFloat32);
    entries("the output", {shape[0], rows[3], columns[3]});
    int64_t reach = width;
    for (int i = 0; i < 4; ++i) reach += entries("x", {std::max<int64_t>(shape[i] - 1, 0), strides[i], width});
    require_apart("s", s, written * 4, "x", x, read == 0 ? 0 : reach);
    const lnb::Images images{reinterpret_cast<const void*>(x),
                             type,
                             shape[0],
                             shape[1],
                             shape[2],
                             shape[3],
                             strides[0] * width,
                             strides[1] * width,
                             strides[2] * width,
                             strides[3] * width};
    without_gil([&] {
        lnb::conv_moment(images, {rows[0], rows[1], rows[2], rows[3]}, {columns[0], columns[1], columns[2], columns[3]},
                         groups, round, reinterpret_cast<float*>(s), threads);
    });
}

using Six = std::array<uintptr_t, 6>;

lnb::CgSums cg_sums(const char* name, const Six& addresses, int64_t count) {
    double* sums[6];
    for (int i = 0; i < 6; ++i) {
        check_memory(name, addresses[i], count, lnb::Type::kFloat64);
        sums[i] = reinterpret_cast<double*>(addresses[i]);
    }
    return {sums[0], {sums[1], sums[2]}, {sums[3], sums[4]}, sums[5]};
}

// `tensors` are g, mu, var, h, r, p, ap; mu and var, and ap, may be null. `shape` is layers, m, columns, d. `units` and
// `rows` are gg, rr before and after, rz before and after, pap.
void cg_phase(lnb::CgPhase phase, const std::array<uintptr_t, 7>& tensors, const Four& shape, int64_t rows_per_unit,
              const Six& units, const Six& rows, double stop, int threads) {
    const auto& [layers, m, columns, d] = shape;
    if (layers < 0 || m < 0 || d < 0 || (columns != d && columns != d + 1)) {
        throw std::invalid_argument("no such layers");
    }
    const int64_t count = entries("rows", {layers, m}), size = entries("vectors", {count, columns});
    const int64_t features = entries("mu", {layers, d});
    if (rows_per_unit < 1 || count % rows_per_unit != 0)
        throw std::invalid_argument("rows_per_unit must divide the rows");
    if (phase == lnb::CgPhase::kStep && rows_per_unit != 1) throw std::invalid_argument("STEP needs a unit per row");
    if ((tensors[1] == 0) != (tensors[2] == 0)) throw std::invalid_argument("mu and var come together");
    const bool arrow = tensors[1] != 0, product = phase != lnb::CgPhase::kStart || tensors[6] != 0;
    const int64_t sizes[] = {size, arrow ? features : 0, arrow ? features : 0, size, size, size, product ? size : 0};
    const char* names[] = {"g", "mu", "var", "h", "r", "p", "ap"};
    for (int i = 0; i < 7; ++i) check_memory(names[i], tensors[i], sizes[i], lnb::Type::kFloat32);
    const auto at = [&](int i) { return reinterpret_cast<float*>(tensors[i]); };
    const lnb::CgVectors vectors{at(0), at(1), at(2), at(3), at(4), at(5), at(6), layers, m, columns, d};
    const auto of_units = cg_sums("units", units, count / rows_per_unit), of_rows = cg_sums("rows", rows, count);
    without_gil([&] { lnb::cg_phase(phase, vectors, rows_per_unit, of_units, of_rows, stop, threads); });
}

// For every layer the addresses of weight, bias, inverse, mean, root, squares, bias_weight (bias and mean are null
// without a bias, squares where agreement does not count, bias_weight where it is 1), and its matrices, rows, inputs,
// input_block, output_block.
// Overwrites weights and biases; returns the four sums of all matrices in turn, layer by layer.
std::vector<double> two_sided_directions(const std::vector<std::array<uintptr_t, 7>>& addresses,
                                         const std::vector<std::array<int64_t, 5>>& shapes, int threads) {
    if (addresses.size() != shapes.size()) throw std::invalid_argument("one shape per layer");
    std::vector<lnb::TwoSidedLayer<float>> layers;
    constexpr const char* kLists[] = {"weights", "biases", "inverses", "means", "roots", "squares", "bias_weights"};
    std::array<Addresses, 7> lists;
    std::array<Sizes, 7> sizes;
    int64_t all_matrices = 0;
    for (size_t i = 0; i < shapes.size(); ++i) {
        const auto& [matrices, rows, inputs, block, side] = shapes[i];
        if (matrices < 0 || rows < 0 || inputs < 0 || block < 1 || side < 1 || inputs % block != 0 ||
            rows % side != 0) {
            throw std::invalid_argument("layer " + std::to_string(i) + ": no such blocks");
        }
        const auto& [weight, bias, inverse, mean, root, squares, bias_weight] = addresses[i];
        if ((bias == 0) != (mean == 0)) {
            throw std::invalid_argument("layer " + std::to_string(i) + ": bias and mean come together");
        }
        const int64_t with_bias = bias == 0 ? 0 : 1;
        const std::array<int64_t, 3> dimensions[] = {
            {matrices, rows, inputs},        {matrices, rows, with_bias}, {matrices, inputs, block},
            {matrices, inputs, with_bias},   {matrices, rows, side},      {matrices, rows, squares == 0 ? 0 : 1},
            {bias_weight == 0 ? 0 : 1, 1, 1}};
        for (size_t k = 0; k < lists.size(); ++k) {
            lists[k].push_back(addresses[i][k]);
            const auto& [a, b, c] = dimensions[k];
            sizes[k].push_back(entries(kLists[k], {a, b, c}));
        }
        layers.push_back({reinterpret_cast<float*>(weight), reinterpret_cast<float*>(bias),
                          reinterpret_cast<const float*>(inverse), reinterpret_cast<const float*>(mean),
                          reinterpret_cast<const float*>(root), reinterpret_cast<const double*>(squares), nullptr, 1,
                          matrices, rows, inputs, block, side});
        all_matrices += matrices;
    }
    std::vector<lnb::Memory> memory;
    for (size_t k = 0; k < lists.size(); ++k) {
        const lnb::Type type = k >= 5 ? lnb::Type::kFloat64 : lnb::Type::kFloat32;
        check_addresses(kLists[k], lists[k], sizes[k], type);
        memory.push_back({kLists[k], lists[k], bytes(sizes[k], type), k < 2});
    }
    require_disjoint_writes(memory);
    std::vector<double> sums(4 * static_cast<size_t>(all_matrices));
    double* next = sums.data();
    for (size_t i = 0; i < layers.size(); ++i) {
        lnb::TwoSidedLayer<float>& layer = layers[i];
        if (addresses[i][6] != 0) layer.bias_weight = *reinterpret_cast<const double*>(addresses[i][6]);
        layer.sums = next;
        next += 4 * layer.matrices;
    }
    without_gil([&] { lnb::two_sided_directions(layers.data(), static_cast<int64_t>(layers.size()), threads); });
    return sums;
}

// `failed` is one byte per matrix.
void spd_inverses(uintptr_t matrices, uintptr_t inverses, uintptr_t failed, int64_t count, int64_t n, int threads) {
    if (count < 0 || n < 1) throw std::invalid_argument("no such matrices");
    const int64_t size = entries("matrices", {count, n, n});
    check_memory("matrices", matrices, size, lnb::Type::kFloat32);
    check_memory("inverses", inverses, size, lnb::Type::kFloat32);
    if (count > 0 && failed == 0) throw std::invalid_argument("failed has entries but a null pointer");
    require_apart("inverses", inverses, size * 4, "matrices", matrices, size * 4);
    without_gil([&] {
        lnb::spd_inverses(reinterpret_cast<const float*>(matrices), reinterpret_cast<float*>(inverses),
                          reinterpret_cast<uint8_t*>(failed), count, n, threads);
    });
}

void newton_schulz_roots(uintptr_t matrices, uintptr_t roots, int64_t count, int64_t n,
                         const std::array<float, 3>& coefficients, int64_t steps, int threads) {
    if (count < 0 || n < 1 || steps < 1) throw std::invalid_argument("no such matrices or steps");
    const int64_t size = entries("matrices", {count, n, n});
    check_memory("matrices", matrices, size, lnb::Type::kFloat32);
    check_memory("roots", roots, size, lnb::Type::kFloat32);
    require_apart("roots", roots, size * 4, "matrices", matrices, size * 4);
    const lnb::Quintic quintic{coefficients[0], coefficients[1], coefficients[2]};
    without_gil([&] {
        lnb::newton_schulz_roots(reinterpret_cast<const float*>(matrices), reinterpret_cast<float*>(roots), count, n,
                                 quintic, steps, threads);
    });
}

// Parameters are (values, momentum, size); layers row_square and (weight, bias, matrices, rows, inputs), weight and
// bias being places among the parameters; `numbers` steps, independent, weight_norm, growth, radius, coherence,
// input_size.
// `settings` in the order of lnb::StepSettings.
// For each parameter: its address, that of its average, and that of its master or 0.
lnb::StepTables step_tables(const std::vector<std::array<uintptr_t, 3>>& parameters,
                            const std::vector<lnb::Type>& types, const Sizes& sizes, const Addresses& row_squares,
                            const std::vector<std::array<int64_t, 5>>& shapes, const std::vector<double>& usual_norms,
                            const Addresses& squares, const std::array<uintptr_t, 7>& numbers,
                            const std::array<double, 22>& settings) {
    const auto anything = [](uintptr_t address) { return reinterpret_cast<void*>(address); };
    const auto floats = [](uintptr_t address) { return reinterpret_cast<float*>(address); };
    const auto doubles = [](uintptr_t address) { return reinterpret_cast<double*>(address); };
    if (parameters.size() != sizes.size() || types.size() != sizes.size() || row_squares.size() != shapes.size() ||
        usual_norms.size() != shapes.size()) {
        throw std::invalid_argument("one type and size per parameter, one shape and usual norm per layer");
    }
    const auto count = static_cast<int64_t>(sizes.size()), layers = static_cast<int64_t>(shapes.size());
    std::vector<lnb::StepParameter> moved;
    for (size_t i = 0; i < sizes.size(); ++i) {
        const auto& [values, momentum, master] = parameters[i];
        const lnb::Type type = types[i];
        check_memory("parameters", values, sizes[i], type);
        check_memory("momentum", momentum, sizes[i], lnb::wide_type(type));
        if (master != 0) {
            check_memory("masters", master, sizes[i], lnb::Type::kFloat32);
            if (lnb::width(type) != 2) throw std::invalid_argument("masters: of parameters of 16 bits alone");
        }
        moved.push_back({anything(values), anything(momentum), floats(master), sizes[i], type});
    }
    std::vector<bool> claimed(sizes.size());
    std::vector<lnb::StepLayer> of_layers;
    for (size_t i = 0; i < shapes.size(); ++i) {
        const auto& [weight, bias, matrices, rows, inputs] = shapes[i];
        const bool places = weight >= 0 && weight < count && bias >= -1 && bias < count && weight != bias;
        if (!places || matrices < 1 || rows < 1 || inputs < 1 ||
            entries("weight", {matrices, rows, inputs}) != sizes[weight] ||
            (bias >= 0 && matrices * rows != sizes[bias]) || claimed[weight] || (bias >= 0 && claimed[bias])) {
            throw std::invalid_argument("layer " + std::to_string(i) + ": no such layer");
        }
        if (bias >= 0 && lnb::wide_type(types[bias]) != lnb::wide_type(types[weight])) {
            throw std::invalid_argument("layer " + std::to_string(i) + ": weight and bias differ in precision");
        }
        claimed[weight] = true;
        if (bias >= 0) claimed[bias] = true;
        check_memory("row_squares", row_squares[i], matrices * rows, lnb::Type::kFloat64);
        of_layers.push_back({weight, bias, doubles(row_squares[i]), usual_norms[i], matrices, rows, inputs});
    }
    std::vector<void*> of_squares;
    for (size_t i = 0; i < sizes.size(); ++i) {
        if (claimed[i]) continue;
        if (of_squares.size() == squares.size()) throw std::invalid_argument("squares: one per other parameter");
        check_memory("squares", squares[of_squares.size()], sizes[i], lnb::wide_type(types[i]));
        of_squares.push_back(anything(squares[of_squares.size()]));
    }
    if (of_squares.size() != squares.size()) throw std::invalid_argument("squares: one per other parameter");
    check_memory("steps", numbers[0], count, lnb::Type::kFloat32);
    for (size_t i = 1; i < numbers.size(); ++i) check_memory("numbers", numbers[i], layers, lnb::Type::kFloat64);
    const auto& [b, nesterov, b_rows, change, largest, opposed, shrink, grow, least, b_coherence, quiet, loud, calm,
                 floor, recover, opening, turning, telling, interval, b_others, epsilon, scale] = settings;
    return {std::move(moved),
            std::move(of_layers),
            std::move(of_squares),
            {floats(numbers[0]), doubles(numbers[1]), doubles(numbers[2]), doubles(numbers[3]), doubles(numbers[4]),
             doubles(numbers[5]), doubles(numbers[6])},
            {{b, nesterov != 0},
             b_rows,
             change,
             largest,
             {opposed, shrink, grow, least, b_coherence, quiet, loud, calm, floor, recover, opening, turning, telling,
              interval},
             b_others,
             epsilon,
             scale}};
}

void step_average(lnb::StepTables& tables, const Addresses& gradients, const Addresses& outputs, int threads) {
    const auto count = static_cast<size_t>(tables.parameters());
    if (gradients.size() != count || outputs.size() != count) throw std::invalid_argument("one address per parameter");
    std::vector<const void*> read;
    std::vector<void*> written;
    for (size_t i = 0; i < count; ++i) {
        const lnb::StepParameter& parameter = tables.parameter(static_cast<int64_t>(i));
        check_memory("gradients", gradients[i], parameter.size, parameter.type);
        check_memory("outputs", outputs[i], parameter.size, lnb::wide_type(parameter.type));
        read.push_back(reinterpret_cast<const void*>(gradients[i]));
        written.push_back(reinterpret_cast<void*>(outputs[i]));
    }
    without_gil([&] { tables.average(read, written, threads); });
}

// For each layer that is refreshed: its place, input_block, output_block, whether it follows another one of them, and
// whether its input_size is written;
// the addresses of gathered, second_moment, counted, inverse, mean (0 without a bias), output_moment and root; and
// decay, ridge, sample_ridge, data_inputs, sample_every, output_ridge.
void step_refresh(const lnb::StepTables& tables, const std::vector<std::array<int64_t, 5>>& places,
                  const std::vector<std::array<uintptr_t, 7>>& addresses,
                  const std::vector<std::array<double, 6>>& numbers, const std::array<float, 3>& coefficients,
                  int64_t steps, int threads) {
    if (addresses.size() != places.size() || numbers.size() != places.size()) {
        throw std::invalid_argument("one place, one set of addresses and of numbers per layer");
    }
    if (steps < 1) throw std::invalid_argument("steps must be at least 1");
    const auto at = [](uintptr_t address) { return reinterpret_cast<float*>(address); };
    std::vector<lnb::StepMoments> due;
    for (size_t i = 0; i < places.size(); ++i) {
        const auto& [place, block, side, follows, sized] = places[i];
        if (place < 0 || place >= tables.layers()) throw std::invalid_argument("places: no such layer");
        const lnb::StepLayer& layer = tables.layer(place);
        if (tables.wide_type_of(layer) != lnb::Type::kFloat32) {
            throw std::invalid_argument("layer " + std::to_string(place) + ": is not of float32");
        }
        if (block < 1 || side < 1 || layer.inputs % block != 0 || layer.rows % side != 0) {
            throw std::invalid_argument("layer " + std::to_string(place) + ": no such blocks");
        }
        const int64_t moments = entries("moments", {layer.matrices, layer.inputs / block, block + 1, block + 1});
        const int64_t outputs = entries("output_moment", {layer.matrices, layer.rows, side});
        const std::array<int64_t, 7> sizes{moments,
                                           moments,
                                           1,
                                           entries("inverse", {layer.matrices, layer.inputs, block}),
                                           layer.bias < 0 ? 0 : layer.matrices * layer.inputs,
                                           outputs,
                                           outputs};
        constexpr const char* kNames[] = {"gathered", "second_moment", "counted", "inverse",
                                          "mean",     "output_moment", "root"};
        for (size_t k = 0; k < sizes.size(); ++k)
            check_memory(kNames[k], addresses[i][k], sizes[k], lnb::Type::kFloat32);
        const auto& [gathered, second_moment, counted, inverse, mean, output_moment, root] = addresses[i];
        const auto& [decay, ridge, sample_ridge, data_inputs, sample_every, output_ridge] = numbers[i];
        due.push_back({place, at(gathered), at(second_moment), at(counted), at(inverse), at(mean), at(output_moment),
                       at(root), block, side, decay, ridge, sample_ridge, data_inputs, sample_every, output_ridge,
                       follows != 0, sized != 0});
    }
    const lnb::Quintic quintic{coefficients[0], coefficients[1], coefficients[2]};
    without_gil([&] { tables.refresh(due, quintic, steps, threads); });
}

// For each layer: the addresses of inverse, mean (0 without a bias) and root, and the sides of the blocks of the first
// and the last.
void step_direct(lnb::StepTables& tables, const std::vector<std::array<uintptr_t, 3>>& factors,
                 const std::vector<std::array<int64_t, 2>>& sides, int threads) {
    const auto count = static_cast<size_t>(tables.layers());
    if (factors.size() != count || sides.size() != count) throw std::invalid_argument("one factor per layer");
    std::vector<lnb::StepFactor> read;
    for (size_t i = 0; i < count; ++i) {
        const lnb::StepLayer& layer = tables.layer(static_cast<int64_t>(i));
        const auto& [inverse, mean, root] = factors[i];
        const auto& [block, side] = sides[i];
        if (block < 1 || side < 1 || layer.inputs % block != 0 || layer.rows % side != 0) {
            throw std::invalid_argument("layer " + std::to_string(i) + ": no such blocks");
        }
        const lnb::Type type = tables.wide_type_of(layer);
        check_memory("inverses", inverse, entries("inverses", {layer.matrices, layer.inputs, block}), type);
        check_memory("means", mean, layer.bias < 0 ? 0 : layer.matrices * layer.inputs, type);
        check_memory("roots", root, entries("roots", {layer.matrices, layer.rows, side}), type);
        read.push_back({reinterpret_cast<const void*>(inverse), reinterpret_cast<const void*>(mean),
                        reinterpret_cast<const void*>(root), block, side});
    }
    without_gil([&] { tables.direct(read, threads); });
}

std::vector<double> step_bound(lnb::StepTables& tables, const std::vector<double>& rates) {
    if (static_cast<int64_t>(rates.size()) != tables.layers()) throw std::invalid_argument("rates: one per layer");
    return tables.bound(rates);
}

std::vector<double> step_measure(lnb::StepTables& tables, const std::vector<int64_t>& due,
                                 const std::vector<double>& rates, int threads) {
    if (due.size() != rates.size()) throw std::invalid_argument("rates: one per layer that is due");
    for (const int64_t place : due) {
        if (place < 0 || place >= tables.layers()) throw std::invalid_argument("due: no such layer");
    }
    std::vector<double> factors;
    without_gil([&] { factors = tables.measure(due, rates, threads); });
    return factors;
}
void step_apply(const lnb::StepTables& tables, const std::vector<int64_t>& places, double lr,
                const std::vector<double>& decays, int threads) {
    if (decays.size() != places.size()) throw std::invalid_argument("decays: one per place");
    for (const int64_t place : places) {
        if (place < 0 || place >= tables.parameters()) throw std::invalid_argument("places: no such parameter");
    }
    without_gil([&] { tables.apply(places, lr, decays, threads); });
}

std::vector<std::string> isas() {
    const char* names[lnb::kMaxIsas];
    const int count = lnb::available_isas(names);
    return {names, names + count};
}

void select_isa(const std::string& name) {
    if (lnb::select_isa(name.c_str())) return;
    std::string message = "instruction set '" + name + "' is not available on this CPU; allowed are";
    for (const auto& isa : isas()) message += " " + isa;
    throw std::invalid_argument(message);
}

}  // namespace

PYBIND11_MODULE(_native_module, m) {
    py::enum_<lnb::Type>(m, "Type")
        .value("FLOAT64", lnb::Type::kFloat64)
        .value("FLOAT32", lnb::Type::kFloat32)
        .value("BFLOAT16", lnb::Type::kBFloat16)
        .value("FLOAT16", lnb::Type::kFloat16);
    m.def("supported", &lnb::supported);
    py::class_<lnb::Memory>(m, "Memory", py::module_local())
        .def(py::init<std::string, Addresses, Sizes, bool>(), "A list: name, addresses, bytes, whether it is written.");
    m.def("require_disjoint_writes", &require_disjoint_writes);
    m.def("combines", &lnb::combines);
    m.def("ema_combined", &ema_combined);
    m.def("dot", &dot);
    m.def("squared_row_norms", &squared_row_norms);
    m.def("apply", &apply);
    m.def("all_finite", &all_finite);
    m.def("second_moment", &second_moment);
    m.def("conv_moment", &conv_moment);
    py::enum_<lnb::CgPhase>(m, "Phase")
        .value("START", lnb::CgPhase::kStart)
        .value("PRODUCT", lnb::CgPhase::kProduct)
        .value("MOVE", lnb::CgPhase::kMove)
        .value("DIRECTION", lnb::CgPhase::kDirection)
        .value("STEP", lnb::CgPhase::kStep);
    m.def("cg_phase", &cg_phase);
    m.def("two_sided_directions", &two_sided_directions);
    m.def("spd_inverses", &spd_inverses);
    m.def("newton_schulz_roots", &newton_schulz_roots);
    py::class_<lnb::StepTables>(m, "StepTables")
        .def(py::init(&step_tables))
        .def("average", &step_average)
        .def("observe", &lnb::StepTables::observe, py::call_guard<py::gil_scoped_release>())
        .def("refresh", &step_refresh)
        .def("direct", &step_direct)
        .def("sums", &lnb::StepTables::sums)
        .def("measure", &step_measure)
        .def("bound", &step_bound)
        .def("apply", &step_apply);
    m.def("isas", &isas, "Instruction sets that this build has and this CPU runs, best first.");
    m.def("isa", [] { return lnb::isa().name; }, "The instruction set in use.");
    m.def("select_isa", &select_isa);
    m.def("threading", &lnb::threading, "'openmp' (torch's threads) or 'pool' (sleeping threads of this module).");
}
