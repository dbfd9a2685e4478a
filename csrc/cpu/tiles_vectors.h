// What the registers of an instruction set hold: the `Vectors` that the products of tiles_loops.h run on.

#ifdef __AVX2__
#include <immintrin.h>
#endif

#include "tiles_loops.h"

namespace lnb {
namespace {
namespace of_tiles {

#if defined(__AVX512F__)

// 32 registers: 8 x 3 sums, three columns, one entry.
struct Vectors {
    static constexpr int kLanes = 16, kRows = 8, kBlocks = 3;
    using Sum = __m512;
    using Step = __m512;

    static Sum zero() { return _mm512_setzero_ps(); }
    static Step load(const char* at) { return _mm512_loadu_ps(at); }
    static Step broadcast(const char* at) { return _mm512_set1_ps(*entry<float>(at, 0)); }
    static void add(Sum& sum, Step x, Step y) { sum = _mm512_fmadd_ps(x, y, sum); }
    static void accumulate(float* c, Sum sum) { _mm512_storeu_ps(c, _mm512_add_ps(_mm512_loadu_ps(c), sum)); }
};

#elif defined(__AVX2__)

// 16 registers: 4 x 2 sums, two columns, one entry.
struct Vectors {
    static constexpr int kLanes = 8, kRows = 4, kBlocks = 1;
    using Sum = __m256;
    using Step = __m256;

    static Sum zero() { return _mm256_setzero_ps(); }
    static Step load(const char* at) { return _mm256_loadu_ps(entry<float>(at, 0)); }
    static Step broadcast(const char* at) { return _mm256_broadcast_ss(entry<float>(at, 0)); }
    static void add(Sum& sum, Step x, Step y) { sum = _mm256_fmadd_ps(x, y, sum); }
    static void accumulate(float* c, Sum sum) { _mm256_storeu_ps(c, _mm256_add_ps(_mm256_loadu_ps(c), sum)); }
};

#else

// Four floats at a time: what every CPU's vectors hold at least, and what compilers turn them into.
struct Vectors {
    static constexpr int kLanes = 4, kRows = 2, kBlocks = 1;
    struct Sum {
        float lanes[kLanes];
    };
    using Step = Sum;

    static Sum zero() { return {}; }
    static Step load(const char* at) {
        Step step;
        std::memcpy(&step, at, sizeof step);
        return step;
    }
    static Step broadcast(const char* at) {
        const float x = *entry<float>(at, 0);
        return {{x, x, x, x}};
    }
    static void add(Sum& sum, const Step& x, const Step& y) {
        for (int i = 0; i < kLanes; ++i) sum.lanes[i] += x.lanes[i] * y.lanes[i];
    }
    static void accumulate(float* c, const Sum& sum) {
        for (int i = 0; i < kLanes; ++i) c[i] += sum.lanes[i];
    }
};

#endif

#ifdef __AVX512BF16__

// As Vectors, with a pair of bfloat16 in each lane.
struct PairVectors : Vectors {
    using Step = __m512bh;

    static Step load(const char* at) { return reinterpret_cast<Step>(_mm512_loadu_si512(at)); }
    static Step broadcast(const char* at) { return reinterpret_cast<Step>(_mm512_set1_epi32(*entry<int32_t>(at, 0))); }
    static void add(Sum& sum, Step x, Step y) { sum = _mm512_dpbf16_ps(sum, x, y); }
};

#endif

}  // namespace of_tiles
}  // namespace
}  // namespace lnb
