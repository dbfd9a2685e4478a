// Included by isa_loops.cpp, which is compiled for every instruction set; all
// names are local to the file, so that the linker cannot merge code of different instruction sets.
//
// `omp simd` is a promise to the vectoriser only (-fopenmp-simd): iterations are independent, and sums may be reordered
// into lanes. No OpenMP runtime is involved.

#include <cmath>

#include "float16.h"
#include "multi_tensor_isa.h"
#include "streaming.h"

namespace lnb {
namespace {
namespace of_pairs {

// Calls f(i) for every i in [0, size), through both halves at once: from twice as many streams, a core gets a tenth
// more out of memory. (Loops with sums, and those that bypass the caches, gain nothing by it.)
template <typename F>
inline void by_halves(int64_t size, const F& f) {
    const int64_t half = size / 2;
#pragma omp simd
    for (int64_t i = 0; i < half; ++i) {
        f(i);
        f(half + i);
    }
    if (2 * half < size) f(size - 1);
}

template <typename X, typename Y>
struct PairLoops {
    using Real = decltype(widen(X{}) + widen(Y{}));

    static void ema_combined(void* x_memory, const void* y_memory, void* z_memory, int64_t size, double beta,
                             double share, double take, bool streamed) {
        auto* x = static_cast<X*>(x_memory);
        const auto* y = static_cast<const Y*>(y_memory);
        auto* z = static_cast<X*>(z_memory);
        const auto keep = static_cast<Real>(beta), add = static_cast<Real>(1.0 - beta);
        const auto of_x = static_cast<Real>(share), of_y = static_cast<Real>(take);
        const auto block = [=](int64_t begin, int64_t end, X* to) {
            if (take == 0) {
#pragma omp simd
                for (int64_t i = begin; i < end; ++i) {
                    narrow(keep * widen(x[i]) + add * widen(y[i]), x[i]);
                    narrow(of_x * widen(x[i]), to[i - begin]);
                }
                return;
            }
#pragma omp simd
            for (int64_t i = begin; i < end; ++i) {
                const Real value = widen(y[i]);
                narrow(keep * widen(x[i]) + add * value, x[i]);
                narrow(of_x * widen(x[i]) + of_y * value, to[i - begin]);
            }
        };
        if (!streamed) return block(0, size, z);
        const int64_t head = lines_begin(z), start = head < size ? head : size;
        block(0, start, z);
        alignas(kLine) X line[kLine / sizeof(X)];
        constexpr int64_t kStep = kLine / sizeof(X);
        int64_t i = start;
        for (; i + kStep <= size; i += kStep) {
            block(i, i + kStep, line);
            stream_line(z + i, line);
        }
        streamed_all();
        block(i, size, z + i);
    }

    static double dot(const void* x_memory, const void* y_memory, int64_t size) {
        const auto* x = static_cast<const X*>(x_memory);
        const auto* y = static_cast<const Y*>(y_memory);
        double sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t i = 0; i < size; ++i) sum += static_cast<double>(widen(x[i])) * static_cast<double>(widen(y[i]));
        return sum;
    }

    static void apply(void* x_memory, const void* y_memory, int64_t size, double step, double decay) {
        auto* x = static_cast<X*>(x_memory);
        const auto* y = static_cast<const Y*>(y_memory);
        const auto s = static_cast<Real>(step), d = static_cast<Real>(decay);
        if (s == 0) {  // not 0 times a direction that may be NaN
            return by_halves(size, [=](int64_t i) { narrow(widen(x[i]) - d * widen(x[i]), x[i]); });
        }
        by_halves(size, [=](int64_t i) {
            // The small change is formed first: 1 - decay would lose the decay's low bits.
            const Real old = widen(x[i]);
            narrow(old - (s * widen(y[i]) + d * old), x[i]);
        });
    }
};

// An entry is NaN or infinite if and only if all its exponent bits are set.
template <typename Bits>
bool finite(const void* memory, int64_t size, Bits exponent) {
    const auto* x = static_cast<const Bits*>(memory);
    Bits special = 0;
#pragma omp simd reduction(| : special)
    for (int64_t i = 0; i < size; ++i) special |= static_cast<Bits>((x[i] & exponent) == exponent);
    return special == 0;
}

bool finite64(const void* x, int64_t size) {
    return finite<uint64_t>(x, size, 0x7ff0000000000000u);
}
bool finite32(const void* x, int64_t size) {
    return finite<uint32_t>(x, size, 0x7f800000u);
}
bool finite_bf16(const void* x, int64_t size) {
    return finite<uint16_t>(x, size, 0x7f80u);
}
bool finite16(const void* x, int64_t size) {
    return finite<uint16_t>(x, size, 0x7c00u);
}

template <typename Real, typename G>
double adam(void* direction_memory, void* square_memory, const void* gradient_memory, int64_t size, double decay,
            double correction, double epsilon) {
    auto* direction = static_cast<Real*>(direction_memory);
    auto* square = static_cast<Real*>(square_memory);
    const auto* gradient = static_cast<const G*>(gradient_memory);
    const auto take = static_cast<Real>(1 - decay), divisor = static_cast<Real>(correction);
    const auto added = static_cast<Real>(epsilon);
    constexpr Real kMost = sizeof(Real) == 4 ? Real(0x1p63) : Real(0x1p511);  // of what is squared
    const auto clamped = [=](Real x) { return x > kMost ? kMost : x < -kMost ? -kMost : x; };
    double product = 0;
#pragma omp simd reduction(+ : product)
    for (int64_t i = 0; i < size; ++i) {
        const Real g = clamped(widen(gradient[i])), average = clamped(direction[i]);
        const Real v = square[i] + take * (g * g - square[i]);
        const Real step = average / (std::sqrt(v / divisor) + added);
        square[i] = v;
        direction[i] = step;
        product += static_cast<double>(step) * static_cast<double>(average);
    }
    return product;
}

template <typename X>
void round_to(void* x_memory, const float* y, int64_t size) {
    auto* x = static_cast<X*>(x_memory);
#pragma omp simd
    for (int64_t i = 0; i < size; ++i) narrow(y[i], x[i]);
}

// One row of a table: x of type X, y of each type in the order of `Type`.
#define LNB_ROW(loop, X) {nullptr, &PairLoops<X, float>::loop, &PairLoops<X, BFloat16>::loop, &PairLoops<X, Half>::loop}
#define LNB_TABLE(loop)                                                \
    {                                                                  \
        {&PairLoops<double, double>::loop, nullptr, nullptr, nullptr}, \
        LNB_ROW(loop, float),                                          \
        LNB_ROW(loop, BFloat16),                                       \
        LNB_ROW(loop, Half),                                           \
    }
// Averages of 16 bits have no combination: whoever keeps some has the wide values to combine.
#define LNB_COMBINED                                                           \
    {                                                                          \
        {&PairLoops<double, double>::ema_combined, nullptr, nullptr, nullptr}, \
        LNB_ROW(ema_combined, float),                                          \
        {nullptr, nullptr, nullptr, nullptr},                                  \
        {nullptr, nullptr, nullptr, nullptr},                                  \
    }

constexpr Loops kLoops{
    LNB_COMBINED,
    LNB_TABLE(dot),
    LNB_TABLE(apply),
    {finite64, finite32, finite_bf16, finite16},
    {adam<double, double>, adam<float, float>, adam<float, BFloat16>, adam<float, Half>},
    {nullptr, nullptr, round_to<BFloat16>, round_to<Half>},
};

#undef LNB_ROW
#undef LNB_TABLE
#undef LNB_COMBINED

}  // namespace of_pairs
}  // namespace
}  // namespace lnb
