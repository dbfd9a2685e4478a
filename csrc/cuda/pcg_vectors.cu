// The vectors' part of an iteration: one block per row, whose entries stay in registers between the phases that a
// launch combines. So kStep, with one unit per row, reads and writes every vector once.
#include <algorithm>
#include <stdexcept>

#include "launch.h"
#include "pack.cuh"
#include "pcg.h"
#include "reduce.cuh"

namespace lnb::cuda {
namespace {

struct VectorTable {
    VectorEquation equation[kVectorEquations];
    int32_t first_block[kVectorEquations + 1];
    int32_t count;
};
static_assert(sizeof(VectorTable) <= 32764, "CUDA's limit for kernel parameters");

constexpr int kPack = 4;  // entries of one 16-byte access

// A thread's entries of one vector's row.
template <int kOwn>
struct Part {
    float value[kOwn];
};

// A row and how threads share it: thread t has packs t, t + threads, ... of those that 16-byte boundaries cut it into.
// The rows of a tensor begin anywhere between two boundaries; so its first and last pack may reach beyond the row.
template <int kOwn>
struct Row {
    static_assert(kOwn % kPack == 0);
    int64_t begin;  // in the tensors
    int columns, d;
    bool vectors;  // every tensor begins at a boundary

    // The column of the thread's i-th entry, outside [0, columns) for none.
    __device__ __forceinline__ int column(int i) const {
        const int pack = i / kPack * static_cast<int>(blockDim.x) + static_cast<int>(threadIdx.x);
        return pack * kPack + i % kPack - static_cast<int>(begin % kPack);
    }
    __device__ __forceinline__ bool has(int i) const { return column(i) >= 0 && column(i) < columns; }
    __device__ __forceinline__ bool has_feature(int i) const { return column(i) >= 0 && column(i) < d; }
    __device__ __forceinline__ bool has_pack(int i) const { return vectors && has(i) && has(i + kPack - 1); }

    __device__ __forceinline__ Part<kOwn> load(const float* tensor) const {
        Part<kOwn> part;
        LNB_UNROLL
        for (int i = 0; i < kOwn; i += kPack) {
            if (has_pack(i)) {
                const auto pack = unpack(read_words<kPack>(tensor + begin + column(i)));
                LNB_UNROLL
                for (int j = 0; j < kPack; ++j) part.value[i + j] = pack.value[j];
            } else {
                LNB_UNROLL
                for (int j = i; j < i + kPack; ++j) part.value[j] = has(j) ? read(tensor + begin + column(j)) : 0;
            }
        }
        return part;
    }

    __device__ __forceinline__ void store(float* tensor, const Part<kOwn>& part) const {
        LNB_UNROLL
        for (int i = 0; i < kOwn; i += kPack) {
            if (has_pack(i)) {
                Pack<float, kPack> pack;
                LNB_UNROLL
                for (int j = 0; j < kPack; ++j) pack.value[j] = part.value[i + j];
                write_pack<kPack>(tensor + begin + column(i), pack);
            } else {
                LNB_UNROLL
                for (int j = i; j < i + kPack; ++j) {
                    if (has(j)) write(tensor + begin + column(j), part.value[j]);
                }
            }
        }
    }
};

__device__ __forceinline__ bool all_aligned(const VectorEquation& equation) {
    return aligned<kPack>(equation.g) && aligned<kPack>(equation.h) && aligned<kPack>(equation.r) &&
           aligned<kPack>(equation.p) && aligned<kPack>(equation.ap);
}

template <int kOwn>
__device__ __forceinline__ double dot(const Part<kOwn>& x, const Part<kOwn>& y) {
    double sum = 0;
    LNB_UNROLL
    for (int i = 0; i < kOwn; ++i) sum += static_cast<double>(x.value[i]) * y.value[i];
    return sum;
}

// P r. `scratch` [warps] is shared and may still be read when it is called, by all threads, and when it returns.
template <int kOwn>
__device__ __forceinline__ Part<kOwn> precondition(const Row<kOwn>& row, const Part<kOwn>& r,
                                                   const VectorEquation& equation, double* scratch) {
    if (equation.mu == nullptr) return r;
    Part<kOwn> z;
    if (row.columns == row.d) {
        LNB_UNROLL
        for (int i = 0; i < kOwn; ++i) {
            const int column = row.column(i);
            const float mu = row.has_feature(i) ? read(equation.mu + column) : 0;
            z.value[i] = row.has_feature(i) ? r.value[i] / (read(equation.var + column) + mu * mu) : 0;
        }
        return z;
    }
    double b[1] = {0};  // the row's last entry
    LNB_UNROLL
    for (int i = 0; i < kOwn; ++i) b[0] += row.column(i) == row.d ? r.value[i] : 0;
    __syncthreads();
    block_sums(b, scratch);
    const auto bias = static_cast<float>(b[0]);
    double mu_z[1] = {0};
    LNB_UNROLL
    for (int i = 0; i < kOwn; ++i) {
        const int column = row.column(i);
        z.value[i] = 0;
        if (!row.has_feature(i)) continue;
        const float mu = read(equation.mu + column);
        z.value[i] = (r.value[i] - mu * bias) / read(equation.var + column);
        mu_z[0] += static_cast<double>(mu) * z.value[i];
    }
    __syncthreads();
    block_sums(mu_z, scratch);
    LNB_UNROLL
    for (int i = 0; i < kOwn; ++i) {
        if (row.column(i) == row.d) z.value[i] = static_cast<float>(b[0] - mu_z[0]);
    }
    return z;
}

template <CgPhase kPhase, int kOwn, int kThreadsOfRow>
__global__ void __launch_bounds__(kThreadsOfRow) pcg_phase_kernel(LNB_PARAMETER(VectorTable) table, bool unit_per_row,
                                                                  const CgSums units, const CgSums rows, double stop) {
    constexpr bool kStart = kPhase == CgPhase::kStart, kStep = kPhase == CgPhase::kStep;
    int index = 0;
    while (static_cast<unsigned>(table.first_block[index + 1]) <= blockIdx.x) ++index;
    const VectorEquation& equation = table.equation[index];
    const int in_layer = static_cast<int>(blockIdx.x) - table.first_block[index];
    const int64_t row_number = equation.first_row + in_layer;
    const int64_t unit = equation.unit + (unit_per_row ? in_layer : 0);
    const Row<kOwn> row{static_cast<int64_t>(in_layer) * equation.columns, equation.columns, equation.d,
                        all_aligned(equation)};
    LNB_SHARED(double, scratch, 3 * kThreadsOfRow / kWarp);

    Part<kOwn> r, p, z;
    if constexpr (kStart) {
        const Part<kOwn> g = row.load(equation.g);
        r = g;
        if (equation.ap != nullptr) {
            const Part<kOwn> ah = row.load(equation.ap);
            LNB_UNROLL
            for (int i = 0; i < kOwn; ++i) r.value[i] -= ah.value[i];
        }
        row.store(equation.r, r);
        z = precondition(row, r, equation, scratch);
        row.store(equation.p, z);
        double sums[3] = {dot(g, g), dot(r, r), dot(r, z)};
        __syncthreads();
        block_sums(sums, scratch);
        if (threadIdx.x == 0) {
            write(rows.gg + row_number, sums[0]);
            write(rows.rr[1] + row_number, sums[1]);
            write(rows.rz[1] + row_number, sums[2]);
        }
        return;
    }

    double pap[1], rz = 0;
    bool active = false;
    if constexpr (kPhase != CgPhase::kDirection) {
        p = row.load(equation.p);
        const Part<kOwn> ap = row.load(equation.ap);
        if constexpr (kPhase != CgPhase::kMove) {
            pap[0] = dot(p, ap);
            block_sums(pap, scratch);
            if (threadIdx.x == 0) write(rows.pap + row_number, pap[0]);
        } else {
            pap[0] = read(units.pap + unit);
        }
        if constexpr (kPhase == CgPhase::kProduct) return;
        active = read(units.rr[0] + unit) > stop * stop * read(units.gg + unit) && pap[0] > 0;
        const auto alpha = static_cast<float>(active ? read(units.rz[0] + unit) / pap[0] : 0);
        Part<kOwn> h = row.load(equation.h);
        r = row.load(equation.r);
        LNB_UNROLL
        for (int i = 0; i < kOwn; ++i) {
            h.value[i] += alpha * p.value[i];
            r.value[i] -= alpha * ap.value[i];
        }
        row.store(equation.h, h);
        row.store(equation.r, r);
        z = precondition(row, r, equation, scratch);
        double sums[2] = {dot(r, r), dot(r, z)};
        __syncthreads();
        block_sums(sums, scratch);
        if (threadIdx.x == 0) {
            write(rows.rr[1] + row_number, sums[0]);
            write(rows.rz[1] + row_number, sums[1]);
        }
        rz = sums[1];
    }
    if constexpr (kPhase == CgPhase::kDirection) {
        active = read(units.rr[0] + unit) > stop * stop * read(units.gg + unit) && read(units.pap + unit) > 0;
        rz = read(units.rz[1] + unit);
        p = row.load(equation.p);
        r = row.load(equation.r);
        z = precondition(row, r, equation, scratch);
    }
    if constexpr (kPhase == CgPhase::kDirection || kStep) {
        const auto beta = static_cast<float>(active ? rz / read(units.rz[0] + unit) : 0);
        LNB_UNROLL
        for (int i = 0; i < kOwn; ++i) z.value[i] += beta * p.value[i];
        row.store(equation.p, z);
    }
}

template <CgPhase kPhase, int kOwn, int kThreadsOfRow>
void start(const char* name, const VectorEquation* equations, int64_t count, bool unit_per_row, const CgSums& units,
           const CgSums& rows, double stop, void* stream) {
    const VectorEquation* next = equations;
    while (next != equations + count) {
        VectorTable table;
        table.count = table.first_block[0] = 0;
        int64_t blocks = 0;
        for (; next != equations + count && table.count < kVectorEquations && blocks + next->m <= INT32_MAX; ++next) {
            table.equation[table.count] = *next;
            blocks += next->m;
            table.first_block[++table.count] = static_cast<int32_t>(blocks);
        }
        launch(name, pcg_phase_kernel<kPhase, kOwn, kThreadsOfRow>, {blocks, kThreadsOfRow}, stream, table,
               unit_per_row, units, rows, stop);
    }
}

template <CgPhase kPhase>
void start(const char* name, const VectorEquation* equations, int64_t count, bool unit_per_row, const CgSums& units,
           const CgSums& rows, double stop, void* stream) {
    int columns = 0;
    for (int64_t i = 0; i < count; ++i) columns = std::max<int>(columns, equations[i].columns);
    if (columns > kVectorColumns) throw std::invalid_argument("pcg_phase: g has too many columns");
    // Entries that a block has room for, less those before the first of a row.
    constexpr int kSmall = 8 * 160 - (kPack - 1), kLarge = 12 * 352 - (kPack - 1);
    static_assert(kVectorColumns <= kLarge);
    const auto of_size = columns <= kSmall ? start<kPhase, 8, 160> : start<kPhase, 12, 352>;
    of_size(name, equations, count, unit_per_row, units, rows, stop, stream);
}

}  // namespace

void pcg_phase(CgPhase phase, const VectorEquation* equations, int64_t count, bool unit_per_row, const CgSums& units,
               const CgSums& rows, double stop, void* stream) {
    const auto call = [&](auto of_phase, const char* name) {
        of_phase(name, equations, count, unit_per_row, units, rows, stop, stream);
    };
    switch (phase) {
        case CgPhase::kStart:
            return call(start<CgPhase::kStart>, "pcg_phase.start");
        case CgPhase::kProduct:
            return call(start<CgPhase::kProduct>, "pcg_phase.product");
        case CgPhase::kMove:
            return call(start<CgPhase::kMove>, "pcg_phase.move");
        case CgPhase::kDirection:
            return call(start<CgPhase::kDirection>, "pcg_phase.direction");
        case CgPhase::kStep:
            return call(start<CgPhase::kStep>, "pcg_phase.step");
    }
}

}  // namespace lnb::cuda
