#include "dispatch.h"
#include "launch.h"
#include "multi_tensor.h"
#include "scalar.cuh"
#include "sweep.cuh"
#include "table.h"

namespace lnb::cuda {
namespace {

// p <- p - (step d + decay p), formed in this order: 1 - decay would lose the decay's low bits. The new value is also
// stored in `copy` where there is one.
template <typename X, typename Y, typename Copy>
struct Apply {
    Real<X, Y> step, decay;
    Copy* copy;

    template <int N>
    __device__ __forceinline__ void operator()(int64_t i, Pack<X, N>& xs, const Pack<Y, N>& ys) const {
        Pack<Copy, N> copies;
        LNB_UNROLL
        for (int k = 0; k < N; ++k) {
            const Real<X, Y> old = widen(xs.value[k]);
            // Not 0 times a direction that may be NaN.
            const Real<X, Y> fresh = old - ((step == 0 ? 0 : step * widen(ys.value[k])) + decay * old);
            narrow(fresh, xs.value[k]);
            if constexpr (kCopies) narrow(fresh, copies.value[k]);
        }
        if constexpr (kCopies) write_pack<N>(copy + i, copies);
    }

    static constexpr bool kCopies = !std::is_same_v<X, Copy>;
};

template <typename X, typename Y, typename Copy>
__global__ void __launch_bounds__(kThreads, kBlocks)
    apply_kernel(LNB_PARAMETER(Table) table, const void* scales, Type scale_type, const Scalar lr, const Scalar decay,
                 const bool* ok) {
    if (ok != nullptr && !read(ok)) return;
    const Piece piece = table.piece(blockIdx.x);
    X* x = static_cast<X*>(table.x[piece.tensor]) + piece.begin;
    const Y* y = static_cast<const Y*>(table.y[piece.tensor]) + piece.begin;
    const double rate = load(lr);
    Apply<X, Y, Copy> op{
        static_cast<Real<X, Y>>(rate * load(scales, scale_type, table.slot[piece.tensor])),
        static_cast<Real<X, Y>>(rate * load(decay)),
        nullptr,
    };
    constexpr int N = kVector<X, Y>;
    bool vectors = aligned<N>(x) && aligned<N>(y);
    if constexpr (op.kCopies) {
        op.copy = static_cast<Copy*>(table.copy[piece.tensor]) + piece.begin;
        vectors = vectors && aligned<N>(op.copy);
    }
    sweep(x, y, piece.size, vectors, true, op);
}

// x <- keep x + add y if `update`, and copy <- share x + take y of that x.
template <typename X, typename Y>
struct Combine {
    X keep, add, share, take;
    bool update;
    X* copy;

    template <int N>
    __device__ __forceinline__ void operator()(int64_t i, Pack<X, N>& xs, const Pack<Y, N>& ys) const {
        Pack<X, N> combined;
        LNB_UNROLL
        for (int k = 0; k < N; ++k) {
            const X value = widen(ys.value[k]);
            if (update) xs.value[k] = keep * xs.value[k] + add * value;
            // Not 0 times a value that may be NaN.
            combined.value[k] = share * xs.value[k] + (take == 0 ? 0 : take * value);
        }
        write_pack<N>(copy + i, combined);
    }
};

template <typename X, typename Y>
__global__ void __launch_bounds__(kThreads, kBlocks)
    ema_combined_kernel(LNB_PARAMETER(Table) table, double beta, const void* shares, Type share_type, double take,
                        const bool* ok) {
    const Piece piece = table.piece(blockIdx.x);
    X* x = static_cast<X*>(table.x[piece.tensor]) + piece.begin;
    const Y* y = static_cast<const Y*>(table.y[piece.tensor]) + piece.begin;
    X* copy = static_cast<X*>(table.copy[piece.tensor]) + piece.begin;
    const bool update = ok == nullptr || read(ok);
    const Combine<X, Y> op{static_cast<X>(beta),
                           static_cast<X>(1.0 - beta),
                           static_cast<X>(load(shares, share_type, table.slot[piece.tensor])),
                           static_cast<X>(take),
                           update,
                           copy};
    constexpr int N = kVector<X, Y>;
    sweep(x, y, piece.size, aligned<N>(x) && aligned<N>(y) && aligned<N>(copy), update, op);
}

// The sign and the fraction do not matter: an entry is NaN or infinite if and only if all its exponent bits are set.
template <typename Bits>
struct FindSpecial {
    Bits exponent;
    bool found;

    template <int N>
    __device__ __forceinline__ void operator()(const Pack<Bits, N>& xs) {
        LNB_UNROLL
        for (int k = 0; k < N; ++k) found |= (xs.value[k] & exponent) == exponent;
    }
};

template <typename Bits>
__global__ void __launch_bounds__(kThreads, kBlocks)
    all_finite_kernel(LNB_PARAMETER(Table) table, Bits exponent, bool* finite) {
    const Piece piece = table.piece(blockIdx.x);
    const Bits* x = static_cast<const Bits*>(table.x[piece.tensor]) + piece.begin;
    FindSpecial<Bits> op{exponent, false};
    sweep(x, piece.size, op);
    if (op.found) write(finite, false);  // by any number of threads: all write the same
}

template <typename Bits>
void start_all_finite(const Pair* pairs, int64_t count, Bits exponent, bool* finite, void* stream) {
    for_each_table(pairs, count, [=](const Table& table, int64_t blocks) {
        launch("multi_tensor.all_finite", all_finite_kernel<Bits>, {blocks, kThreads}, stream, table, exponent, finite);
    });
}

template <typename X, typename Y, typename Copy>
void start_apply(const Pair* pairs, int64_t count, const void* scales, Type scale_type, const Scalar& lr,
                 const Scalar& decay, const bool* ok, void* stream) {
    const char* name = std::is_same_v<X, Copy> ? "multi_tensor.apply" : "multi_tensor.apply_master";
    for_each_table(pairs, count, [&](const Table& table, int64_t blocks) {
        launch(name, apply_kernel<X, Y, Copy>, {blocks, kThreads}, stream, table, scales, scale_type, lr, decay, ok);
    });
}

// Averages of 16 bits have no combination: whoever keeps some has the wide values to combine.
template <typename F>
bool with_combined_types(Type x, Type y, F f) {
    bool found = false;
    with_types(x, y, [&](auto x_value, auto y_value) {
        if constexpr (sizeof x_value > 2) {
            f(x_value, y_value);
            found = true;
        }
    });
    return found;
}

}  // namespace

bool supported(Type x, Type y) {
    return with_types(x, y, [](auto, auto) {});
}

void apply(const Pair* pairs, int64_t count, Type x, Type y, const void* scales, Type scale_type, const Scalar& lr,
           const Scalar& decay, const bool* ok, void* stream) {
    require_kernel(with_types(x, y, [&](auto x_value, auto y_value) {
        using X = decltype(x_value);
        start_apply<X, decltype(y_value), X>(pairs, count, scales, scale_type, lr, decay, ok, stream);
    }));
}

void apply_master(const Pair* pairs, int64_t count, Type copy_type, Type y, const void* scales, Type scale_type,
                  const Scalar& lr, const Scalar& decay, const bool* ok, void* stream) {
    const auto start = [&](auto copy_value, auto y_value) {
        start_apply<float, decltype(y_value), decltype(copy_value)>(pairs, count, scales, scale_type, lr, decay, ok,
                                                                    stream);
    };
    const bool wide = y == Type::kFloat32;
    if (copy_type == Type::kBFloat16 && wide) return start(BFloat16{}, float{});
    if (copy_type == Type::kFloat16 && wide) return start(Half{}, float{});
    if (copy_type == Type::kBFloat16 && y == copy_type) return start(BFloat16{}, BFloat16{});
    if (copy_type == Type::kFloat16 && y == copy_type) return start(Half{}, Half{});
    require_kernel(false);
}

bool combines(Type x, Type y) {
    return with_combined_types(x, y, [](auto, auto) {});
}

void ema_combined(const Pair* pairs, int64_t count, Type x, Type y, double beta, const void* shares, Type share_type,
                  double take, const bool* ok, void* stream) {
    require_kernel(with_combined_types(x, y, [&](auto x_value, auto y_value) {
        const auto kernel = ema_combined_kernel<decltype(x_value), decltype(y_value)>;
        for_each_table(pairs, count, [&](const Table& table, int64_t blocks) {
            launch("multi_tensor.ema_combined", kernel, {blocks, kThreads}, stream, table, beta, shares, share_type,
                   take, ok);
        });
    }));
}

void all_finite(const Pair* pairs, int64_t count, Type x, bool* finite, void* stream) {
    switch (x) {
        case Type::kFloat64:
            return start_all_finite<uint64_t>(pairs, count, 0x7ff0000000000000u, finite, stream);
        case Type::kFloat32:
            return start_all_finite<uint32_t>(pairs, count, 0x7f800000u, finite, stream);
        case Type::kBFloat16:
            return start_all_finite<uint16_t>(pairs, count, 0x7f80u, finite, stream);
        case Type::kFloat16:
            return start_all_finite<uint16_t>(pairs, count, 0x7c00u, finite, stream);
    }
}

}  // namespace lnb::cuda
