#include <immintrin.h>

#include "tiles_loops.h"

namespace lnb {
namespace {

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

}  // namespace

const Tiles avx2_tiles = LNB_TILES(&multiply<Vectors>, nullptr);

}  // namespace lnb
