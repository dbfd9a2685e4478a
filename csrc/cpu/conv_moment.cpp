// Block (tap a, tap b) of the patch Gram is T_s(R_a)[c, c'] = sum over pixels q in R_a of x[c, q] x[c', q + s], with
// the shift s = b - a and the rectangle R_a of pixels that tap a visits. Cut both axes where some R_a begins or ends:
// every R_a is a union of the cells of that grid, so
//
//     U_ab = sum over cells K inside R_a of T_(b-a)(K),
//
// and all U of one shift cost one product of channels over the whole image: 13 for 3 x 3, where patches need 81. Pixels
// whose partner q + s lies outside the image are left out, so there is no padding to multiply. Shifts that go up are
// transposes of those that go down.
//
// Packed images are blocks of 16 channels, a step per pixel, so a shift is an offset. In pair form a step holds the
// same pixel of two samples: any pairing of pixels within a sample would break for odd shifts.
//
// Work: B H W C^2 ((2 kh - 1)(2 kw - 1) + 1) / 2 multiplications; memory: x read once, S written once.

#include "conv_moment.h"

#include <algorithm>
#include <cstdlib>
#include <vector>

#include "conv_cuts.h"
#include "conv_lanes.h"
#include "isa.h"
#include "parallel.h"
#include "ranges.h"
#include "tiles.h"
#include "workspace.h"

namespace lnb {
namespace {

constexpr int64_t kRun = 128;              // about as many pixels are summed in registers; more would lose digits
constexpr int64_t kSideBlocks = 4;         // channel blocks along the side of a tile, at most
constexpr int64_t kUnionFloats = 1 << 21;  // of all U of one pair of tiles, where tiles of one block allow it

struct Shift {
    int64_t down, right;  // in taps
};

class ConvMoment {
  public:
    ConvMoment(const Images& x, const ConvAxis& rows, const ConvAxis& columns, int64_t groups, bool round, float* s,
               int threads)
        : x_(x),
          rows_(rows),
          columns_(columns),
          groups_(groups),
          s_(s),
          threads_(threads),
          form_(best_form(x.type, round)),
          samples_per_plane_(form_ == Form::kPairs ? 2 : 1),
          channels_(x.channels / groups),
          taps_(rows.taps * columns.taps),
          width_(channels_ * taps_ + 1),
          blocks_(ceil_div(channels_, kBlock)),
          planes_(ceil_div(x.batch, samples_per_plane_)),
          pixels_(x.height * x.width),
          row_cuts_(rows, x.height),
          column_cuts_(columns, x.width),
          packed_(groups * blocks_ * planes_ * pixels_ * kStepBytes),
          side_blocks_(side_blocks()),
          unions_(2 * pairs_of_taps() * side() * side()) {
        for (int64_t down = 0; down < rows.taps; ++down) {
            for (int64_t right = down == 0 ? 0 : 1 - columns.taps; right < columns.taps; ++right) {
                shifts_.push_back({down, right});
            }
        }
        first_union_.assign(shifts_.size(), 0);
        for (size_t i = 1; i < shifts_.size(); ++i) first_union_[i] = first_union_[i - 1] + tap_pairs(shifts_[i - 1]);
    }

    void run() {
        pack();
        const int64_t tiles = ceil_div(blocks_, side_blocks_);
        for (int64_t group = 0; group < groups_; ++group) {
            for (int64_t i = 0; i < tiles; ++i) {
                for (int64_t j = 0; j <= i; ++j) products(group, piece(blocks_, tiles, i), piece(blocks_, tiles, j));
            }
            sums(group);
        }
    }

  private:
    int64_t side() const { return side_blocks_ * kBlock; }
    // Pairs (a, b) of taps whose shift goes down, or right.
    int64_t pairs_of_taps() const { return taps_ * (taps_ + 1) / 2; }
    int64_t tap_pairs(Shift shift) const { return (rows_.taps - shift.down) * (columns_.taps - std::abs(shift.right)); }

    int64_t side_blocks() const {
        int64_t blocks = std::min(kSideBlocks, blocks_);
        while (blocks > 1 && 2 * pairs_of_taps() * blocks * blocks * kBlock * kBlock > kUnionFloats) --blocks;
        return blocks;
    }

    const char* packed(int64_t group, int64_t block) const {
        return packed_.get() + (group * blocks_ + block) * planes_ * pixels_ * kStepBytes;
    }

    void pack() {
        const auto pack = isa().tiles->pack[static_cast<int>(form_)][static_cast<int>(x_.type)];
        const bool one_run = x_.row_stride == x_.width * x_.pixel_stride;
        const int64_t runs = one_run ? 1 : x_.height, steps = one_run ? pixels_ : x_.width;
        parallel_for(groups_ * blocks_ * planes_, threads_, [=](int64_t part) {
            const int64_t plane = part % planes_, block = part / planes_ % blocks_, group = part / planes_ / blocks_;
            const int64_t sample = plane * samples_per_plane_;
            const auto* x = static_cast<const char*>(x_.data) + sample * x_.batch_stride +
                            (group * channels_ + block * kBlock) * x_.channel_stride;
            const bool two = samples_per_plane_ == 2 && sample + 1 < x_.batch;
            float unused[kBlock] = {};
            for (int64_t run = 0; run < runs; ++run) {
                const int64_t offset = run * x_.row_stride;
                pack(x + offset, two ? x + x_.batch_stride + offset : nullptr, x_.pixel_stride, x_.channel_stride,
                     channels_ - block * kBlock, steps, packed_.get() + (part * pixels_ + run * steps) * kStepBytes,
                     unused);
            }
        });
    }

    // The blocks of S between two ranges of channel blocks, in both orders.
    void products(int64_t group, Range i, Range j) {
        const bool square = i.begin == j.begin;
        const auto shifts = static_cast<int64_t>(shifts_.size());
        // Without a shift, one order of the two is the other's transpose.
        parallel_for(square ? shifts : 2 * shifts - 1, threads_, [=](int64_t job) {
            if (job < shifts) {
                add_shift(group, static_cast<size_t>(job), i, j, unions_.get());
            } else {
                add_shift(group, static_cast<size_t>(job - shifts + 1), j, i,
                          unions_.get() + pairs_of_taps() * side() * side());
            }
        });
        const float* ij = unions_.get();
        const float* ji = square ? ij : ij + pairs_of_taps() * side() * side();
        parallel_for((square ? i.size() : i.size() + j.size()) * taps_, threads_, [=](int64_t job) {
            const int64_t block = job / taps_, tap = job % taps_;
            if (block < i.size()) {
                write(group, i, j, block, tap, ij, ji, true);
            } else {
                write(group, j, i, block - i.size(), tap, ji, ij, false);
            }
        });
    }

    // unions [pairs of taps, side, side]: those of this shift, channels of blocks `i` against shifted ones of `j`.
    void add_shift(int64_t group, size_t index, Range i, Range j, float* unions) const {
        const Shift shift = shifts_[index];
        const int64_t down = shift.down * rows_.dilation, right = shift.right * columns_.dilation;
        const int64_t size = side() * side();
        float* const first = unions + first_union_[index] * size;
        std::fill_n(first, tap_pairs(shift) * size, 0.0f);
        float sums[kSideBlocks * kBlock * kSideBlocks * kBlock];
        for (int64_t y = 0; y < row_cuts_.size(); ++y) {
            const Range of_rows = row_cuts_.at(y);
            const Range rows{of_rows.begin, std::min(of_rows.end, x_.height - down)};
            for (int64_t x = 0; x < column_cuts_.size(); ++x) {
                const Range of_columns = column_cuts_.at(x);
                const Range columns{std::max(of_columns.begin, -right), std::min(of_columns.end, x_.width - right)};
                if (rows.size() <= 0 || columns.size() <= 0) continue;
                bool summed = false;
                float* target = first;
                for_tap_pairs(shift, [&](int64_t tap_row, int64_t tap_column) {
                    if (row_cuts_.visits(tap_row, y) && column_cuts_.visits(tap_column, x)) {
                        if (!summed) sum_cell(group, i, j, rows, columns, down * x_.width + right, sums);
                        summed = true;
                        for (int64_t entry = 0; entry < size; ++entry) target[entry] += sums[entry];
                    }
                    target += size;
                });
            }
        }
    }

    // f(row, column) of the first tap of each pair with this shift.
    template <typename F>
    void for_tap_pairs(Shift shift, F f) const {
        for (int64_t row = 0; row < rows_.taps - shift.down; ++row) {
            const int64_t begin = std::max<int64_t>(0, -shift.right);
            for (int64_t column = begin; column < std::min(columns_.taps, columns_.taps - shift.right); ++column) {
                f(row, column);
            }
        }
    }

    // sums [side, side] <- T of one shift, over one cell of all samples.
    void sum_cell(int64_t group, Range i, Range j, Range rows, Range columns, int64_t shift, float* sums) const {
        const auto multiply = isa().tiles->multiply[static_cast<int>(form_)];
        const int64_t run = kRun / samples_per_plane_;
        const int64_t columns_at_once = ceil_div(columns.size(), ceil_div(columns.size(), run));
        const int64_t rows_at_once = std::clamp<int64_t>(run / columns_at_once, 1, rows.size());
        const int64_t planes_at_once = std::clamp<int64_t>(run / (columns_at_once * rows_at_once), 1, planes_);
        const int64_t groups = ceil_div(j.size(), kMaxBlocks);
        const bool symmetric = shift == 0 && i.begin == j.begin;
        std::fill_n(sums, side() * side(), 0.0f);
        for (int64_t plane = 0; plane < planes_; plane += planes_at_once) {
            for (int64_t row = rows.begin; row < rows.end; row += rows_at_once) {
                for (int64_t column = columns.begin; column < columns.end; column += columns_at_once) {
                    const Steps steps{std::min(planes_at_once, planes_ - plane), pixels_,
                                      std::min(rows_at_once, rows.end - row), x_.width,
                                      std::min(columns_at_once, columns.end - column)};
                    const int64_t offset = plane * pixels_ + row * x_.width + column;
                    for (int64_t part = 0; part < groups; ++part) {
                        const Range right = piece(j.size(), groups, part);
                        const char* b = packed(group, j.begin + right.begin) + (offset + shift) * kStepBytes;
                        const int64_t first = i.begin + (symmetric ? right.begin : 0);
                        for (int64_t left = first; left < i.end; ++left) {
                            multiply(packed(group, left) + offset * kStepBytes, b, planes_ * pixels_ * kStepBytes,
                                     static_cast<int>(right.size()), steps,
                                     sums + (left - i.begin) * kBlock * side() + right.begin * kBlock, side());
                        }
                    }
                }
            }
        }
        for (int64_t row = 0; symmetric && row < side(); ++row) {
            for (int64_t column = row + 1; column < side(); ++column) {
                sums[row * side() + column] = sums[column * side() + row];
            }
        }
    }

    // Where U_ab stands, for taps whose shift goes down, or right.
    int64_t union_index(int64_t a, int64_t b) const {
        const int64_t a_row = a / columns_.taps, a_column = a % columns_.taps;
        const Shift shift{b / columns_.taps - a_row, b % columns_.taps - a_column};
        const int64_t index = shift.down == 0 ? shift.right
                                              : columns_.taps + (shift.down - 1) * (2 * columns_.taps - 1) +
                                                    shift.right + columns_.taps - 1;
        const int64_t in_row = columns_.taps - std::abs(shift.right);
        return first_union_[static_cast<size_t>(index)] + a_row * in_row + a_column -
               std::max<int64_t>(0, -shift.right);
    }

    // Rows (c, a) of S for the channels c of one block of `i`, columns (c', b) for all channels c' of `j`.
    void write(int64_t group, Range i, Range j, int64_t block, int64_t a, const float* ij, const float* ji,
               bool square_or_lower) const {
        const int64_t top = (i.begin + block) * kBlock, rows = std::min(kBlock, channels_ - top);
        float* const s = s_ + group * width_ * width_;
        for (int64_t other = 0; other < j.size(); ++other) {
            const int64_t left = (j.begin + other) * kBlock, columns = std::min(kBlock, channels_ - left);
            for (int64_t b = 0; b < taps_; ++b) {
                const bool forward = a < b || (a == b && square_or_lower);
                const float* u =
                    forward ? ij + union_index(a, b) * side() * side() + block * kBlock * side() + other * kBlock
                            : ji + union_index(b, a) * side() * side() + other * kBlock * side() + block * kBlock;
                const int64_t u_row = forward ? side() : 1, u_column = forward ? 1 : side();
                for (int64_t row = 0; row < rows; ++row) {
                    float* out = s + ((top + row) * taps_ + a) * width_ + left * taps_ + b;
                    for (int64_t column = 0; column < columns; ++column) {
                        out[column * taps_] = u[row * u_row + column * u_column];
                    }
                }
            }
        }
    }

    // The last row and column of S.
    void sums(int64_t group) const {
        const auto sum = isa().tiles->sum[static_cast<int>(form_)];
        float* const s = s_ + group * width_ * width_;
        const int64_t cell_rows = row_cuts_.size(), cell_columns = column_cuts_.size();
        const Workspace<double> memory(blocks_ * cell_rows * cell_columns * kBlock);
        double* const cell_sums = memory.get();
        parallel_for(blocks_, threads_, [=](int64_t block) {
            double* const cells = cell_sums + block * cell_rows * cell_columns * kBlock;
            std::fill_n(cells, cell_rows * cell_columns * kBlock, 0.0);
            for (int64_t cell = 0; cell < cell_rows * cell_columns; ++cell) {
                const Range rows = row_cuts_.at(cell / cell_columns);
                const Range columns = column_cuts_.at(cell % cell_columns);
                const Steps steps{planes_, pixels_, rows.size(), x_.width, columns.size()};
                sum(packed(group, block) + (rows.begin * x_.width + columns.begin) * kStepBytes, steps,
                    cells + cell * kBlock);
            }
            const int64_t first = block * kBlock, channels = std::min(kBlock, channels_ - first);
            for (int64_t tap = 0; tap < taps_; ++tap) {
                double total[kBlock] = {};
                for (int64_t cell = 0; cell < cell_rows * cell_columns; ++cell) {
                    if (row_cuts_.visits(tap / columns_.taps, cell / cell_columns) &&
                        column_cuts_.visits(tap % columns_.taps, cell % cell_columns)) {
                        for (int64_t i = 0; i < kBlock; ++i) total[i] += cells[cell * kBlock + i];
                    }
                }
                for (int64_t channel = 0; channel < channels; ++channel) {
                    const int64_t entry = (first + channel) * taps_ + tap;
                    s[entry * width_ + width_ - 1] = s[(width_ - 1) * width_ + entry] =
                        static_cast<float>(total[channel]);
                }
            }
        });
        s[width_ * width_ - 1] = static_cast<float>(x_.batch * rows_.outputs * columns_.outputs);
    }

    const Images x_;
    const ConvAxis rows_, columns_;
    const int64_t groups_;
    float* const s_;
    const int threads_;
    const Form form_;
    const int64_t samples_per_plane_, channels_, taps_, width_, blocks_, planes_, pixels_;
    const Cuts row_cuts_, column_cuts_;
    const Workspace<char> packed_;  // [groups, blocks, planes, height, width]
    const int64_t side_blocks_;
    const Workspace<float> unions_;
    std::vector<Shift> shifts_;
    std::vector<int64_t> first_union_;  // of each shift
};

}  // namespace

void conv_moment(const Images& x, const ConvAxis& rows, const ConvAxis& columns, int64_t groups, bool round, float* s,
                 int threads) {
    if (groups > 1 && x.channels / groups <= kLaneChannels) {
        return conv_moment_by_lanes(x, rows, columns, groups, round, s, threads);
    }
    if (groups == 1 && is_for_samples(x, rows, columns)) {
        return conv_moment_by_samples(x, rows, columns, round, s, threads);
    }
    ConvMoment(x, rows, columns, groups, round, s, threads).run();
}

}  // namespace lnb
