#include "multi_tensor.h"

#include <algorithm>
#include <atomic>
#include <vector>

#include "isa.h"
#include "multi_tensor_isa.h"
#include "parallel.h"

namespace lnb {
namespace {

const Loops& loops() {
    return *isa().loops;
}

// A run of consecutive elements of one tensor: short enough for partial sums to be accurate and for threads to finish
// together, long enough (64 KiB of float32) for the memory prefetchers.
struct Run {
    int64_t tensor, begin, size;
};
constexpr int64_t kRun = 16384;

// Which end of the lists a call starts at. The dot products of a step come between its average and its application;
// they go backwards, so that each of the two later calls starts with what the one before it has left in the cache.
enum class Order { kForwards, kBackwards };

// Runs, grouped into parts of about kRun elements: hundreds of small tensors do not cost hundreds of hand-outs.
struct Partition {
    std::vector<Run> runs;
    std::vector<int64_t> parts;  // first run of each part, and the end

    Partition(const Pair* pairs, int64_t count) {
        int64_t room = 0;
        for (int64_t tensor = 0; tensor < count; ++tensor) {
            for (int64_t begin = 0; begin < pairs[tensor].size; begin += kRun) {
                const int64_t size = std::min(kRun, pairs[tensor].size - begin);
                if (size > room) {
                    parts.push_back(static_cast<int64_t>(runs.size()));
                    room = kRun;
                }
                room -= size;
                runs.push_back({tensor, begin, size});
            }
        }
        parts.push_back(static_cast<int64_t>(runs.size()));
    }

    // Calls f(index of run, run) for every run; each part in one thread.
    template <typename F>
    void for_each(int threads, F f, Order order = Order::kForwards) const {
        const int64_t count = static_cast<int64_t>(parts.size()) - 1;
        parallel_for(count, threads, [&](int64_t i) {
            const int64_t part = order == Order::kForwards ? i : count - 1 - i;
            for (int64_t j = parts[part]; j < parts[part + 1]; ++j) f(j, runs[j]);
        });
    }

    // totals[tensor] <- sum of the tensor's runs, in their order.
    void add_up(const std::vector<double>& sums, int64_t count, double* totals) const {
        std::fill_n(totals, count, 0.0);
        for (size_t i = 0; i < runs.size(); ++i) totals[runs[i].tensor] += sums[i];
    }
};

char* at(void* memory, int64_t element, Type type) {
    return static_cast<char*>(memory) + element * width(type);
}
const char* at(const void* memory, int64_t element, Type type) {
    return static_cast<const char*>(memory) + element * width(type);
}

template <typename Table>
auto entry(const Table& table, Type x, Type y) {
    return table[static_cast<int>(x)][static_cast<int>(y)];
}

}  // namespace

bool supported(Type x, Type y) {
    return entry(loops().dot, x, y) != nullptr;
}

bool combines(Type x, Type y) {
    return entry(loops().ema_combined, x, y) != nullptr;
}

void ema_combined(const Pair* pairs, void* const* z, int64_t count, Type x, Type y, double beta, const double* shares,
                  double take, int threads) {
    int64_t bytes = 0;
    for (const Pair* pair = pairs; pair != pairs + count; ++pair) bytes += pair->size * width(x);
    const bool streamed = bytes >= kStreamedBytes;
    const auto loop = entry(loops().ema_combined, x, y);
    Partition(pairs, count).for_each(threads, [=](int64_t, const Run& run) {
        const Pair& pair = pairs[run.tensor];
        loop(at(pair.x, run.begin, x), at(pair.y, run.begin, y), at(z[run.tensor], run.begin, x), run.size, beta,
             shares[run.tensor], take, streamed);
    });
}

void dot(const Pair* pairs, int64_t count, Type x, Type y, double* products, int threads) {
    const Partition partition(pairs, count);
    std::vector<double> sums(partition.runs.size());
    const auto loop = entry(loops().dot, x, y);
    const auto sum = [=, &sums](int64_t i, const Run& run) {
        const Pair& pair = pairs[run.tensor];
        sums[i] = loop(at(pair.x, run.begin, x), at(pair.y, run.begin, y), run.size);
    };
    partition.for_each(threads, sum, Order::kBackwards);
    partition.add_up(sums, count, products);
}

void squared_row_norms(const Matrix* matrices, int64_t count, double* norms, int threads) {
    struct Rows {
        const Matrix* matrix;
        int64_t begin, end;
        double* norms;  // of the first
    };
    std::vector<Rows> parts;
    double entries = 0;
    for (const Matrix* matrix = matrices; matrix != matrices + count; ++matrix) {
        const int64_t at_once = std::max<int64_t>(1, kRun / std::max<int64_t>(1, matrix->columns));
        for (int64_t begin = 0; begin < matrix->rows; begin += at_once) {
            parts.push_back({matrix, begin, std::min(matrix->rows, begin + at_once), norms + begin});
        }
        norms += matrix->rows;
        entries += static_cast<double>(matrix->rows * matrix->columns);
    }
    threads = threads_for(entries * kProductsPerEntry, threads);
    parallel_for(static_cast<int64_t>(parts.size()), threads, [&](int64_t i) {
        const auto& [matrix, begin, end, of_part] = parts[i];
        const Type x = matrix->type;
        const auto loop = entry(loops().dot, x, x);
        for (int64_t row = begin; row < end; ++row) {
            const void* const of_row = at(matrix->x, row * matrix->columns, x);
            of_part[row - begin] = loop(of_row, of_row, matrix->columns);
        }
    });
}

void apply(const Pair* pairs, int64_t count, Type x, Type y, const double* scales, double lr, const double* decays,
           int threads) {
    const auto loop = entry(loops().apply, x, y);
    Partition(pairs, count).for_each(threads, [=](int64_t, const Run& run) {
        const Pair& pair = pairs[run.tensor];
        loop(at(pair.x, run.begin, x), at(pair.y, run.begin, y), run.size, lr * scales[run.tensor],
             lr * decays[run.tensor]);
    });
}

void apply_master(const Pair* pairs, void* const* copies, int64_t count, Type copy, const double* scales, double lr,
                  const double* decays, int threads) {
    const auto loop = entry(loops().apply, Type::kFloat32, Type::kFloat32);
    const auto round = loops().round[static_cast<int>(copy)];
    Partition(pairs, count).for_each(threads, [=](int64_t, const Run& run) {
        const Pair& pair = pairs[run.tensor];
        auto* const master = static_cast<float*>(pair.x) + run.begin;
        loop(master, static_cast<const float*>(pair.y) + run.begin, run.size, lr * scales[run.tensor],
             lr * decays[run.tensor]);
        round(at(copies[run.tensor], run.begin, copy), master, run.size);
    });
}

void adam(const AdamTensor* tensors, int64_t count, double decay, double epsilon, double* products, int threads) {
    std::vector<Pair> pairs;
    for (const AdamTensor* tensor = tensors; tensor != tensors + count; ++tensor) {
        pairs.push_back({tensor->direction, tensor->gradient, tensor->size});
    }
    const Partition partition(pairs.data(), count);
    std::vector<double> sums(partition.runs.size());
    partition.for_each(threads, [=, &sums](int64_t i, const Run& run) {
        const AdamTensor& tensor = tensors[run.tensor];
        const Type wide = tensor.type == Type::kFloat64 ? Type::kFloat64 : Type::kFloat32;
        sums[i] = loops().adam[static_cast<int>(tensor.type)](
            at(tensor.direction, run.begin, wide), at(tensor.square, run.begin, wide),
            at(tensor.gradient, run.begin, tensor.type), run.size, decay, tensor.correction, epsilon);
    });
    partition.add_up(sums, count, products);
}

bool all_finite(const Pair* pairs, int64_t count, Type x, int threads) {
    const auto loop = loops().finite[static_cast<int>(x)];
    std::atomic<bool> finite{true};
    Partition(pairs, count).for_each(threads, [=, &finite](int64_t, const Run& run) {
        if (finite.load(std::memory_order_relaxed) && !loop(at(pairs[run.tensor].x, run.begin, x), run.size)) {
            finite.store(false, std::memory_order_relaxed);
        }
    });
    return finite;
}

}  // namespace lnb
