// Products of packed features: the kernels below second_moment and conv_moment, one table per instruction set.
//
// Features are packed in blocks of 16 columns. A block is a sequence of steps of 64 bytes: in float form a step is one
// row of the block; in pair form (bfloat16) it is two rows, interleaved column by column, as the dot-product
// instructions of AVX512-BF16 take them. Both operands of a product are packed in the same way, so one copy of the
// features serves as both.
#pragma once

#include <cstdint>

#include "../types.h"

namespace lnb {

constexpr int64_t kBlock = 16;      // columns
constexpr int64_t kStepBytes = 64;  // of a block
constexpr int kMaxBlocks = 3;       // of the right operand in one product

enum class Form : int {
    kFloat,    // float32, one row a step
    kRounded,  // the same, rounded to bfloat16: where there is no instruction for pairs
    kPairs,    // bfloat16, two rows a step
};
constexpr int kForms = 3;

// Which steps a product sums over: `count` consecutive ones, `segments` times, `planes` times; and how many steps lie
// from one segment, or plane, to the next. For an image: pixels, rows and samples.
struct Steps {
    int64_t planes, plane_stride, segments, segment_stride, count;
};

struct Tiles {
    // c[16][16 * blocks] += a' b over the steps. `b_stride`: bytes from one block of b to the next; `c_stride`: floats
    // from one row of c to the next. Sums run in float32, in the order of the steps.
    using Multiply = void (*)(const char* a, const char* b, int64_t b_stride, int blocks, Steps steps, float* c,
                              int64_t c_stride);
    Multiply multiply[kForms];  // null: no such instruction

    // Packs `steps` steps of one block. Element (row, column) of step s is at x + row_stride * row + column_stride *
    // column (bytes); rows are the steps, or in pair form those of `x` and of `y` at the same place. Columns from
    // `columns` on, and y if it is null, are zero. Steps are 64 bytes apart. Adds the columns' sums to sums[16].
    using Pack = void (*)(const char* x, const char* y, int64_t row_stride, int64_t column_stride, int64_t columns,
                          int64_t steps, char* packed, float* sums);
    Pack pack[kForms][kTypes];  // null for float64

    // Adds the columns' sums over the steps to sums[16]: in float32 along a segment, in float64 over segments.
    void (*sum[kForms])(const char* packed, Steps steps, double* sums);
};

// The form in which features of this type are multiplied, on the instruction set in use; with `round`, they count as
// rounded to bfloat16.
Form best_form(Type type, bool round);

}  // namespace lnb
