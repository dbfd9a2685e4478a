#include "cg_vectors.h"

#include <algorithm>

#include "cg_vectors_isa.h"
#include "isa.h"
#include "parallel.h"
#include "ranges.h"

namespace lnb {
namespace {

constexpr int64_t kEntries = 16384;  // of one part: enough to be worth a hand-out, few enough to balance threads

CgRow row_of(const CgVectors& v, int64_t row) {
    const int64_t at = row * v.columns, features = row / v.m * v.d;
    const auto shift = [](auto* tensor, int64_t by) { return tensor == nullptr ? nullptr : tensor + by; };
    return {shift(v.g, at),
            shift(v.mu, features),
            shift(v.var, features),
            shift(v.ap, at),
            shift(v.h, at),
            shift(v.r, at),
            shift(v.p, at),
            v.columns,
            v.d};
}

// A unit that is not done: its residual is above the threshold, and its direction has curvature.
bool is_active(const CgSums& units, int64_t unit, double pap, double stop) {
    return units.rr[0][unit] > stop * stop * units.gg[unit] && pap > 0;
}

void run(CgPhase phase, const CgLoops& loops, const CgRow& row, int64_t i, int64_t unit, const CgSums& units,
         const CgSums& rows, double stop) {
    if (phase == CgPhase::kStart) return loops.start(row, &rows.gg[i], &rows.rr[1][i], &rows.rz[1][i]);
    if (phase == CgPhase::kProduct || phase == CgPhase::kStep) rows.pap[i] = loops.product(row);
    if (phase == CgPhase::kProduct) return;
    const double pap = units.pap[unit], rz = units.rz[0][unit];
    const bool active = is_active(units, unit, pap, stop);
    if (phase != CgPhase::kDirection) {
        loops.move(row, static_cast<float>(active ? rz / pap : 0), &rows.rr[1][i], &rows.rz[1][i]);
    }
    if (phase != CgPhase::kMove) loops.direction(row, static_cast<float>(active ? units.rz[1][unit] / rz : 0));
}

}  // namespace

void cg_phase(CgPhase phase, const CgVectors& vectors, int64_t rows_per_unit, const CgSums& units, const CgSums& rows,
              double stop, int threads) {
    const CgLoops& loops = *isa().cg_loops;
    const int64_t count = vectors.layers * vectors.m;
    const int64_t grain = std::max<int64_t>(1, kEntries / std::max<int64_t>(1, vectors.columns));
    const int64_t parts = ceil_div(count, grain);
    parallel_for(parts, threads, [&](int64_t part) {
        const Range range = piece(count, parts, part);
        for (int64_t i = range.begin; i < range.end; ++i) {
            run(phase, loops, row_of(vectors, i), i, i / rows_per_unit, units, rows, stop);
        }
    });
}

}  // namespace lnb
