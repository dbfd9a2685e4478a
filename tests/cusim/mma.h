// Tensor cores for the simulator: what kernels use of nvcuda::wmma, in place of CUDA's header of this name.
//
// What it makes visible beside the simulator's own checks:
//   * fragments that not all lanes of a warp load, multiply or store, or with different arguments
//   * addresses and pitches that the hardware refuses
//   * operands in float32 that were not rounded to TF32: like the hardware, products drop their last 13 bits
// An entry of a tile lies in another lane and element than on any GPU: CUDA leaves that open, so kernels must not know.
#pragma once

#include <type_traits>

#include "cpu/float16.h"
#include "simulator.h"

namespace nvcuda::wmma {

struct matrix_a;
struct matrix_b;
struct accumulator;
struct row_major;
struct col_major;
enum layout_t { mem_row_major, mem_col_major };

namespace precision {
struct tf32;
}

// To 11 significant bits, to nearest, ties away from zero.
inline float __float_to_tf32(float x) {
    const uint32_t bits = lnb::bits_of(x);
    if ((bits & 0x7f800000u) == 0x7f800000u) return x;
    return lnb::float_of((bits + 0x1000u) & 0xffffe000u);
}

template <typename Use, int M, int N, int K>
struct Extent;
template <int M, int N, int K>
struct Extent<matrix_a, M, N, K> {
    static constexpr int rows = M, columns = K;
};
template <int M, int N, int K>
struct Extent<matrix_b, M, N, K> {
    static constexpr int rows = K, columns = N;
};
template <int M, int N, int K>
struct Extent<accumulator, M, N, K> {
    static constexpr int rows = M, columns = N;
};

template <typename Use, int M, int N, int K, typename T, typename Layout = void>
struct fragment : Extent<Use, M, N, K> {
    using Memory = std::conditional_t<std::is_same_v<T, precision::tf32>, float, T>;
    static constexpr int num_elements = M * N * K /
                                        (std::is_same_v<Use, matrix_a>   ? N
                                         : std::is_same_v<Use, matrix_b> ? M
                                                                         : K) /
                                        32;
    Memory x[num_elements];
};

// Calls f(entry, row, column) for all entries of a tile that is spread over the fragments of a warp.
template <typename Fragment, typename F>
void for_entries(Fragment* const (&lanes)[32], F f) {
    for (int i = 0; i < Fragment::num_elements; ++i) {
        for (int lane = 0; lane < 32; ++lane) {
            const int place = i * 32 + (lane ^ (i * 11 % 32));
            f(lanes[lane]->x[i], place / Fragment::columns, place % Fragment::columns);
        }
    }
}

// Runs f(calls) once, by the last lane of the warp to arrive, with what each lane gave.
template <typename Call, typename F>
void together(Call& own, F f) {
    static const char kind = 0;  // one per type of call
    void* all[32];
    if (!simulator::last_of_warp(&kind, &own, all)) return;
    Call* calls[32];
    for (int lane = 0; lane < 32; ++lane) calls[lane] = static_cast<Call*>(all[lane]);
    f(calls);
    simulator::release_warp();
}

template <typename Fragment, typename T>
struct Access {
    Fragment* fragment;
    T* memory;
    unsigned pitch;
    bool by_rows;
};

template <typename Fragment, typename T, typename F>
void access(Access<Fragment, T> own, F move) {
    together(own, [&](Access<Fragment, T>* const(&calls)[32]) {
        Fragment* fragments[32];
        for (int lane = 0; lane < 32; ++lane) {
            if (calls[lane]->memory != own.memory || calls[lane]->pitch != own.pitch) {
                return simulator::fail("lanes of a warp name different tiles");
            }
            fragments[lane] = calls[lane]->fragment;
        }
        if (reinterpret_cast<uintptr_t>(own.memory) % 32 != 0 || own.pitch * sizeof(T) % 16 != 0) {
            return simulator::fail("a tile that is not aligned to 32 bytes, or rows not to 16");
        }
        for_entries(fragments, [&](auto& entry, int row, int column) {
            move(entry, own.memory + (own.by_rows ? row * own.pitch + column : column * own.pitch + row));
        });
    });
}

template <typename Use, int M, int N, int K, typename T, typename Layout, typename Value>
void fill_fragment(fragment<Use, M, N, K, T, Layout>& target, Value value) {
    for (auto& entry : target.x) entry = value;
}

template <typename Use, int M, int N, int K, typename T, typename Layout, typename Memory>
void load_matrix_sync(fragment<Use, M, N, K, T, Layout>& target, const Memory* tile, unsigned pitch) {
    static_assert(!std::is_void_v<Layout>);
    access<fragment<Use, M, N, K, T, Layout>, const Memory>({&target, tile, pitch, std::is_same_v<Layout, row_major>},
                                                            [](auto& entry, const Memory* from) { entry = *from; });
}

template <int M, int N, int K, typename T>
void store_matrix_sync(T* tile, const fragment<accumulator, M, N, K, T>& source, unsigned pitch, layout_t layout) {
    access<const fragment<accumulator, M, N, K, T>, T>({&source, tile, pitch, layout == mem_row_major},
                                                       [](const T& entry, T* to) { *to = entry; });
}

// What the multiplier sees of an operand.
inline float operand(float x) {
    return lnb::float_of(lnb::bits_of(x) & 0xffffe000u);
}
inline float operand(lnb::BFloat16 x) {
    return lnb::widen(x);
}
inline float operand(lnb::Half x) {
    return lnb::widen(x);
}

template <int M, int N, int K, typename T, typename LayoutA, typename LayoutB>
void mma_sync(fragment<accumulator, M, N, K, float>& sums, const fragment<matrix_a, M, N, K, T, LayoutA>& a,
              const fragment<matrix_b, M, N, K, T, LayoutB>& b, const fragment<accumulator, M, N, K, float>& c) {
    using Sums = fragment<accumulator, M, N, K, float>;
    using A = const fragment<matrix_a, M, N, K, T, LayoutA>;
    using B = const fragment<matrix_b, M, N, K, T, LayoutB>;
    struct Call {
        Sums* sums;
        A* a;
        B* b;
        const Sums* c;
    } own{&sums, &a, &b, &c};
    together(own, [](Call* const(&calls)[32]) {
        Sums* of_sums[32];
        const Sums* of_c[32];
        A* of_a[32];
        B* of_b[32];
        for (int lane = 0; lane < 32; ++lane) {
            of_sums[lane] = calls[lane]->sums;
            of_a[lane] = calls[lane]->a;
            of_b[lane] = calls[lane]->b;
            of_c[lane] = calls[lane]->c;
        }
        float left[M][K], right[K][N], total[M][N];
        for_entries(of_a, [&](const auto& entry, int row, int column) { left[row][column] = operand(entry); });
        for_entries(of_b, [&](const auto& entry, int row, int column) { right[row][column] = operand(entry); });
        for_entries(of_c, [&](const float& entry, int row, int column) { total[row][column] = entry; });
        for (int k = 0; k < K; ++k) {
            for (int i = 0; i < M; ++i) {
                for (int j = 0; j < N; ++j) total[i][j] += left[i][k] * right[k][j];
            }
        }
        for_entries(of_sums, [&](float& entry, int row, int column) { entry = total[row][column]; });
    });
}

}  // namespace nvcuda::wmma
