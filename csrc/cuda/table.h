// Lists of tensors as kernel parameters: a launch carries a table of up to kTensors tensors, and each of its blocks
// works on one piece of one tensor. So the number of launches is that of the tables, whatever the number of tensors in
// each, nothing is copied to the device beforehand, and a captured CUDA graph holds all that it needs.
#pragma once

#include <algorithm>
#include <cstdint>

#include "layer_table.h"
#include "multi_tensor.h"

namespace lnb::cuda {

// Consecutive elements of one tensor, the work of one block.
struct Piece {
    int tensor;      // its place in the table
    int64_t number;  // of the piece in the tensor
    int64_t begin, size;
};

__host__ __device__ inline Piece find_piece(const int32_t* first_block, const int64_t* size, int count,
                                            unsigned block) {
    const int low = owner_of(first_block, count, block);
    const int64_t number = static_cast<int64_t>(block) - first_block[low];
    const int64_t begin = number * kPieceSize;
    const int64_t rest = size[low] - begin;
    return {low, number, begin, rest < kPieceSize ? rest : kPieceSize};
}

struct Table {
    void* x[kTensors];
    const void* y[kTensors];
    void* copy[kTensors];
    int64_t slot[kTensors];
    int64_t size[kTensors];
    int32_t first_block[kTensors + 1];  // and the number of blocks, at [count]
    int32_t count;

    __host__ __device__ Piece piece(unsigned block) const { return find_piece(first_block, size, count, block); }
};
static_assert(sizeof(Table) <= 32764, "CUDA's limit for kernel parameters");

// Calls start(table, blocks) for tables that together hold all the pairs that have elements.
template <typename F>
void for_each_table(const Pair* pairs, int64_t count, F start) {
    Table table;
    table.count = 0;
    int64_t blocks = 0;
    const auto flush = [&] {
        if (blocks > 0) start(static_cast<const Table&>(table), blocks);
        table.count = 0;
        blocks = 0;
    };
    for (const Pair* pair = pairs; pair != pairs + count; ++pair) {
        const int64_t own = pieces(pair->size);
        if (own == 0) continue;
        if (table.count == kTensors || blocks + own > INT32_MAX) flush();
        const int t = table.count++;
        table.x[t] = pair->x;
        table.y[t] = pair->y;
        table.copy[t] = pair->copy;
        table.slot[t] = pair->slot;
        table.size[t] = pair->size;
        table.first_block[t] = static_cast<int32_t>(blocks);
        blocks += own;
        table.first_block[t + 1] = static_cast<int32_t>(blocks);
    }
    flush();
}

}  // namespace lnb::cuda
