// Second moments of the neurons' whitened gradients: for a block of neurons the sum over blocks of inputs of G C^-1 G',
// with G = g~ - b mu', and b b'. A thread block takes up to kInputBlocks blocks of inputs: G lies in shared memory,
// C^-1 passes by in chunks of columns, and the sum is in registers.
//
// Whatever the sizes of g~ and C^-1, no product leaves the range: G and C^-1 of every tile are scaled by powers of two,
// and the sum has a power of two of its own, which grows with that of its largest term.
#include <algorithm>

#include "gradient_tile.cuh"
#include "launch.h"
#include "layer_table.h"
#include "newton_schulz.cuh"
#include "reduce.cuh"

namespace lnb::cuda {
namespace {

using OutputTable = LayerTable<OutputLayer, kOutputLayers>;

constexpr int kChunkTiles = 3;
constexpr int kChunk = kChunkTiles * kTile;  // columns of C^-1
constexpr int kChunkPitch = kChunk + 4;
constexpr int kNothing = INT32_MIN / 4;  // the exponent of zero

// From row to row: an odd number of 16 bytes, so that eight rows' accesses of 16 bytes are in different banks.
__host__ __device__ constexpr int pitch_of(int side) {
    return tiles_of(side) * kTile + 4;
}

__host__ __device__ constexpr size_t shared_floats(int rows, int columns) {
    const int padded = compiled_tiles(rows) * kTile;
    return static_cast<size_t>(padded + kChunk) * pitch_of(columns) + static_cast<size_t>(padded) * kChunkPitch +
           padded + pitch_of(columns);
}

struct alignas(16) Four {
    float value[4];
};

__device__ __forceinline__ Four four(const float* from) {
    return *reinterpret_cast<const Four*>(from);
}

template <int kCount>
__device__ __forceinline__ void block_largest(uint32_t (&value)[kCount], uint32_t* scratch) {
    const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
    constexpr int kWarps = kTileThreads / kWarp;
    __syncthreads();  // `scratch` may still be read
    LNB_UNROLL
    for (int i = 0; i < kCount; ++i) {
        LNB_UNROLL
        for (int distance = kWarp / 2; distance > 0; distance /= 2) {
            const uint32_t other = __shfl_xor_sync(kAllLanes, value[i], distance);
            if (other > value[i]) value[i] = other;
        }
        if (lane == 0) scratch[i * kWarps + warp] = value[i];
    }
    __syncthreads();
    LNB_UNROLL
    for (int i = 0; i < kCount; ++i) {
        for (int w = 0; w < kWarps; ++w) {
            if (scratch[i * kWarps + w] > value[i]) value[i] = scratch[i * kWarps + w];
        }
    }
}

__device__ __forceinline__ int exponent_or_nothing(uint32_t bits) {
    return bits == 0 ? kNothing : exponent_of(bits);
}

// One part of the moment of one block of neurons.
struct Part {
    const OutputLayer& layer;
    int group, block;  // of neurons
    int first, last;   // blocks of inputs
    float* shared;
    uint32_t* largest;  // [3 * warps]
    double* traces;     // [warps]
    float* partial;
    double* scales;

    template <int kTiles>
    __device__ __forceinline__ void run() const {
        const int side = layer.side, width = layer.input_side, pitch = pitch_of(width);
        const int padded = tiles_of(width) * kTile;
        float* const g = shared;                                    // [kTiles * kTile, pitch]
        float* const inverse = g + kTiles * kTile * pitch;          // [kChunk, pitch]
        float* const solved = inverse + kChunk * pitch;             // [kTiles * kTile, kChunkPitch]
        float* const bias = solved + kTiles * kTile * kChunkPitch;  // [kTiles * kTile]
        float* const mean = bias + kTiles * kTile;                  // [padded]
        const int y = static_cast<int>(threadIdx.x) / kTile, x = static_cast<int>(threadIdx.x) % kTile;
        const int64_t first_row = static_cast<int64_t>(group) * layer.rows + static_cast<int64_t>(block) * side;

        Lower<kTiles> sum;
        for_places<kTiles>([&](int tile, int, int) { sum[tile] = 0; });
        int exponent = kNothing;  // the moment is sum * 2^exponent
        // Makes room for terms of that exponent; returns what is left to scale them by.
        const auto admit = [&](int of_term) {
            if (of_term > exponent) {
                const float shrink = exponent == kNothing ? 0 : ldexpf(1, exponent - of_term);
                for_places<kTiles>([&](int tile, int, int) { sum[tile] *= shrink; });
                exponent = of_term;
            }
            return of_term - exponent;
        };

        int bias_exponent = kNothing;
        if (layer.bias.g != nullptr) {
            uint32_t size[1] = {0};
            with_gradient(layer.bias, layer.momentum, layer.take, [&](const auto& averaged) {
                for (int i = threadIdx.x; i < kTiles * kTile; i += kTileThreads) {
                    bias[i] = i < side ? averaged.at(first_row + i) : 0;
                    size[0] = size_bits(bias[i]);
                }
            });
            block_largest(size, largest);
            bias_exponent = exponent_or_nothing(size[0]);
        }
        if (bias_exponent != kNothing && first == 0) {
            admit(2 * bias_exponent);
            for_places<kTiles>([&](int tile, int row, int column) {
                sum[tile] = ldexpf(bias[row], -bias_exponent) * ldexpf(bias[column], -bias_exponent);
            });
        }

        for (int input = first; input < last; ++input) {
            __syncthreads();  // the tile before is done with
            const int64_t column = static_cast<int64_t>(input) * width;
            const float* of_inverse = layer.inverse + (static_cast<int64_t>(group) * layer.inputs + column) *
                                                          width;  // one block after another
            uint32_t size[3] = {0, 0, 0};
            const Tile at{first_row * layer.inputs + column, layer.inputs, side, width, kTiles * kTile, padded, pitch};
            with_gradient(layer.weight, layer.momentum, layer.take,
                          [&](const auto& averaged) { size[0] = load_tile(averaged, at, g); });
            for (int i = threadIdx.x; i < padded; i += kTileThreads) {
                const bool there = i < width;
                mean[i] = there && layer.mean != nullptr
                              ? read(layer.mean + static_cast<int64_t>(group) * layer.inputs + column + i)
                              : 0;
                size[1] = size_bits(mean[i]);
                size[2] = there ? size_bits(read(of_inverse + static_cast<int64_t>(i) * (width + 1))) : 0;
            }
            block_largest(size, largest);
            int of_g = exponent_or_nothing(size[0]);
            if (bias_exponent != kNothing && size[1] != 0 && bias_exponent + exponent_of(size[1]) > of_g) {
                of_g = bias_exponent + exponent_of(size[1]);
            }
            if (of_g == kNothing || size[2] == 0) continue;
            const int of_c = exponent_of(size[2]);
            const int left = admit(2 * of_g + of_c);
            for (int i = threadIdx.x; i < kTiles * kTile * padded; i += kTileThreads) {
                const int row = i / padded, k = i % padded;
                float& entry = g[row * pitch + k];
                entry = ldexpf(entry, -of_g);
                if (bias_exponent != kNothing) entry -= ldexpf(bias[row], -of_g) * mean[k];
            }
            for (int begin = 0; begin < padded; begin += kChunk) {
                const int columns = padded - begin < kChunk ? padded - begin : kChunk;
                __syncthreads();  // G is written, and the chunk before is done with
                load_inverse(of_inverse, begin, columns, padded, pitch, of_c, inverse);
                __syncthreads();
                solve<kTiles>(g, inverse, width, pitch, columns, left, solved, y, x);
                __syncthreads();
                add<kTiles>(solved, g + begin, pitch, columns, sum, y, x);
            }
        }

        for_places<kTiles>([&](int tile, int, int) { write(partial + tile * kTileThreads + threadIdx.x, sum[tile]); });
        double trace[1] = {0};
        for_places<kTiles>([&](int tile, int row, int column) {
            if (row == column) trace[0] += sum[tile];
        });
        block_sums(trace, traces);
        if (threadIdx.x == 0) {
            const double scale = exponent == kNothing ? 0 : ldexp(1.0, exponent);
            write(scales, trace[0] * scale);
            write(scales + 1, scale);
        }
    }

    // Columns begin, begin + 1, ... of C^-1, which are rows too, times 2^-exponent.
    __device__ __forceinline__ void load_inverse(const float* from, int begin, int columns, int padded, int pitch,
                                                 int exponent, float* to) const {
        const int width = layer.input_side;
        for (int i = threadIdx.x; i < columns * (padded / 4); i += kTileThreads) {
            const int row = i / (padded / 4), k = i % (padded / 4) * 4;
            const float* at = from + static_cast<int64_t>(begin + row) * width + k;
            Pack<float, 4> pack{};
            if (begin + row < width) {
                if (k + 4 <= width && aligned<4>(at)) {
                    pack = unpack(read_words<4>(at));
                } else {
                    LNB_UNROLL
                    for (int e = 0; e < 4; ++e) pack.value[e] = k + e < width ? read(at + e) : 0;
                }
            }
            LNB_UNROLL
            for (int e = 0; e < 4; ++e) to[row * pitch + k + e] = ldexpf(pack.value[e], -exponent);
        }
    }

    // solved <- G C^-1 2^left, for the chunk's columns.
    template <int kTiles>
    __device__ __forceinline__ static void solve(const float* g, const float* inverse, int width, int pitch,
                                                 int columns, int left, float* solved, int y, int x) {
        float h[kTiles][kChunkTiles] = {};
        for (int k = 0; k < width; k += 4) {
            Four of_c[kChunkTiles];
            LNB_UNROLL
            for (int j = 0; j < kChunkTiles; ++j) {
                // Rows beyond the chunk's hold what an earlier one left, or nothing: they are not read.
                of_c[j] = four(inverse + (j * kTile < columns ? j * kTile + x : x) * pitch + k);
            }
            LNB_UNROLL
            for (int i = 0; i < kTiles; ++i) {
                const Four of_g = four(g + (i * kTile + y) * pitch + k);
                LNB_UNROLL
                for (int j = 0; j < kChunkTiles; ++j) {
                    LNB_UNROLL
                    for (int e = 0; e < 4; ++e) h[i][j] = fmaf(of_g.value[e], of_c[j].value[e], h[i][j]);
                }
            }
        }
        LNB_UNROLL
        for (int i = 0; i < kTiles; ++i) {
            LNB_UNROLL
            for (int j = 0; j < kChunkTiles; ++j) {
                if (j * kTile < columns) solved[(i * kTile + y) * kChunkPitch + j * kTile + x] = ldexpf(h[i][j], left);
            }
        }
    }

    // sum <- sum + solved G', for the chunk's columns.
    template <int kTiles>
    __device__ __forceinline__ static void add(const float* solved, const float* g, int pitch, int columns,
                                               Lower<kTiles>& sum, int y, int x) {
        for (int k = 0; k < columns; k += 4) {
            Four of_g[kTiles];
            LNB_UNROLL
            for (int j = 0; j < kTiles; ++j) of_g[j] = four(g + (j * kTile + x) * pitch + k);
            LNB_UNROLL
            for (int i = 0; i < kTiles; ++i) {
                const Four of_h = four(solved + (i * kTile + y) * kChunkPitch + k);
                LNB_UNROLL
                for (int j = 0; j <= i; ++j) {
                    float& entry = sum[tile_number(i, j)];
                    LNB_UNROLL
                    for (int e = 0; e < 4; ++e) entry = fmaf(of_h.value[e], of_g[j].value[e], entry);
                }
            }
        }
    }
};

__global__ void __launch_bounds__(kTileThreads, 1)
    output_moments_kernel(LNB_PARAMETER(OutputTable) table, const float* facts) {
    const int index = table.find(blockIdx.x);
    const OutputLayer& layer = table.layer[index];
    if (read(facts + layer.layer * kFacts) == 0) return;
    LNB_DYNAMIC_SHARED(float, shared);
    LNB_SHARED(uint32_t, largest, 3 * (kTileThreads / kWarp));
    LNB_SHARED(double, traces, kTileThreads / kWarp);
    const int own = static_cast<int>(blockIdx.x) - table.first_block[index];
    const int of_layer = layer.parts, outputs = layer.rows / layer.side;
    const int first = own % of_layer * kInputBlocks, all = layer.inputs / layer.input_side;
    const int last = first + kInputBlocks < all ? first + kInputBlocks : all;
    const int number = own / of_layer;
    const int64_t floats = static_cast<int64_t>(lower_tiles(compiled_tiles(layer.side))) * kTileThreads;
    with_tiles(layer.side, Part{layer, number / outputs, number % outputs, first, last, shared, largest, traces,
                                layer.partials + own * floats, layer.scales + 2 * static_cast<int64_t>(own)});
}

}  // namespace

int largest_side(size_t shared_bytes) {
    constexpr size_t kFixed = 1024;  // what the kernels and the driver have beside it
    for (const int tiles : {9, 8, 6, 4, 2}) {
        const int side = tiles * kTile;
        const size_t floats = std::max(shared_floats(side, side), newton_schulz_floats(side));
        if (floats * sizeof(float) + kFixed <= shared_bytes) return side;
    }
    return 0;
}

int64_t partial_count(const OutputLayer& layer) {
    return static_cast<int64_t>(layer.parts) * layer.groups * (layer.rows / layer.side);
}

int64_t partial_floats(const OutputLayer& layer) {
    return partial_count(layer) * lower_tiles(compiled_tiles(layer.side)) * kTileThreads;
}

void output_moments(const OutputLayer* layers, int64_t count, const float* facts, void* stream) {
    for_each_layer_table<kOutputLayers>(
        layers, count, partial_count, [&](const OutputTable& table, int64_t blocks, int64_t) {
            size_t floats = 0;
            for (int i = 0; i < table.count; ++i) {
                floats = std::max(floats, shared_floats(table.layer[i].side, table.layer[i].input_side));
            }
            launch("output_moments", output_moments_kernel, {blocks, kTileThreads, floats * sizeof(float)}, stream,
                   table, facts);
        });
}

}  // namespace lnb::cuda
