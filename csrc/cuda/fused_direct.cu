// Directions of all layers in one launch, a block of threads per tile: one block of rows times one block of columns.
#include <algorithm>

#include "averaging.cuh"
#include "fused_step.h"
#include "launch.h"
#include "layer_table.h"
#include "tile_products.cuh"

namespace lnb::cuda {
namespace {

constexpr int kRowLanes = 8;    // that share a row of the tile as it comes in: 128 bytes of it at once
constexpr int kBandLanes = 16;  // that share a row of H
constexpr int kInFlight = 4;    // packs of each operand that a thread has in flight: all of a row of kLargestBlock

using DirectTable = LayerTable<DirectLayer, kDirectLayers>;
static_assert(sizeof(DirectTable) <= 32000, "CUDA's limit for kernel parameters, with DirectNumbers");

// What is in dynamic shared memory, by the sides of the tile.
struct TileMemory {
    int ahead_pitch, strip_pitch, right_pitch;  // in elements
    int ahead, strip, left, right, end;         // offsets in bytes, each a multiple of 32 as fragments need it

    template <typename P>
    static __host__ __device__ TileMemory of(int side, int size) {
        const int columns = round_up(size, kUnit);
        TileMemory memory{};
        memory.ahead_pitch = round_up(size, kPack);
        memory.strip_pitch = columns;
        memory.right_pitch = columns + 8;
        memory.strip = round_up(side * memory.ahead_pitch * 4, 32);
        memory.left = memory.strip + kStrip * memory.strip_pitch * 4;
        memory.right = memory.left + kStrip * Chunks<P>::kLeftPitch * static_cast<int>(sizeof(typename P::Element));
        memory.end = memory.right + kChunk * memory.right_pitch * 4;  // holds rows of H, in float32, too
        return memory;
    }
};

// The sum over `kLanes` neighbouring lanes, in each of them.
template <int kLanes, typename T>
__device__ __forceinline__ T lanes_sum(T value) {
    LNB_UNROLL
    for (int distance = kLanes / 2; distance > 0; distance /= 2) value += __shfl_xor_sync(kAllLanes, value, distance);
    return value;
}

template <int N, typename T>
__device__ __forceinline__ Pack<T, N> read_pack(const T* address) {
    if constexpr (sizeof(T) * N < 4) {
        return Pack<T, N>{{read(address)}};
    } else {
        return unpack(read_words<N>(address));
    }
}

template <int N, typename T>
__device__ __forceinline__ void write_tile_pack(T* address, const Pack<T, N>& pack) {
    if constexpr (sizeof pack == 16) {
        Words<T, N> words;
        memcpy(&words, &pack, sizeof words);
        write_whole(reinterpret_cast<Words<T, N>*>(address), words);
    } else {
        write_pack<N>(address, pack);
    }
}

__device__ __forceinline__ float larger(float x, float y) {
    return x < y ? y : x;
}

// The largest over the block, in every thread.
__device__ __forceinline__ float block_largest(float value, float* scratch) {
    LNB_UNROLL
    for (int distance = kWarp / 2; distance > 0; distance /= 2) {
        value = larger(value, __shfl_xor_sync(kAllLanes, value, distance));
    }
    if (threadIdx.x % kWarp == 0) scratch[threadIdx.x / kWarp] = value;
    __syncthreads();
    LNB_UNROLL
    for (int warp = 0; warp < kTileWarps; ++warp) value = larger(value, scratch[warp]);
    return value;
}

// Arrays of the tile's rows and columns in shared memory.
struct TileVectors {
    double* square;  // |g|^2 of each row
    float* ahead_square;
    float* bias;
    float* mean;
};

// Averages the tile's rows, and writes g~ to shared memory, and |g|^2. Returns the largest |g| and |g~| seen.
template <int N, typename G>
__device__ __forceinline__ float load_tile(const G* gradient, float* momentum, int64_t pitch, int rows, int columns,
                                           const Averaging& averaging, float share, float* ahead, int ahead_pitch,
                                           double* square) {
    const int lane = threadIdx.x % kRowLanes, packs = columns / N;
    float largest = 0;
    // Whole warps take part in the sums of a row: their threads all make the same number of turns.
    for (int first_row = 0; first_row < rows; first_row += kTileThreads / kRowLanes) {
        const int row = first_row + threadIdx.x / kRowLanes;
        double sum = 0;
        for (int first = lane; row < rows && first < packs; first += kInFlight * kRowLanes) {
            Pack<float, N> averages[kInFlight];
            Pack<G, N> gradients[kInFlight];
            LNB_UNROLL
            for (int u = 0; u < kInFlight; ++u) {
                const int pack = first + u * kRowLanes;
                if (pack >= packs) continue;
                averages[u] = read_pack<N>(momentum + row * pitch + pack * N);
                gradients[u] = read_pack<N>(gradient + row * pitch + pack * N);
            }
            LNB_UNROLL
            for (int u = 0; u < kInFlight; ++u) {
                const int pack = first + u * kRowLanes;
                if (pack >= packs) continue;
                Pack<float, N> fresh;
                LNB_UNROLL
                for (int k = 0; k < N; ++k) {
                    const G entry = gradients[u].value[k];
                    const float average = averaging.average(averages[u].value[k], entry);
                    fresh.value[k] = average;
                    const float value = averaging.ahead(average, entry, share);
                    ahead[row * ahead_pitch + pack * N + k] = value;
                    largest = larger(larger(largest, fabsf(value)), fabsf(widen(entry)));
                    sum += static_cast<double>(widen(entry)) * static_cast<double>(widen(entry));
                }
                write_tile_pack<N>(momentum + row * pitch + pack * N, fresh);
            }
        }
        sum = lanes_sum<kRowLanes>(sum);
        if (lane == 0 && row < rows) square[row] = sum;
    }
    return largest;
}

// Brings the tile to unit size and centres it, each row by its own bias: g~ - b~ mu'.
__device__ __forceinline__ void centre_tile(float* ahead, int pitch, int rows, int columns, float unit, bool biased,
                                            const TileVectors& vectors) {
    const int lane = threadIdx.x % kRowLanes;
    for (int first_row = 0; first_row < rows; first_row += kTileThreads / kRowLanes) {
        const int row = first_row + threadIdx.x / kRowLanes;
        float sum = 0;
        for (int column = lane; row < rows && column < columns; column += kRowLanes) {
            float& entry = ahead[row * pitch + column];
            const float value = entry * unit;
            sum += value * value;
            entry = biased ? value - vectors.bias[row] * vectors.mean[column] : value;
        }
        sum = lanes_sum<kRowLanes>(sum);
        if (lane == 0 && row < rows) vectors.ahead_square[row] = sum;
    }
}

// P^(-1/2) b~ of the rows of a block, for whoever finishes them.
__device__ __forceinline__ void mix_bias(const SquareBlock& root, const float* bias, double factor, double* mixed) {
    const int lane = threadIdx.x % kRowLanes;
    for (int first_row = 0; first_row < root.side; first_row += kTileThreads / kRowLanes) {
        const int row = first_row + threadIdx.x / kRowLanes;
        float sum = 0;
        for (int k = lane; row < root.side && k < root.side; k += kRowLanes) {
            sum += read(root.data + row * root.side + k) * bias[k];
        }
        sum = lanes_sum<kRowLanes>(sum);
        if (lane == 0 && row < root.side) write(mixed + row, sum * factor);
    }
}

static_assert(kTileThreads == kUnit * kBandLanes);

// A band of H, kUnit rows of it in shared memory at unit size: writes it, and the sums of its rows.
struct Band {
    const float *h, *mixed, *ahead;  // the same rows of H, M and the centred g~
    int h_pitch, mixed_pitch, ahead_pitch;
    int rows, columns;  // that there are
    int first_row;      // in the tile
    float back;         // what entries of unit size are multiplied by
    bool biased;

    template <int N, typename D>
    __device__ __forceinline__ void finish(D* direction, int64_t pitch, double* sums,
                                           const TileVectors& vectors) const {
        const int row = threadIdx.x / kBandLanes, lane = threadIdx.x % kBandLanes;
        float product = 0, along_mean = 0, gain = 0;
        double norm = 0;
        LNB_ROLLED
        for (int pack = lane; row < rows && pack < columns / N; pack += kBandLanes) {
            const auto of_h = *reinterpret_cast<const Pack<float, N>*>(h + row * h_pitch + pack * N);
            const auto of_m = *reinterpret_cast<const Pack<float, N>*>(mixed + row * mixed_pitch + pack * N);
            const auto of_ahead = *reinterpret_cast<const Pack<float, N>*>(ahead + row * ahead_pitch + pack * N);
            Pack<D, N> out;
            LNB_UNROLL
            for (int k = 0; k < N; ++k) {
                const float x = of_h.value[k];
                product += x * of_m.value[k];
                gain += x * of_ahead.value[k];
                if (biased) along_mean += x * vectors.mean[pack * N + k];
                norm += static_cast<double>(x) * static_cast<double>(x);
                narrow(x * back, out.value[k]);
            }
            write_tile_pack<N>(direction + row * pitch + pack * N, out);
        }
        product = lanes_sum<kBandLanes>(product);
        along_mean = lanes_sum<kBandLanes>(along_mean);
        gain = lanes_sum<kBandLanes>(gain);
        norm = lanes_sum<kBandLanes>(norm);
        if (row >= rows || lane >= kSums) return;
        const double once = back, twice = once * once;
        const int of_tile = first_row + row;
        if (biased) gain += vectors.bias[of_tile] * along_mean;  // of what was taken from g~ to centre it
        const double own[kSums] = {product * twice,
                                   norm * twice,
                                   along_mean * once,
                                   gain * twice,
                                   vectors.ahead_square[of_tile] * twice,
                                   vectors.square[of_tile]};
        double value = own[0];
        LNB_UNROLL
        for (int k = 1; k < kSums; ++k) value = lane == k ? own[k] : value;
        write(sums + static_cast<int64_t>(row) * kSums + lane, value);
    }
};

// One block's tile. It lies in shared memory: registers are for sums, and all threads find the same here at any time.
struct Tile {
    int32_t layer;         // its place in the table
    int32_t row_block;     // among those of all matrices
    int32_t column_block;  // of one matrix
    float back;            // what entries at unit size are multiplied by for their own
    float root_unit;       // what brings the block of P^(-1/2) to unit size

    // The first row, among those of all matrices.
    __device__ __forceinline__ int64_t first_row(const DirectLayer& of) const {
        return static_cast<int64_t>(row_block) * of.side;
    }
    // The first entry, among those of the layer.
    __device__ __forceinline__ int64_t corner(const DirectLayer& of) const {
        return first_row(of) * of.inputs + static_cast<int64_t>(column_block) * of.size;
    }
    __device__ __forceinline__ int matrix(const DirectLayer& of) const { return row_block / of.row_blocks(); }

    __device__ __forceinline__ SquareBlock root(const DirectLayer& of) const {
        const float* const data = of.root + first_row(of) * of.side;
        return {data, of.side, of.side % kPack == 0 && aligned<kPack>(data)};
    }
    __device__ __forceinline__ SquareBlock inverse(const DirectLayer& of) const {
        const int64_t block = static_cast<int64_t>(matrix(of)) * of.column_blocks() + column_block;
        const float* const data = of.inverse + block * of.size * of.size;
        return {data, of.size, of.size % kPack == 0 && aligned<kPack>(data)};
    }
};

// Whether rows of the layer's tiles begin at packs where the layer does.
__device__ __forceinline__ bool packed(const DirectLayer& layer) {
    return layer.size % kPack == 0 && layer.inputs % kPack == 0;
}

// The tile's bias and mean to shared memory. Returns the largest |b~| seen, and of |P^(-1/2)|, whose largest entry is
// on its diagonal: it is positive.
template <typename G>
__device__ __forceinline__ void load_vectors(const DirectLayer& layer, const Tile& tile, const DirectNumbers& numbers,
                                             const Averaging& averaging, const TileVectors& vectors, float& largest,
                                             float& root_largest) {
    const bool biased = layer.mean != nullptr;
    const SquareBlock root = tile.root(layer);
    for (int i = threadIdx.x; i < layer.side; i += kTileThreads) {
        root_largest = larger(root_largest, fabsf(read(root.data + i * layer.side + i)));
        if (!biased) continue;
        const int64_t row = tile.first_row(layer) + i;
        const G entry = read(static_cast<const G*>(layer.bias_gradient) + row);
        const float average = averaging.average(read(layer.bias_momentum + row), entry);
        const float share = static_cast<float>(read(numbers.bias_shares + layer.slot));
        vectors.bias[i] = averaging.ahead(average, entry, share);
        largest = larger(largest, fabsf(vectors.bias[i]));
    }
    for (int i = threadIdx.x; biased && i < layer.size; i += kTileThreads) {
        const int64_t first = static_cast<int64_t>(tile.matrix(layer)) * layer.inputs;
        vectors.mean[i] = read(layer.mean + first + tile.column_block * layer.size + i);
    }
}

// Directions of a tile whose centred g~ is in shared memory, strip by strip of its rows.
template <typename P, typename D>
__device__ __forceinline__ void solve_tile(const DirectTable& table, const Tile* shared_tile,
                                           const DirectNumbers& numbers, unsigned char* memory,
                                           const TileVectors& vectors) {
    const DirectLayer& layer = table.layer[shared_tile->layer];
    const TileMemory layout = TileMemory::of<P>(layer.side, layer.size);
    const float* const ahead = reinterpret_cast<const float*>(memory);
    float* const strip = reinterpret_cast<float*>(memory + layout.strip);
    float* const band = reinterpret_cast<float*>(memory + layout.right);
    Chunks<P> chunks{reinterpret_cast<typename P::Element*>(memory + layout.left),
                     reinterpret_cast<typename P::Element*>(memory + layout.right), layout.right_pitch, 0,
                     round_up(layer.size, kUnit) / kUnit};
    for (int first = 0; first < layer.side; first += kStrip) {
        const int rows = layer.side - first < kStrip ? layer.side - first : kStrip;
        chunks.row_units = round_up(rows, kUnit) / kUnit;
        StripSums<P> tiles(chunks);
        LeftBlock<P> of_root{shared_tile->root(layer), first, shared_tile->root_unit, {}, {}};
        RightTile<P> of_ahead{ahead, layout.ahead_pitch, layer.side, layer.size};
        multiply(tiles, layer.side, chunks, of_root, of_ahead);
        LNB_UNROLL
        for (int i = 0; i < kStripUnits; ++i) {
            tiles.store(i, strip + i * kUnit * layout.strip_pitch, layout.strip_pitch);
        }
        LeftStrip<P> of_strip{strip, layout.strip_pitch, {}};
        RightBlock<P> of_inverse{chunks, shared_tile->inverse(layer), {}};
        multiply(tiles, layer.size, chunks, of_strip, of_inverse);

        LNB_ROLLED
        for (int i = 0; i < chunks.row_units; ++i) {
            __syncthreads();  // nobody reads the last chunk, or the band before, any more
            LNB_UNROLL
            for (int k = 0; k < kStripUnits; ++k) {
                if (k == i) tiles.store(k, band, layout.right_pitch);
            }
            __syncthreads();
            const Tile tile = *shared_tile;
            const int row = first + i * kUnit;  // in the tile
            const Band of_rows{band,
                               strip + i * kUnit * layout.strip_pitch,
                               ahead + row * layout.ahead_pitch,
                               layout.right_pitch,
                               layout.strip_pitch,
                               layout.ahead_pitch,
                               layer.side - row < kUnit ? layer.side - row : kUnit,
                               layer.size,
                               row,
                               tile.back,
                               layer.mean != nullptr};
            D* const direction =
                static_cast<D*>(layer.direction) + tile.corner(layer) + static_cast<int64_t>(row) * layer.inputs;
            const int64_t before = static_cast<int64_t>(tile.column_block) * layer.matrices * layer.rows;
            double* const sums = numbers.partials + layer.first_entry + (before + tile.first_row(layer) + row) * kSums;
            if (packed(layer) && aligned<kPack>(direction)) {
                of_rows.finish<kPack>(direction, layer.inputs, sums, vectors);
            } else {
                of_rows.finish<1>(direction, layer.inputs, sums, vectors);
            }
        }
    }
}

template <typename P, typename G, typename D>
__global__ void __launch_bounds__(kTileThreads, 2)
    direct_kernel(LNB_PARAMETER(DirectTable) table, const DirectNumbers numbers) {
    if (numbers.ok != nullptr && !read(numbers.ok)) return;
    LNB_DYNAMIC_SHARED(unsigned char, shared);
    LNB_SHARED(double, square, kLargestBlock);
    LNB_SHARED(float, ahead_square, kLargestBlock);
    LNB_SHARED(float, bias, kLargestBlock);
    LNB_SHARED(float, mean, kLargestBlock);
    LNB_SHARED(float, scratch, kTileWarps);
    LNB_SHARED(float, root_scratch, kTileWarps);
    LNB_SHARED(Tile, shared_tile, 1);
    const TileVectors vectors{square, ahead_square, bias, mean};
    Tile tile{};
    tile.layer = table.find(blockIdx.x);
    const DirectLayer& layer = table.layer[tile.layer];
    const int number = static_cast<int>(blockIdx.x) - table.first_block[tile.layer];
    tile.column_block = number % layer.column_blocks();
    tile.row_block = number / layer.column_blocks();

    const Averaging averaging(numbers.decay, numbers.take);
    const bool biased = layer.mean != nullptr;
    float* const ahead = reinterpret_cast<float*>(shared);
    const int ahead_pitch = TileMemory::of<P>(layer.side, layer.size).ahead_pitch;
    float largest = 0, root_largest = 0;
    load_vectors<G>(layer, tile, numbers, averaging, vectors, largest, root_largest);
    const G* const gradient = static_cast<const G*>(layer.gradient) + tile.corner(layer);
    float* const momentum = layer.momentum + tile.corner(layer);
    const float share = static_cast<float>(read(numbers.shares + layer.slot));
    const float of_tile = packed(layer) && aligned<kPack>(gradient) && aligned<kPack>(momentum)
                              ? load_tile<kPack>(gradient, momentum, layer.inputs, layer.side, layer.size, averaging,
                                                 share, ahead, ahead_pitch, square)
                              : load_tile<1>(gradient, momentum, layer.inputs, layer.side, layer.size, averaging, share,
                                             ahead, ahead_pitch, square);
    const int exponent = unit_exponent(block_largest(larger(largest, of_tile), scratch));
    const int root_exponent = unit_exponent(block_largest(root_largest, root_scratch));
    const float unit = ldexpf(1.0f, exponent);
    tile.back = ldexpf(1.0f, -exponent);
    tile.root_unit = ldexpf(1.0f, root_exponent);
    if (threadIdx.x == 0) shared_tile[0] = tile;
    for (int i = threadIdx.x; biased && i < layer.side; i += kTileThreads) bias[i] *= unit;
    __syncthreads();
    centre_tile(ahead, ahead_pitch, layer.side, layer.size, unit, biased, vectors);
    if (biased && tile.column_block == 0) {
        mix_bias(tile.root(layer), bias, static_cast<double>(tile.back) * static_cast<double>(tile.root_unit),
                 numbers.mixed_biases + layer.first_row + tile.first_row(layer));
    }
    solve_tile<P, D>(table, shared_tile, numbers, shared, vectors);
}

template <typename P, typename G, typename D>
void start(const DirectLayer* layers, int64_t count, const DirectNumbers& numbers, void* stream) {
    const auto tiles = [](const DirectLayer& layer) {
        return static_cast<int64_t>(layer.matrices) * layer.row_blocks() * layer.column_blocks();
    };
    for_each_layer_table<kDirectLayers>(layers, count, tiles, [&](const DirectTable& table, int64_t blocks, int64_t) {
        size_t shared = 0;
        for (const DirectLayer* layer = table.layer; layer != table.layer + table.count; ++layer) {
            shared = std::max<size_t>(shared, TileMemory::of<P>(layer->side, layer->size).end);
        }
        launch("fused_step.direct", direct_kernel<P, G, D>, {blocks, kTileThreads, shared}, stream, table, numbers);
    });
}

// Calls f with a value of the types of the gradients and of the directions. False for a pair that there is no kernel
// for.
template <typename F>
bool with_direct_types(Type gradient, Type direction, F f) {
    const auto with = [&](auto of_gradient) {
        if (direction == Type::kFloat32) return f(of_gradient, float{}), true;
        if (direction == Type::kBFloat16) return f(of_gradient, BFloat16{}), true;
        return false;
    };
    if (gradient == Type::kFloat32) return with(float{});
    if (gradient == Type::kBFloat16) return with(BFloat16{});
    if (gradient == Type::kFloat16) return with(Half{});
    return false;
}

}  // namespace

bool directs(Type gradient, Type direction) {
    return with_direct_types(gradient, direction, [](auto, auto) {});
}

void direct_layers(const DirectLayer* layers, int64_t count, Type gradient, Type direction, Precision precision,
                   const DirectNumbers& numbers, void* stream) {
    const bool found = with_direct_types(gradient, direction, [&](auto g, auto d) {
        using G = decltype(g);
        using D = decltype(d);
        switch (precision) {
            case Precision::kTf32:
                return start<Tf32, G, D>(layers, count, numbers, stream);
            case Precision::kTf32x3:
                return start<Tf32x3, G, D>(layers, count, numbers, stream);
            case Precision::kBf16:
                return start<Bf16, G, D>(layers, count, numbers, stream);
        }
    });
    if (!found) throw std::invalid_argument("no kernel for this pair of dtypes");
}

}  // namespace lnb::cuda
