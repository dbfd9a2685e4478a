// The binding of fused_apply, for bindings.cpp: addresses in, checked before anything is written.
#pragma once

#include <array>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "address_checks.h"
#include "fused_apply.h"

namespace lnb::cuda {

// move, theta, parameter, parameter's type, y, y's type, row scales, width, average, square, size, place, number,
// group. `parameter` is 0 where `theta` is the parameter.
using MoveFields = std::array<int64_t, 14>;
using RateFields = std::tuple<double, uintptr_t, Type>;  // a number, or what is at an address that is not 0

struct MoveCall {
    uintptr_t scales, shorter, shares, corrections, finite, ok;
    int64_t places, others;  // entries of scales and shorter; of shares, corrections and finite
    double beta, take, b_others, epsilon, most;
};

inline int64_t within(const std::string& name, int64_t value, int64_t end) {
    if (value < 0 || value >= end) {
        throw std::invalid_argument(name + " is " + std::to_string(value) + "; allowed are ints in [0, " +
                                    std::to_string(end) + ")");
    }
    return value;
}

inline Scalar rate(const std::string& name, const RateFields& fields) {
    const auto& [value, address, type] = fields;
    if (address != 0) check_memory(name, address, 1, type);
    return {value, reinterpret_cast<const void*>(address), type};
}

inline std::vector<MoveEntry> move_entries(const std::vector<MoveFields>& all, const std::vector<RateFields>& lr,
                                           const std::vector<RateFields>& decay, const MoveCall& call) {
    if (lr.size() != decay.size()) throw std::invalid_argument("weight_decay: one per lr");
    std::vector<Scalar> rates, decays;
    for (size_t i = 0; i < lr.size(); ++i) {
        rates.push_back(rate(label("lr", i), lr[i]));
        decays.push_back(rate(label("weight_decay", i), decay[i]));
    }
    std::vector<MoveEntry> result;
    std::vector<Memory> memory{{"thetas", {}, {}, true},     {"params", {}, {}, true},
                               {"averages", {}, {}, true},   {"squares", {}, {}, true},
                               {"finite", {}, {}, true},     {"directions and gradients", {}, {}, false},
                               {"row_scales", {}, {}, false}};
    const auto note = [&](size_t list, uintptr_t address, int64_t size, Type type) {
        const std::string name = label(memory[list].list, result.size());
        check_memory(name, address, size, type);
        memory[list].addresses.push_back(address);
        memory[list].bytes.push_back(size * width(type));
    };
    for (const MoveFields& fields : all) {
        const auto [move_, theta, param, param_type_, y, y_type_, row_scales, columns, average, square, size, place,
                    number, group] = fields;
        const std::string entry = label("entries", result.size());
        const Move move = static_cast<Move>(within(entry + ": move", move_, 3));
        const Type parameter = static_cast<Type>(within(entry + ": type of the parameter", param_type_, kTypes));
        const Type y_type = static_cast<Type>(within(entry + ": type of the direction", y_type_, kTypes));
        if (!moves(move, parameter, param != 0, y_type)) {
            throw std::invalid_argument(entry + ": no kernel for these dtypes");
        }
        note(0, static_cast<uintptr_t>(theta), size, param == 0 ? parameter : Type::kFloat32);
        if (param != 0) note(1, static_cast<uintptr_t>(param), size, parameter);
        note(5, static_cast<uintptr_t>(y), size, y_type);
        if (move == Move::kWeight) {
            if (columns < 1 || size % columns != 0) {
                throw std::invalid_argument(entry + ": rows of " + std::to_string(columns) +
                                            " entries do not make up " + std::to_string(size));
            }
            note(6, static_cast<uintptr_t>(row_scales), size / columns, Type::kFloat32);
        }
        if (move == Move::kOther) {
            note(2, static_cast<uintptr_t>(average), size, Type::kFloat32);
            note(3, static_cast<uintptr_t>(square), size, Type::kFloat32);
            within(entry + ": number", number, call.others);
        }
        within(entry + ": place", place, call.places);
        const size_t of = static_cast<size_t>(within(entry + ": group", group, static_cast<int64_t>(rates.size())));
        const auto at = [](int64_t address) { return reinterpret_cast<void*>(address); };
        result.push_back({move, at(theta), at(param), at(y), parameter, y_type,
                          static_cast<const float*>(at(row_scales)), columns, static_cast<float*>(at(average)),
                          static_cast<float*>(at(square)), size, static_cast<int32_t>(place),
                          static_cast<int32_t>(number), rates[of], decays[of]});
    }
    check_memory("scales", call.scales, call.places, Type::kFloat64);
    if (call.shorter != 0) check_memory("shorter", call.shorter, call.places, Type::kFloat64);
    check_memory("shares", call.shares, call.others, Type::kFloat64);
    check_memory("corrections", call.corrections, call.others, Type::kFloat64);
    if (call.finite != 0) {
        memory[4].addresses.push_back(call.finite);
        memory[4].bytes.push_back(call.others);
    }
    require_disjoint_writes(memory);
    return result;
}

inline void check_moves(const std::vector<MoveFields>& all, const std::vector<RateFields>& lr,
                        const std::vector<RateFields>& decay, const MoveCall& call) {
    move_entries(all, lr, decay, call);
}

inline MoveNumbers move_numbers(const MoveCall& call) {
    const auto at = [](uintptr_t address) { return reinterpret_cast<const double*>(address); };
    return {at(call.scales),
            at(call.shorter),
            at(call.shares),
            at(call.corrections),
            reinterpret_cast<bool*>(call.finite),
            reinterpret_cast<const bool*>(call.ok),
            static_cast<float>(call.beta),
            static_cast<float>(1 - call.beta),
            static_cast<float>(call.take),
            static_cast<float>(1 - call.b_others),
            static_cast<float>(call.epsilon),
            static_cast<float>(call.most)};
}

}  // namespace lnb::cuda
