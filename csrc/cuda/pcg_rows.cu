// All iterations of small equations in one launch. A block owns 32 rows of one layer and keeps A in shared memory; a
// warp owns 4 of the rows and keeps h, r and z in registers, lane l the columns l, l + 32, ... A product reads each
// entry of A once for the 4 rows.
#include <algorithm>
#include <stdexcept>

#include "launch.h"
#include "pcg.h"
#include "reduce.cuh"

namespace lnb::cuda {
namespace {

constexpr int kRows = 4;  // of a warp
constexpr int kWarps = 8;
constexpr int kSlots = (kRowColumns + kWarp - 1) / kWarp;  // columns of a lane

struct RowTable {
    RowEquation equation[kRowEquations];
    int32_t first_block[kRowEquations + 1];
    int32_t count;
};
static_assert(sizeof(RowTable) <= 32764, "CUDA's limit for kernel parameters");

__host__ __device__ constexpr int rounded(int columns) {  // to whole 16-byte reads of p
    return (columns + 3) / 4 * 4;
}

__host__ __device__ constexpr size_t shared_floats(int columns) {
    return static_cast<size_t>(rounded(columns)) * (rounded(columns) + kWarps * kRows + 2);
}

struct Float4 {
    alignas(16) float value[4];
};

// What the rows of a block share.
struct Layer {
    const float* a;    // [stride, stride]: A, with zeros beyond its columns
    const float* mu;   // [stride]
    const float* var;  // [stride]
    int stride, columns, d;
    bool arrow;
};

using Rows = float[kRows][kSlots];

// What one lane holds of the rows of its warp. Entries beyond the columns are zero.
struct WarpRows {
    const Layer& layer;
    float* p;  // [kRows, stride] in shared memory, of this warp
    int lane;

    __device__ __forceinline__ bool valid(int slot) const { return slot * kWarp + lane < layer.columns; }

    // y <- p A
    __device__ __forceinline__ void product(Rows& y) const {
        __syncwarp();  // p is written by all lanes
        LNB_UNROLL
        for (int row = 0; row < kRows; ++row) {
            LNB_UNROLL
            for (int slot = 0; slot < kSlots; ++slot) y[row][slot] = 0;
        }
        for (int k = 0; k < layer.stride; k += 4) {
            Float4 of_p[kRows];
            LNB_UNROLL
            for (int row = 0; row < kRows; ++row) {
                of_p[row] = *reinterpret_cast<const Float4*>(p + row * layer.stride + k);
            }
            LNB_UNROLL
            for (int slot = 0; slot < kSlots; ++slot) {
                if (!valid(slot)) continue;
                const float* a = layer.a + k * layer.stride + slot * kWarp + lane;
                LNB_UNROLL
                for (int i = 0; i < 4; ++i) {
                    const float entry = a[i * layer.stride];
                    LNB_UNROLL
                    for (int row = 0; row < kRows; ++row) y[row][slot] += of_p[row].value[i] * entry;
                }
            }
        }
        __syncwarp();  // and may be written again
    }

    __device__ __forceinline__ float dot(const float (&x)[kSlots], const float (&y)[kSlots]) const {
        float sum = 0;
        LNB_UNROLL
        for (int slot = 0; slot < kSlots; ++slot) sum += x[slot] * y[slot];
        return warp_sum(sum);
    }

    // z <- P r
    __device__ __forceinline__ void precondition(const float (&r)[kSlots], float (&z)[kSlots]) const {
        const bool bias = layer.columns > layer.d;
        float b = 0;  // the row's bias entry
        if (layer.arrow && bias) {
            LNB_UNROLL
            for (int slot = 0; slot < kSlots; ++slot) b += slot * kWarp + lane == layer.d ? r[slot] : 0;
            b = warp_sum(b);
        }
        float mu_z = 0;
        LNB_UNROLL
        for (int slot = 0; slot < kSlots; ++slot) {
            const int column = slot * kWarp + lane;
            z[slot] = r[slot];
            if (!layer.arrow || column >= layer.d) continue;
            const float mu = layer.mu[column], var = layer.var[column];
            z[slot] = bias ? (r[slot] - mu * b) / var : r[slot] / (var + mu * mu);
            mu_z += mu * z[slot];
        }
        if (!layer.arrow || !bias) return;
        mu_z = warp_sum(mu_z);
        LNB_UNROLL
        for (int slot = 0; slot < kSlots; ++slot) {
            if (slot * kWarp + lane == layer.d) z[slot] = b - mu_z;
        }
    }
};

__global__ void __launch_bounds__(kWarps* kWarp)
    pcg_rows_kernel(LNB_PARAMETER(RowTable) table, int iterations, float ridge, float stop) {
    int equation_index = 0;
    while (static_cast<unsigned>(table.first_block[equation_index + 1]) <= blockIdx.x) ++equation_index;
    const RowEquation& equation = table.equation[equation_index];
    const int columns = equation.columns, d = equation.d, stride = rounded(columns);

    LNB_DYNAMIC_SHARED(float, shared);
    float* a = shared;
    float* mu = a + stride * stride;
    float* var = mu + stride;
    const float count = read(equation.s + (d + 1) * (d + 1) - 1);
    const float n = count == 0 ? 1 : count;
    for (int i = threadIdx.x; i < stride * stride; i += kWarps * kWarp) {
        const int row = i / stride, column = i % stride;
        float entry = 0;
        if (row < columns && column < columns) {
            entry = read(equation.s + row * (d + 1) + column) / n + (row == column && row < d ? ridge : 0);
        }
        a[i] = entry;
    }
    const bool arrow = equation.mu != nullptr;
    for (int i = threadIdx.x; arrow && i < d; i += kWarps * kWarp) {
        mu[i] = read(equation.mu + i);
        var[i] = read(equation.var + i);
    }
    __syncthreads();

    const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
    const int block_row = static_cast<int>(blockIdx.x) - table.first_block[equation_index];
    const int first_row = (block_row * kWarps + warp) * kRows;
    const Layer layer{a, mu, var, stride, columns, d, arrow};
    float* p = var + stride + warp * kRows * stride;
    const WarpRows rows{layer, p, lane};

    const auto element = [&](int row, int slot) {
        return static_cast<int64_t>(first_row + row) * columns + slot * kWarp + lane;
    };
    const auto put_p = [&](int row, int slot, float value) {
        if (slot * kWarp + lane < stride) p[row * stride + slot * kWarp + lane] = value;
    };

    Rows h, r, z;  // z is A p between the products and the next z
    float gg[kRows], rr[kRows], rz[kRows];
    LNB_UNROLL
    for (int row = 0; row < kRows; ++row) {
        LNB_UNROLL
        for (int slot = 0; slot < kSlots; ++slot) {
            const bool there = first_row + row < equation.m && rows.valid(slot);
            r[row][slot] = there ? read(equation.g + element(row, slot)) : 0;
            h[row][slot] = there && equation.h0 != nullptr ? read(equation.h0 + element(row, slot)) : 0;
            put_p(row, slot, h[row][slot]);
        }
        gg[row] = rows.dot(r[row], r[row]);
    }
    if (equation.h0 != nullptr) {
        rows.product(z);
        LNB_UNROLL
        for (int row = 0; row < kRows; ++row) {
            LNB_UNROLL
            for (int slot = 0; slot < kSlots; ++slot) r[row][slot] -= z[row][slot];
        }
    }
    unsigned moved = 0;  // bit i: row i made the last step
    for (int step = 0;; ++step) {
        LNB_UNROLL
        for (int row = 0; row < kRows; ++row) {
            const float old_rz = rz[row];
            rr[row] = rows.dot(r[row], r[row]);
            if (lane == 0 && first_row + row < equation.m) {
                write(equation.norms + step * equation.norm_stride + first_row + row, sqrtf(rr[row]));
            }
            if (step == iterations) continue;
            rows.precondition(r[row], z[row]);
            rz[row] = rows.dot(r[row], z[row]);
            const float beta = moved >> row & 1 ? rz[row] / old_rz : 0;
            LNB_UNROLL
            for (int slot = 0; slot < kSlots; ++slot) {
                const int column = slot * kWarp + lane;
                const float old = step > 0 && rows.valid(slot) ? p[row * stride + column] : 0;
                put_p(row, slot, z[row][slot] + beta * old);
            }
        }
        if (step == iterations) break;
        rows.product(z);
        moved = 0;
        LNB_UNROLL
        for (int row = 0; row < kRows; ++row) {
            float of_p[kSlots];
            LNB_UNROLL
            for (int slot = 0; slot < kSlots; ++slot) {
                of_p[slot] = rows.valid(slot) ? p[row * stride + slot * kWarp + lane] : 0;
            }
            const float pap = rows.dot(of_p, z[row]);
            const bool active = sqrtf(rr[row]) > stop * sqrtf(gg[row]) && pap > 0;
            const float alpha = active ? rz[row] / pap : 0;
            moved |= static_cast<unsigned>(active) << row;
            LNB_UNROLL
            for (int slot = 0; slot < kSlots; ++slot) {
                h[row][slot] += alpha * of_p[slot];
                r[row][slot] -= alpha * z[row][slot];
            }
        }
    }
    LNB_UNROLL
    for (int row = 0; row < kRows; ++row) {
        LNB_UNROLL
        for (int slot = 0; slot < kSlots; ++slot) {
            if (first_row + row < equation.m && rows.valid(slot)) write(equation.h + element(row, slot), h[row][slot]);
        }
    }
}

}  // namespace

void pcg_rows(const RowEquation* equations, int64_t count, int iterations, float ridge, float stop, void* stream) {
    RowTable table;
    table.count = 0;
    table.first_block[0] = 0;
    int columns = 0;
    const auto flush = [&] {
        const int64_t blocks = table.first_block[table.count];
        launch("pcg_rows", pcg_rows_kernel, {blocks, kWarps * kWarp, shared_floats(columns) * sizeof(float)}, stream,
               table, iterations, ridge, stop);
        table.count = columns = 0;
    };
    for (const RowEquation* equation = equations; equation != equations + count; ++equation) {
        if (equation->columns > kRowColumns) throw std::invalid_argument("pcg_rows: g has too many columns");
        if (table.count == kRowEquations) flush();
        table.equation[table.count] = *equation;
        const int32_t blocks = (equation->m + kWarps * kRows - 1) / (kWarps * kRows);
        table.first_block[table.count + 1] = table.first_block[table.count] + blocks;
        ++table.count;
        columns = std::max<int>(columns, equation->columns);
    }
    flush();
}

}  // namespace lnb::cuda
