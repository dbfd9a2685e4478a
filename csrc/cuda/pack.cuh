// Consecutive elements that one access moves.
#pragma once

#include "portable.h"

namespace lnb::cuda {

template <typename T, int kSize>
struct alignas(sizeof(T) * kSize) Pack {
    T value[kSize];
};

// A size, as an argument of a generic lambda.
template <int kSize>
struct Packs {
    static constexpr int kCount = kSize;
};

template <int kSize, typename T>
__device__ __forceinline__ bool aligned(const T* address) {
    return reinterpret_cast<uintptr_t>(address) % (sizeof(T) * kSize) == 0;
}

// A pack as whole registers: of two 16-bit elements each, which the compiler else spreads over one register each.
template <typename T, int kSize>
struct alignas(sizeof(T) * kSize) Words {
    uint32_t word[sizeof(T) * kSize / 4];
};

template <int kSize, typename T>
__device__ __forceinline__ Words<T, kSize> read_words(const T* address) {
    return read(reinterpret_cast<const Words<T, kSize>*>(address));
}

template <typename T, int kSize>
__device__ __forceinline__ Pack<T, kSize> unpack(const Words<T, kSize>& words) {
    Pack<T, kSize> pack;
    memcpy(&pack, &words, sizeof pack);
    return pack;
}

template <int kSize, typename T>
__device__ __forceinline__ void write_pack(T* address, const Pack<T, kSize>& pack) {
    if constexpr (sizeof pack < 4) {
        write(address, pack.value[0]);
    } else {
        Words<T, kSize> words;
        memcpy(&words, &pack, sizeof words);
        write(reinterpret_cast<Words<T, kSize>*>(address), words);
    }
}

}  // namespace lnb::cuda
