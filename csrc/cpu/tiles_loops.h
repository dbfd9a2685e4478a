// The kernels of tiles.h, for the `Vectors` of tiles_vectors.h. Included once by isa_loops.cpp, which is compiled for
// every instruction set; all names are local to the file, and no template of the standard library is used, so that the
// linker cannot merge code of different instruction sets.

#include "float16.h"
#include "tiles.h"

namespace lnb {
namespace {
namespace of_tiles {

// Where the i-th segment of all planes begins, in steps.
int64_t segment_begin(Steps steps, int64_t i) {
    return i / steps.segments * steps.plane_stride + i % steps.segments * steps.segment_stride;
}

// kRows rows of c against kBlocks blocks, all sums in registers. A `Vectors` has a vector type `Sum` of kLanes float
// sums and an operand type `Step`; kLanes * kRegisters is the block.
template <typename V, int kRows, int kBlocks>
void multiply_rows(const char* a, const char* b, int64_t b_stride, Steps steps, float* c, int64_t c_stride) {
    constexpr int kRegisters = static_cast<int>(kBlock) / V::kLanes;
    constexpr int kColumns = kBlocks * kRegisters;
    typename V::Sum sums[kRows][kColumns];
#pragma GCC unroll 32
    for (int row = 0; row < kRows; ++row) {
#pragma GCC unroll 32
        for (int column = 0; column < kColumns; ++column) sums[row][column] = V::zero();
    }
    for (int64_t i = 0; i < steps.planes * steps.segments; ++i) {
        const int64_t offset = segment_begin(steps, i) * kStepBytes;
        const char *left = a + offset, *right = b + offset;
        for (int64_t step = 0; step < steps.count; ++step, left += kStepBytes, right += kStepBytes) {
            typename V::Step columns[kColumns];
#pragma GCC unroll 32
            for (int column = 0; column < kColumns; ++column) {
                columns[column] = V::load(right + column / kRegisters * b_stride +
                                          column % kRegisters * static_cast<int64_t>(V::kLanes * sizeof(float)));
            }
#pragma GCC unroll 32
            for (int row = 0; row < kRows; ++row) {
                const typename V::Step entry = V::broadcast(left + row * static_cast<int64_t>(sizeof(float)));
#pragma GCC unroll 32
                for (int column = 0; column < kColumns; ++column) V::add(sums[row][column], entry, columns[column]);
            }
        }
    }
#pragma GCC unroll 32
    for (int row = 0; row < kRows; ++row) {
#pragma GCC unroll 32
        for (int column = 0; column < kColumns; ++column) {
            V::accumulate(c + row * c_stride + column * V::kLanes, sums[row][column]);
        }
    }
}

template <typename V, int kBlocks>
void multiply_block(const char* a, const char* b, int64_t b_stride, Steps steps, float* c, int64_t c_stride) {
    for (int row = 0; row < kBlock; row += V::kRows) {
        const char* rows = a + row * static_cast<int64_t>(sizeof(float));
        multiply_rows<V, V::kRows, kBlocks>(rows, b, b_stride, steps, c + row * c_stride, c_stride);
    }
}

template <typename V>
void multiply(const char* a, const char* b, int64_t b_stride, int blocks, Steps steps, float* c, int64_t c_stride) {
    if constexpr (V::kBlocks == 3) {
        if (blocks == 3) return multiply_block<V, 3>(a, b, b_stride, steps, c, c_stride);
        if (blocks == 2) return multiply_block<V, 2>(a, b, b_stride, steps, c, c_stride);
        return multiply_block<V, 1>(a, b, b_stride, steps, c, c_stride);
    } else {
        for (int block = 0; block < blocks; ++block) {
            multiply_block<V, 1>(a, b + block * b_stride, b_stride, steps, c + block * kBlock, c_stride);
        }
    }
}

float rounded(float x) {
    BFloat16 y;
    narrow(x, y);
    return widen(y);
}

template <typename T>
const T* entry(const char* x, int64_t offset) {
    return reinterpret_cast<const T*>(x + offset);
}

// One step of each form: 16 columns that lie `stride` bytes apart (consecutive where stride is the type's width).
template <typename T, Form kForm>
struct StepOf {
    static void pack(const char* x, const char* y, int64_t stride, int64_t columns, char* packed, float* sums) {
        float first[kBlock] = {}, second[kBlock] = {};
        gather(x, stride, columns, first);
        if constexpr (kForm == Form::kPairs) {
            if (y != nullptr) gather(y, stride, columns, second);
            auto* out = reinterpret_cast<BFloat16*>(packed);
#pragma omp simd
            for (int64_t i = 0; i < kBlock; ++i) {
                narrow(first[i], out[2 * i]);
                narrow(second[i], out[2 * i + 1]);
                sums[i] += widen(out[2 * i]) + widen(out[2 * i + 1]);
            }
        } else {
            auto* out = reinterpret_cast<float*>(packed);
#pragma omp simd
            for (int64_t i = 0; i < kBlock; ++i) {
                out[i] = kForm == Form::kRounded ? rounded(first[i]) : first[i];
                sums[i] += out[i];
            }
        }
    }

    static void gather(const char* x, int64_t stride, int64_t columns, float* values) {
        if (stride == sizeof(T) && columns >= kBlock) {
#pragma omp simd
            for (int64_t i = 0; i < kBlock; ++i) values[i] = widen(*entry<T>(x, i * static_cast<int64_t>(sizeof(T))));
        } else {
            for (int64_t i = 0; i < kBlock && i < columns; ++i) values[i] = widen(*entry<T>(x, i * stride));
        }
    }
};

// Rows whose columns are far apart but whose steps are consecutive: an image in NCHW order. Tiles of 16 x 16 are read
// along the steps and turned around in cache.
template <typename T, Form kForm>
void pack_turned(const char* x, const char* y, int64_t column_stride, int64_t columns, int64_t steps, char* packed,
                 float* sums) {
    float tile[2][kBlock][kBlock];
    for (int64_t begin = 0; begin < steps; begin += kBlock) {
        const int64_t count = steps - begin < kBlock ? steps - begin : kBlock;
        for (int side = 0; side < (kForm == Form::kPairs && y != nullptr ? 2 : 1); ++side) {
            const char* image = (side == 0 ? x : y) + begin * static_cast<int64_t>(sizeof(T));
            for (int64_t column = 0; column < kBlock; ++column) {
                float* line = tile[side][column];
                if (column >= columns) {
                    for (int64_t i = 0; i < kBlock; ++i) line[i] = 0.0f;
                    continue;
                }
                const T* values = entry<T>(image, column * column_stride);
                if (count == kBlock) {
#pragma omp simd
                    for (int64_t i = 0; i < kBlock; ++i) line[i] = widen(values[i]);
                } else {
                    for (int64_t i = 0; i < count; ++i) line[i] = widen(values[i]);
                }
            }
        }
        const auto stride = static_cast<int64_t>(kBlock * sizeof(float));
        for (int64_t i = 0; i < count; ++i) {
            const char* second = y == nullptr ? nullptr : reinterpret_cast<const char*>(&tile[1][0][i]);
            StepOf<float, kForm>::pack(reinterpret_cast<const char*>(&tile[0][0][i]), second, stride, kBlock,
                                       packed + (begin + i) * kStepBytes, sums);
        }
    }
}

template <typename T, Form kForm>
void pack(const char* x, const char* y, int64_t row_stride, int64_t column_stride, int64_t columns, int64_t steps,
          char* packed, float* sums) {
    if (row_stride == sizeof(T) && column_stride != sizeof(T)) {
        pack_turned<T, kForm>(x, y, column_stride, columns, steps, packed, sums);
        return;
    }
    for (int64_t step = 0; step < steps; ++step) {
        const char* second = y == nullptr ? nullptr : y + step * row_stride;
        StepOf<T, kForm>::pack(x + step * row_stride, second, column_stride, columns, packed + step * kStepBytes, sums);
    }
}

template <bool kPairs>
void sum(const char* packed, Steps steps, double* sums) {
    for (int64_t i = 0; i < steps.planes * steps.segments; ++i) {
        const char* step = packed + segment_begin(steps, i) * kStepBytes;
        float segment[kBlock] = {};
        for (const char* end = step + steps.count * kStepBytes; step < end; step += kStepBytes) {
#pragma omp simd
            for (int64_t column = 0; column < kBlock; ++column) {
                if constexpr (kPairs) {
                    const auto* entries = entry<BFloat16>(step, 0);
                    segment[column] += widen(entries[2 * column]) + widen(entries[2 * column + 1]);
                } else {
                    segment[column] += entry<float>(step, 0)[column];
                }
            }
        }
        for (int64_t column = 0; column < kBlock; ++column) sums[column] += static_cast<double>(segment[column]);
    }
}

#define LNB_PACK(form) {nullptr, &pack<float, form>, &pack<BFloat16, form>, &pack<Half, form>}

constexpr Tiles tiles_of(Tiles::Multiply floats, Tiles::Multiply pairs) {
    return {{floats, floats, pairs},
            {LNB_PACK(Form::kFloat), LNB_PACK(Form::kRounded), LNB_PACK(Form::kPairs)},
            {&sum<false>, &sum<false>, &sum<true>}};
}

#undef LNB_PACK

}  // namespace of_tiles
}  // namespace
}  // namespace lnb
