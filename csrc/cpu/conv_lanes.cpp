#include "conv_lanes.h"

#include <algorithm>
#include <vector>

#include "conv_cuts.h"
#include "isa.h"
#include "parallel.h"
#include "products_isa.h"
#include "ranges.h"
#include "tiles.h"
#include "workspace.h"

namespace lnb {
namespace {

constexpr int64_t kParts = 8;  // into which samples are cut, for the threads and for shorter sums
constexpr int64_t kRun = 128;  // pixels that are summed in registers; more would lose digits

class LaneMoment {
  public:
    // `lane_stride`: bytes from one group to the next.
    LaneMoment(const Images& x, const ConvAxis& rows, const ConvAxis& columns, int64_t groups, int64_t lane_stride,
               bool round, float* s, int threads)
        : x_(x),
          rows_(rows),
          columns_(columns),
          groups_(groups),
          lane_stride_(lane_stride),
          s_(s),
          threads_(threads),
          form_(round ? Form::kRounded : Form::kFloat),
          channels_(x.channels / groups),
          taps_(rows.taps * columns.taps),
          row_cuts_(rows, x.height),
          column_cuts_(columns, x.width),
          cells_(row_cuts_.size() * column_cuts_.size()),
          shifts_(2 * columns.taps - 1),
          margin_(columns.dilation * (columns.taps - 1)),
          products_(channels_ * channels_ * rows.taps * cells_ * shifts_ * kBlock),
          lane_blocks_(ceil_div(groups, kBlock)),
          parts_(std::max<int64_t>(1, std::min(x.batch, ceil_div(kParts, lane_blocks_)))),
          totals_(lane_blocks_ * parts_ * size()) {}

    void run() {
        parallel_for(lane_blocks_ * parts_, threads_, [this](int64_t job) { add_up(job / parts_, job % parts_); });
        parallel_for(lane_blocks_, threads_, [this](int64_t lanes) {
            float* const first = totals_.get() + lanes * parts_ * size();
            for (int64_t part = 1; part < parts_; ++part) {
                for (int64_t i = 0; i < size(); ++i) first[i] += first[part * size() + i];
            }
            write(lanes, first);
        });
    }

  private:
    // The sums of 16 groups: products [channel, channel, down, cell, right, 16], then sums [channel, cell, 16].
    int64_t size() const { return products_ + channels_ * cells_ * kBlock; }
    int64_t product_at(int64_t c, int64_t d, int64_t down, int64_t cell, int64_t right) const {
        return ((((c * channels_ + d) * rows_.taps + down) * cells_ + cell) * shifts_ + right) * kBlock;
    }
    int64_t sum_at(int64_t c, int64_t cell) const { return products_ + (c * cells_ + cell) * kBlock; }
    int64_t row_steps() const { return x_.width + 2 * margin_; }

    void add_up(int64_t lanes, int64_t part) const {
        float* const total = totals_.get() + (lanes * parts_ + part) * size();
        std::fill_n(total, size(), 0.0f);
        const int64_t image = x_.height * row_steps() * kBlock;
        const Workspace<float> packed(channels_ * image), sums(size()), ones(x_.width * kBlock);
        std::fill_n(packed.get(), channels_ * image, 0.0f);
        std::fill_n(ones.get(), x_.width * kBlock, 1.0f);
        const Range samples = piece(x_.batch, parts_, part);
        for (int64_t sample = samples.begin; sample < samples.end; ++sample) {
            for (int64_t c = 0; c < channels_; ++c) pack(lanes, sample, c, packed.get() + c * image);
            std::fill_n(sums.get(), size(), 0.0f);
            for (int64_t c = 0; c < channels_; ++c) {
                const float* const pixels = packed.get() + c * image;
                for (int64_t d = 0; d < channels_; ++d) {
                    multiply(c, d, pixels, packed.get() + d * image, sums.get());
                }
                sum(c, pixels, ones.get(), sums.get());
            }
            for (int64_t i = 0; i < size(); ++i) total[i] += sums.get()[i];
        }
    }

    // One channel of 16 groups, with zeros left and right of the image.
    void pack(int64_t lanes, int64_t sample, int64_t c, float* packed) const {
        const auto pack = isa().tiles->pack[static_cast<int>(form_)][static_cast<int>(x_.type)];
        const auto* x = static_cast<const char*>(x_.data) + sample * x_.batch_stride + lanes * kBlock * lane_stride_ +
                        c * x_.channel_stride;
        float unused[kBlock] = {};
        for (int64_t row = 0; row < x_.height; ++row) {
            pack(x + row * x_.row_stride, nullptr, x_.pixel_stride, lane_stride_, groups_ - lanes * kBlock, x_.width,
                 reinterpret_cast<char*>(packed + (row * row_steps() + margin_) * kBlock), unused);
        }
    }

    // Calls f(cell, first pixel, pixels, row) for the pixels of every row of every cell above `bottom`.
    template <typename F>
    void for_rows(int64_t bottom, F f) const {
        for (int64_t y = 0; y < row_cuts_.size(); ++y) {
            const Range rows = row_cuts_.at(y);
            for (int64_t row = rows.begin; row < std::min(rows.end, bottom); ++row) {
                for (int64_t i = 0; i < column_cuts_.size(); ++i) {
                    const Range columns = column_cuts_.at(i);
                    for (int64_t begin = columns.begin; begin < columns.end; begin += kRun) {
                        f(y * column_cuts_.size() + i, (row * row_steps() + margin_ + begin) * kBlock,
                          std::min(kRun, columns.end - begin));
                    }
                }
            }
        }
    }

    void multiply(int64_t c, int64_t d, const float* x, const float* y, float* sums) const {
        const ProductLoops& loops = *isa().product_loops;
        for (int64_t down = 0; down < rows_.taps; ++down) {
            const int64_t below = down * rows_.dilation * row_steps() * kBlock;
            // Without a shift down, those to the left are transposes of those to the right.
            const int64_t first = down == 0 ? columns_.taps - 1 : 0;
            const int64_t left = (first * columns_.dilation - margin_) * kBlock;
            for_rows(x_.height - down * rows_.dilation, [&](int64_t cell, int64_t at, int64_t count) {
                loops.lane_products(count, shifts_ - first, x + at, y + at + below + left, columns_.dilation,
                                    sums + product_at(c, d, down, cell, first));
            });
        }
    }

    void sum(int64_t c, const float* x, const float* ones, float* sums) const {
        const ProductLoops& loops = *isa().product_loops;
        for_rows(x_.height, [&](int64_t cell, int64_t at, int64_t count) {
            loops.lane_products(count, 1, x + at, ones, 0, sums + sum_at(c, cell));
        });
    }

    // total [16] <- the sum of f(cell) [16] over the cells that a tap visits.
    template <typename F>
    void over_cells(int64_t tap, float* total, F f) const {
        std::fill_n(total, kBlock, 0.0f);
        for (int64_t cell = 0; cell < cells_; ++cell) {
            if (!row_cuts_.visits(tap / columns_.taps, cell / column_cuts_.size()) ||
                !column_cuts_.visits(tap % columns_.taps, cell % column_cuts_.size())) {
                continue;
            }
            const float* const of_cell = f(cell);
            for (int64_t lane = 0; lane < kBlock; ++lane) total[lane] += of_cell[lane];
        }
    }

    void write(int64_t lanes, const float* sums) const {
        const int64_t width = channels_ * taps_ + 1, count = std::min(kBlock, groups_ - lanes * kBlock);
        float* const s = s_ + lanes * kBlock * width * width;
        const auto put = [=](int64_t row, int64_t column, const float* values) {
            for (int64_t lane = 0; lane < count; ++lane) {
                float* const of_group = s + lane * width * width;
                of_group[row * width + column] = of_group[column * width + row] = values[lane];
            }
        };
        float total[kBlock];
        for (int64_t c = 0; c < channels_; ++c) {
            for (int64_t a = 0; a < taps_; ++a) {
                for (int64_t d = 0; d < channels_; ++d) {
                    for (int64_t b = a; b < taps_; ++b) {
                        const int64_t down = b / columns_.taps - a / columns_.taps;
                        const int64_t right = b % columns_.taps - a % columns_.taps + columns_.taps - 1;
                        over_cells(a, total, [=](int64_t cell) { return sums + product_at(c, d, down, cell, right); });
                        put(c * taps_ + a, d * taps_ + b, total);
                    }
                }
                over_cells(a, total, [=](int64_t cell) { return sums + sum_at(c, cell); });
                put(c * taps_ + a, width - 1, total);
            }
        }
        std::fill_n(total, kBlock, static_cast<float>(x_.batch * rows_.outputs * columns_.outputs));
        put(width - 1, width - 1, total);
    }

    const Images x_;
    const ConvAxis rows_, columns_;
    const int64_t groups_, lane_stride_;
    float* const s_;
    const int threads_;
    const Form form_;
    const int64_t channels_, taps_;
    const Cuts row_cuts_, column_cuts_;
    const int64_t cells_;
    const int64_t shifts_;    // along a row
    const int64_t margin_;    // pixels
    const int64_t products_;  // of 16 groups
    const int64_t lane_blocks_, parts_;
    const Workspace<float> totals_;
};

}  // namespace

void conv_moment_by_lanes(const Images& x, const ConvAxis& rows, const ConvAxis& columns, int64_t groups, bool round,
                          float* s, int threads) {
    const int64_t lane_stride = x.channels / groups * x.channel_stride;
    LaneMoment(x, rows, columns, groups, lane_stride, round, s, threads).run();
}

bool is_for_samples(const Images& x, const ConvAxis& rows, const ConvAxis& columns) {
    if (x.channels > kSampleChannels || x.batch < kLeastSamples) return false;
    const auto taps = static_cast<double>(rows.taps), channels = static_cast<double>(x.channels);
    const double down = 2 * taps - 1, right = 2 * static_cast<double>(columns.taps) - 1;
    return channels * channels * taps * right * down * right <= kMostProducts;
}

void conv_moment_by_samples(const Images& x, const ConvAxis& rows, const ConvAxis& columns, bool round, float* s,
                            int threads) {
    const int64_t width = x.channels * rows.taps * columns.taps + 1, size = width * width;
    const Workspace<float> of_lanes(kBlock * size);
    std::fill_n(s, size, 0.0f);
    for (int64_t begin = 0; begin < x.batch;) {  // samples that fill all lanes, then those that are left
        const int64_t lanes = std::min(kBlock, x.batch - begin), batch = (x.batch - begin) / lanes;
        Images part = x;
        part.data = static_cast<const char*>(x.data) + begin * x.batch_stride;
        part.batch = batch;
        part.channels = lanes * x.channels;
        part.batch_stride = lanes * x.batch_stride;
        LaneMoment(part, rows, columns, lanes, x.batch_stride, round, of_lanes.get(), threads).run();
        for (int64_t lane = 0; lane < lanes; ++lane) {
            for (int64_t i = 0; i < size; ++i) s[i] += of_lanes.get()[lane * size + i];
        }
        begin += lanes * batch;
    }
}

}  // namespace lnb
