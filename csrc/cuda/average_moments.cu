// Second moments of the inputs, averaged over refreshes: a thread block for each diagonal block of every layer. It also
// sums what a ridge relative to the mean diagonal needs.
#include "../step_rules.h"
#include "launch.h"
#include "layer_table.h"
#include "reduce.cuh"
#include "refresh.h"
#include "sweep.cuh"

namespace lnb::cuda {
namespace {

using InputTable = LayerTable<InputLayer, kInputLayers>;

struct Average {
    float rows, decay;

    template <int N>
    __device__ __forceinline__ void operator()(int64_t, Pack<float, N>& kept, const Pack<float, N>& sums) const {
        LNB_UNROLL
        for (int i = 0; i < N; ++i) {
            const float fresh = sums.value[i] / rows;
            // Without an average of before, `kept` may hold anything.
            kept.value[i] = decay == 0 ? fresh : kept.value[i] + (1 - decay) * (fresh - kept.value[i]);
        }
    }
};

// What the layer's other kernels have to know about it.
__device__ __forceinline__ void note_facts(const InputLayer& layer, bool allowed, double rows, float* facts) {
    double samples = rows / layer.sample_every, correction = 1;
    if (samples < 1) samples = 1;
    double counted = samples;
    if (layer.steps != nullptr) {
        double steps = read(layer.steps);
        if (allowed) write(layer.steps, static_cast<float>(++steps));
        const double b = layer.decay, past = exp2(log2(b) * (steps < 1 ? 1 : steps));
        correction = 1 - past;
        // An average with weights w counts (sum w)^2 / sum w^2 times the samples of one step.
        counted *= (1 - past) / (1 + past) * ((1 + b) / (1 - b));
    }
    write(facts, allowed ? 1.0f : 0.0f);
    write(facts + 1, static_cast<float>(1 / correction));
    const double added = layer.sample_ridge * layer.side / counted + layer.data_inputs / samples;
    write(facts + 2, static_cast<float>(layer.ridge + least(added, kMostSampleRidge)));
}

__global__ void __launch_bounds__(kThreads, kBlocks)
    average_moments_kernel(LNB_PARAMETER(InputTable) table, const bool* ok, double* sums, float* facts) {
    const int index = table.find(blockIdx.x);
    const InputLayer& layer = table.layer[index];
    const int entry = static_cast<int>(blockIdx.x) - table.first_block[index];
    const int ones = layer.side + 1;
    const int64_t size = static_cast<int64_t>(ones) * ones;
    const float* gathered = layer.gathered + entry / layer.blocks * layer.group_stride + entry % layer.blocks * size;
    float* average = layer.average + entry * size;
    const float rows = read(layer.gathered + size - 1);
    const bool allowed =
        rows > 0 && (layer.squarable == nullptr || read(layer.squarable)) && (ok == nullptr || read(ok));
    if (allowed || layer.decay == 0) {
        const Average op{rows > 1 ? rows : 1, static_cast<float>(layer.decay)};
        // Entries up to the first one at a multiple of 16 bytes, where both have that in the same place.
        int64_t head = 0;
        while (head < 4 && !aligned<4>(average + head)) ++head;
        const bool vectors = aligned<4>(gathered + head);
        if (!vectors) head = 0;
        sweep(average, gathered, head, false, true, op);
        sweep(average + head, gathered + head, size - head, vectors, true, op);
    }
    if (entry == 0 && threadIdx.x == 0) note_facts(layer, allowed, rows, facts + index * kFacts);
    __syncthreads();  // the average is written
    LNB_SHARED(double, scratch, 2 * (kThreads / kWarp));
    double total[2] = {0, 0};
    for (int i = threadIdx.x; i < layer.side; i += kThreads) {
        const double mean = read(average + (size - ones) + i);
        total[0] += read(average + static_cast<int64_t>(i) * (ones + 1));
        total[1] += mean * mean;
    }
    block_sums(total, scratch);
    if (threadIdx.x == 0) {
        write(sums + 2 * static_cast<int64_t>(blockIdx.x), total[0]);
        write(sums + 2 * static_cast<int64_t>(blockIdx.x) + 1, total[1]);
    }
}

}  // namespace

void average_moments(const InputLayer* layers, int64_t count, const bool* ok, double* sums, float* facts,
                     void* stream) {
    for_each_layer_table<kInputLayers>(
        layers, count, [](const InputLayer& layer) { return static_cast<int64_t>(layer.groups) * layer.blocks; },
        [&](const InputTable& table, int64_t blocks, int64_t first) {
            launch("average_moments", average_moments_kernel, {blocks, kThreads}, stream, table, ok, sums,
                   facts + first * kFacts);
            sums += 2 * blocks;
        });
}

}  // namespace lnb::cuda
