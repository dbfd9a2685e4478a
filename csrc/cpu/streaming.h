// Stores that bypass the caches: of memory that is only written they spare the reading of its old content, a third of
// the traffic of a copy. Included by files that are compiled per instruction set, so all is `static inline`.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace lnb {

constexpr int64_t kLine = 64;  // bytes of a cache line

// How many elements at `address` come before the first whole line.
template <typename T>
static inline int64_t lines_begin(const T* address) {
    const auto over = static_cast<int64_t>(reinterpret_cast<uintptr_t>(address) % kLine);
    return (kLine - over) % kLine / static_cast<int64_t>(sizeof(T));
}

// Store one line; both addresses are aligned to it.
static inline void stream_line(void* to, const void* from) {
#if defined(__AVX512F__)
    _mm512_stream_si512(static_cast<__m512i*>(to), _mm512_load_si512(from));
#elif defined(__AVX2__)
    auto* target = static_cast<__m256i*>(to);
    const auto* source = static_cast<const __m256i*>(from);
    _mm256_stream_si256(target, _mm256_load_si256(source));
    _mm256_stream_si256(target + 1, _mm256_load_si256(source + 1));
#else
    std::memcpy(to, from, kLine);
#endif
}

// Once after the lines: other threads may read them then.
static inline void streamed_all() {
#if defined(__AVX2__)
    _mm_sfence();
#endif
}

}  // namespace lnb
