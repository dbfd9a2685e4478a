// Layers as kernel parameters: a launch carries a table of them, and each of its blocks serves one.
#pragma once

#include <cstdint>

#include "portable.h"

namespace lnb::cuda {

// Among items with consecutive blocks, the one whose blocks include `block`: the last that starts at or before it.
__host__ __device__ inline int owner_of(const int32_t* first_block, int count, unsigned block) {
    int low = 0, high = count;
    while (high - low > 1) {
        const int middle = (low + high) / 2;
        if (static_cast<unsigned>(first_block[middle]) <= block) {
            low = middle;
        } else {
            high = middle;
        }
    }
    return low;
}

template <typename Layer, int kLayers>
struct LayerTable {
    Layer layer[kLayers];
    int32_t first_block[kLayers + 1];  // and the number of blocks, at [count]
    int32_t count;

    __host__ __device__ int find(unsigned block) const { return owner_of(first_block, count, block); }
};

// Calls start(table, blocks, first_layer) for tables that together hold all layers; `blocks_of` counts a layer's
// blocks.
template <int kLayers, typename Layer, typename Count, typename Start>
void for_each_layer_table(const Layer* layers, int64_t count, Count blocks_of, Start start) {
    LayerTable<Layer, kLayers> table;
    static_assert(sizeof table <= 32700, "CUDA's limit for kernel parameters");
    for (int64_t first = 0; first < count;) {
        int64_t blocks = 0;
        table.count = 0;
        while (first + table.count < count && table.count < kLayers) {
            const Layer& layer = layers[first + table.count];
            const int64_t own = blocks_of(layer);
            if (table.count > 0 && blocks + own > INT32_MAX) break;
            table.layer[table.count] = layer;
            table.first_block[table.count] = static_cast<int32_t>(blocks);
            blocks += own;
            table.first_block[++table.count] = static_cast<int32_t>(blocks);
        }
        start(static_cast<const LayerTable<Layer, kLayers>&>(table), blocks, first);
        first += table.count;
    }
}

}  // namespace lnb::cuda
