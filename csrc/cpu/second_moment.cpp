// Blocking: samples are packed a chunk at a time (at most about kChunkBytes, so that it stays in the last cache), and
// each tile of the lower triangle is then summed over the chunk, kRun steps at a time (three blocks of kRun steps fill
// half of a first-level cache). Two regions of parallel work per chunk.
//
// Work: N d (d + 1) multiplications, half of a plain product's; memory: X read once, S written once per chunk.

#include "second_moment.h"

#include <algorithm>
#include <vector>

#include "isa.h"
#include "parallel.h"
#include "ranges.h"
#include "tiles.h"
#include "workspace.h"

namespace lnb {
namespace {

constexpr int64_t kRun = 128;             // samples whose sum stays in registers; longer sums would lose digits
constexpr int64_t kPackSteps = 64;        // steps packed by one part
constexpr int64_t kChunkBytes = 3 << 19;  // 1.5 MiB
constexpr int64_t kChunkSteps = 512;      // at least, so that S is not written too often
constexpr int64_t kTileBlocks = 6;        // blocks along the side of a tile, at most
constexpr int64_t kSide = kTileBlocks * kBlock;
constexpr int64_t kJobs = 16;  // parts to aim at; fewer tiles are split along the samples

class SecondMoment {
  public:
    SecondMoment(const Samples& x, bool round, float* s, int threads)
        : x_(x),
          s_(s),
          threads_(threads),
          form_(best_form(x.type, round)),
          samples_per_step_(form_ == Form::kPairs ? 2 : 1),
          steps_(ceil_div(x.count, samples_per_step_)),
          blocks_(ceil_div(x.features, kBlock)),
          sides_(ceil_div(blocks_, kTileBlocks)),
          chunk_(chunk_steps(steps_, blocks_)),
          packed_(blocks_ * chunk_ * kStepBytes),
          sums_(ceil_div(chunk_, kPackSteps) * blocks_ * kBlock),
          totals_(static_cast<size_t>(blocks_ * kBlock), 0.0) {
        for (int64_t row = 0; row < sides_; ++row) {
            for (int64_t column = 0; column <= row; ++column) {
                tiles_.push_back({piece(blocks_, sides_, row), piece(blocks_, sides_, column)});
            }
        }
    }

    void run() {
        const int64_t d = x_.features;
        std::fill_n(s_, (d + 1) * (d + 1), 0.0f);
        for (int64_t begin = 0; begin < steps_; begin += chunk_) {
            const int64_t steps = std::min(chunk_, steps_ - begin);
            pack(begin, steps);
            multiply(steps, begin + steps == steps_);
        }
        for (int64_t i = 0; i < d; ++i) s_[d * (d + 1) + i] = s_[i * (d + 1) + d] = static_cast<float>(totals_[i]);
        s_[d * (d + 1) + d] = static_cast<float>(x_.count);
    }

  private:
    struct Tile {
        Range rows, columns;  // in blocks
    };

    static int64_t chunk_steps(int64_t steps, int64_t blocks) {
        const int64_t fitting = kChunkBytes / (std::max<int64_t>(blocks, 1) * kStepBytes);
        const int64_t most = std::max(fitting / kRun * kRun, kChunkSteps);
        const int64_t chunks = std::max<int64_t>(ceil_div(steps, most), 1);
        return std::min(steps, ceil_div(ceil_div(steps, chunks), kRun) * kRun);
    }

    const char* block(int64_t i) const { return packed_.get() + i * chunk_ * kStepBytes; }

    // Packs the steps from `begin` on, and adds the columns' sums to the totals.
    void pack(int64_t begin, int64_t steps) {
        const auto pack = isa().tiles->pack[static_cast<int>(form_)][static_cast<int>(x_.type)];
        const int64_t width = lnb::width(x_.type), columns = blocks_ * kBlock;
        const int64_t parts = ceil_div(steps, kPackSteps);
        parallel_for(parts, threads_, [=](int64_t part) {
            const int64_t first = part * kPackSteps, count = std::min(kPackSteps, steps - first);
            const int64_t sample = (begin + first) * samples_per_step_;
            const bool half_step =
                sample + count * samples_per_step_ > x_.count;  // of the last pair one sample is there
            const auto* samples = static_cast<const char*>(x_.data) + sample * x_.stride;
            float* sums = sums_.get() + part * columns;
            std::fill_n(sums, columns, 0.0f);
            for (int64_t i = 0; i < blocks_; ++i) {
                const char* x = samples + i * kBlock * width;
                const char* y = samples_per_step_ == 2 ? x + x_.stride : nullptr;
                char* out = packed_.get() + (i * chunk_ + first) * kStepBytes;
                const int64_t present = x_.features - i * kBlock, stride = x_.stride * samples_per_step_;
                const int64_t whole = count - (half_step ? 1 : 0);
                pack(x, y, stride, width, present, whole, out, sums + i * kBlock);
                if (half_step) {
                    pack(x + whole * stride, nullptr, stride, width, present, 1, out + whole * kStepBytes,
                         sums + i * kBlock);
                }
            }
        });
        for (int64_t part = 0; part < parts; ++part) {
            for (int64_t i = 0; i < columns; ++i) totals_[static_cast<size_t>(i)] += sums_.get()[part * columns + i];
        }
    }

    // Adds the products of the packed steps to S.
    void multiply(int64_t steps, bool last) {
        const auto count = static_cast<int64_t>(tiles_.size());
        const int64_t splits =
            std::clamp<int64_t>(ceil_div(kJobs, std::max<int64_t>(count, 1)), 1, ceil_div(steps, 2 * kRun));
        if (splits == 1) {
            parallel_for(count, threads_, [=](int64_t i) {
                float sums[kSide * kSide];
                sum(tiles_[static_cast<size_t>(i)], {0, steps}, sums);
                add(tiles_[static_cast<size_t>(i)], sums, last);
            });
            return;
        }
        const Workspace<float> partial(count * splits * kSide * kSide);
        float* const memory = partial.get();
        parallel_for(count * splits, threads_, [=](int64_t job) {
            const Range run = piece(ceil_div(steps, kRun), splits, job % splits);
            sum(tiles_[static_cast<size_t>(job / splits)], {run.begin * kRun, std::min(steps, run.end * kRun)},
                memory + job * kSide * kSide);
        });
        parallel_for(count, threads_, [=](int64_t i) {
            for (int64_t split = 0; split < splits; ++split) {
                add(tiles_[static_cast<size_t>(i)], memory + (i * splits + split) * kSide * kSide,
                    last && split + 1 == splits);
            }
        });
    }

    // sums [kSide, kSide] <- the tile's sum over the steps.
    void sum(const Tile& tile, Range steps, float* sums) const {
        const auto multiply = isa().tiles->multiply[static_cast<int>(form_)];
        const int64_t run = kRun / samples_per_step_;
        std::fill_n(sums, kSide * kSide, 0.0f);
        const int64_t columns = tile.columns.end - tile.columns.begin, groups = ceil_div(columns, kMaxBlocks);
        for (int64_t begin = steps.begin; begin < steps.end; begin += run) {
            const Steps part{1, 0, 1, 0, std::min(run, steps.end - begin)};
            for (int64_t group = 0; group < groups; ++group) {
                const Range right = piece(columns, groups, group);
                const int64_t first = tile.columns.begin + right.begin;
                for (int64_t row = std::max(tile.rows.begin, first); row < tile.rows.end; ++row) {
                    multiply(block(row) + begin * kStepBytes, block(first) + begin * kStepBytes, chunk_ * kStepBytes,
                             static_cast<int>(right.size()), part,
                             sums + (row - tile.rows.begin) * kBlock * kSide + right.begin * kBlock, kSide);
                }
            }
        }
    }

    // Adds the sums to their tile of S, below the diagonal; with `last`, copies them to above it.
    void add(const Tile& tile, const float* sums, bool last) const {
        const int64_t d = x_.features, width = d + 1;
        const int64_t top = tile.rows.begin * kBlock, left = tile.columns.begin * kBlock;
        const int64_t bottom = std::min(d, tile.rows.end * kBlock), right = std::min(d, tile.columns.end * kBlock);
        for (int64_t row = top; row < bottom; ++row) {
            const int64_t end = std::min(right, row + 1);
            for (int64_t column = left; column < end; ++column) {
                s_[row * width + column] += sums[(row - top) * kSide + column - left];
            }
        }
        if (!last) return;
        for (int64_t column = left; column < right; ++column) {
            for (int64_t row = std::max(top, column + 1); row < bottom; ++row) {
                s_[column * width + row] = s_[row * width + column];
            }
        }
    }

    const Samples x_;
    float* const s_;
    const int threads_;
    const Form form_;
    const int64_t samples_per_step_, steps_;
    const int64_t blocks_;  // of columns
    const int64_t sides_;   // tiles along a side of S
    const int64_t chunk_;   // steps packed at a time
    const Workspace<char> packed_;
    const Workspace<float> sums_;  // of each part of a chunk
    std::vector<double> totals_;
    std::vector<Tile> tiles_;
};

}  // namespace

void second_moment(const Samples& x, bool round, float* s, int threads) {
    SecondMoment(x, round, s, threads).run();
}

}  // namespace lnb
