// Tensor cores: products of tiles in shared memory, in three precisions. Sums are in float32 in all of them.
#pragma once

#include <mma.h>  // CUDA's, or that of the tests' simulator

#include <type_traits>

#include "element.cuh"

namespace lnb::cuda {

constexpr int kUnit = 16;  // rows and columns of a tile of sums

// fragment <- a tile in shared memory. For bfloat16 CUDA's own function does not see that it is shared, and makes four
// loads of it where there is one instruction for all.
template <typename Use, typename T, typename Layout>
__device__ __forceinline__ void load_shared(nvcuda::wmma::fragment<Use, kUnit, kUnit, kUnit, T, Layout>& fragment,
                                            const T* tile, int pitch) {
#ifndef LNB_CUSIM
    if constexpr (std::is_same_v<T, BFloat16>) {
        static_assert(sizeof fragment.x == 16);
        uint32_t words[4];
        const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(tile));
        if constexpr (std::is_same_v<Use, nvcuda::wmma::matrix_a>) {
            static_assert(std::is_same_v<Layout, nvcuda::wmma::row_major>);
            asm volatile("wmma.load.a.sync.aligned.row.m16n16k16.shared.bf16 {%0, %1, %2, %3}, [%4], %5;"
                         : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
                         : "r"(address), "r"(pitch)
                         : "memory");
        } else {
            static_assert(std::is_same_v<Layout, nvcuda::wmma::col_major>);
            asm volatile("wmma.load.b.sync.aligned.col.m16n16k16.shared.bf16 {%0, %1, %2, %3}, [%4], %5;"
                         : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
                         : "r"(address), "r"(pitch)
                         : "memory");
        }
        memcpy(&fragment.x, words, sizeof words);
        return;
    }
#endif
    nvcuda::wmma::load_matrix_sync(fragment, tile, pitch);
}

// What the three have in common: fragments [16, kDepth] on the left and [kDepth, 16] on the right, in shared memory as
// Element, to which `narrow` rounds.
template <int kDepth, typename T>
struct Fragments {
    using Left = nvcuda::wmma::fragment<nvcuda::wmma::matrix_a, kUnit, kUnit, kDepth, T, nvcuda::wmma::row_major>;
    using Right = nvcuda::wmma::fragment<nvcuda::wmma::matrix_b, kUnit, kUnit, kDepth, T, nvcuda::wmma::row_major>;
    using Sums = nvcuda::wmma::fragment<nvcuda::wmma::accumulator, kUnit, kUnit, kDepth, float>;
};

// Operands of 11 significant bits.
struct Tf32 : Fragments<8, nvcuda::wmma::precision::tf32> {
    using Element = float;
    static constexpr int kDepth = 8;

    static __device__ __forceinline__ float narrow(float x) { return nvcuda::wmma::__float_to_tf32(x); }

    template <typename Fragment>
    static __device__ __forceinline__ void load(Fragment& fragment, const float* tile, int pitch) {
        nvcuda::wmma::load_matrix_sync(fragment, tile, pitch);
    }
    static __device__ __forceinline__ void add_product(Sums& sums, const Left& left, const Right& right) {
        nvcuda::wmma::mma_sync(sums, left, right, sums);
    }
};

// Operands of 8 significant bits.
struct Bf16 : Fragments<16, BFloat16> {
    using Element = BFloat16;
    static constexpr int kDepth = 16;

    static __device__ __forceinline__ BFloat16 narrow(float x) {
        BFloat16 result;
        lnb::cuda::narrow(x, result);
        return result;
    }
    template <typename Fragment>
    static __device__ __forceinline__ void load(Fragment& fragment, const BFloat16* tile, int pitch) {
        nvcuda::wmma::load_matrix_sync(fragment, tile, pitch);
    }
    static __device__ __forceinline__ void add_product(Sums& sums, const Left& left, const Right& right) {
        nvcuda::wmma::mma_sync(sums, left, right, sums);
    }
};

// Each operand as the sum of two of 11 bits, x = high + low: x y = high high + high low + low high, but for the product
// of what was rounded off both, which is beyond float32. (The split is Dekker's; on tensor cores it is in CUTLASS too.)
struct Tf32x3 {
    using Element = float;
    using Sums = Tf32::Sums;
    static constexpr int kDepth = 8;

    template <typename Fragment>
    struct Parts {
        Fragment high, low;
    };
    using Left = Parts<Tf32::Left>;
    using Right = Parts<Tf32::Right>;

    static __device__ __forceinline__ float narrow(float x) { return x; }

    template <typename Fragment>
    static __device__ __forceinline__ void load(Parts<Fragment>& parts, const float* tile, int pitch) {
        nvcuda::wmma::load_matrix_sync(parts.high, tile, pitch);
        LNB_UNROLL
        for (int i = 0; i < Fragment::num_elements; ++i) {
            const float x = parts.high.x[i];
            parts.high.x[i] = Tf32::narrow(x);
            parts.low.x[i] = Tf32::narrow(x - parts.high.x[i]);
        }
    }
    static __device__ __forceinline__ void add_product(Sums& sums, const Left& left, const Right& right) {
        nvcuda::wmma::mma_sync(sums, left.low, right.high, sums);  // the smallest first
        nvcuda::wmma::mma_sync(sums, left.high, right.low, sums);
        nvcuda::wmma::mma_sync(sums, left.high, right.high, sums);
    }
};

}  // namespace lnb::cuda
