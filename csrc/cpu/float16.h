// 16-bit floating formats as bit patterns, converted by integer arithmetic that every compiler vectorises.
//
// Everything is `static inline`: this header is compiled once per instruction set, and no copy of a function may serve
// another instruction set's code.
#pragma once

#include <cstdint>
#include <cstring>

namespace lnb {

struct BFloat16 {
    uint16_t bits;
};

struct Half {
    uint16_t bits;
};

static inline uint32_t bits_of(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    return bits;
}

static inline float float_of(uint32_t bits) {
    float x;
    std::memcpy(&x, &bits, sizeof x);
    return x;
}

static inline double widen(double x) {
    return x;
}
static inline float widen(float x) {
    return x;
}
static inline float widen(BFloat16 x) {
    return float_of(static_cast<uint32_t>(x.bits) << 16);
}

static inline float widen(Half x) {
    const uint32_t sign = static_cast<uint32_t>(x.bits & 0x8000u) << 16;
    const uint32_t magnitude = static_cast<uint32_t>(x.bits & 0x7fffu) << 13;
    // Rebias the exponent from 15 to 127. A subnormal has no implicit one: give it one, and subtract it as a float.
    const float subnormal = float_of(magnitude + (113u << 23)) - float_of(113u << 23);
    const uint32_t normal = magnitude + (112u << 23);
    const uint32_t special = magnitude | 0x7f800000u;  // inf and NaN
    uint32_t bits = magnitude < (1u << 23) ? bits_of(subnormal) : normal;
    bits = magnitude >= (31u << 23) ? special : bits;
    return float_of(bits | sign);
}

static inline void narrow(double x, double& out) {
    out = x;
}
static inline void narrow(float x, float& out) {
    out = x;
}

static inline void narrow(float x, BFloat16& out) {
    const uint32_t bits = bits_of(x);
    const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;  // to nearest, ties to even
    const bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
    out.bits = static_cast<uint16_t>(nan ? 0x7fc0u : rounded);
}

static inline void narrow(float x, Half& out) {
    const uint32_t bits = bits_of(x);
    const uint32_t magnitude = bits & 0x7fffffffu;
    const uint32_t normal = (magnitude - (112u << 23) + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;  // ties to even
    // 0.5 has the exponent at which a float's last bit is the half's subnormal step: the addition rounds to it.
    const uint32_t subnormal = bits_of(float_of(magnitude) + 0.5f) - bits_of(0.5f);
    uint32_t result = magnitude < (113u << 23) ? subnormal : normal;
    result = magnitude >= 0x47800000u ? 0x7c00u : result;  // from 65536 up; what rounds up to it is already inf
    result = magnitude > 0x7f800000u ? 0x7e00u : result;
    out.bits = static_cast<uint16_t>(result | ((bits >> 16) & 0x8000u));
}

}  // namespace lnb
