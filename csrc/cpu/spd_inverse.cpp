#include "spd_inverse.h"

#include <algorithm>
#include <cmath>

#include "isa.h"
#include "parallel.h"
#include "products_isa.h"
#include "ranges.h"
#include "workspace.h"

namespace lnb {
namespace {

constexpr int64_t kPanel = 16;
constexpr int64_t kSum = 16;

// t [columns, rows] = the transpose of x [rows, columns].
void transpose(int64_t rows, int64_t columns, const float* x, int64_t ldx, float* t, int64_t ldt) {
    for (int64_t row = 0; row < rows; ++row) {
        for (int64_t column = 0; column < columns; ++column) t[column * ldt + row] = x[row * ldx + column];
    }
}

using Block = float[kPanel][kPanel];

// The factor U of a diagonal block, in its upper triangle, and U^-1. Sums are in double. False where a pivot is not
// positive.
bool factor_block(Block& a, Block& inverse) {
    for (int64_t j = 0; j < kPanel; ++j) {
        for (int64_t i = 0; i <= j; ++i) {
            double sum = a[i][j];
            for (int64_t k = 0; k < i; ++k) sum -= static_cast<double>(a[k][i]) * static_cast<double>(a[k][j]);
            if (i < j) {
                a[i][j] = static_cast<float>(sum / a[i][i]);
                continue;
            }
            const auto pivot = static_cast<float>(std::sqrt(sum));
            if (!(pivot > 0) || std::isinf(pivot)) return false;
            a[i][i] = pivot;
        }
    }
    for (int64_t j = 0; j < kPanel; ++j) {
        for (int64_t i = kPanel - 1; i >= 0; --i) {
            double sum = i == j ? 1 : 0;
            for (int64_t k = i + 1; k <= j; ++k)
                sum -= static_cast<double>(a[i][k]) * static_cast<double>(inverse[k][j]);
            inverse[i][j] = i > j ? 0.0f : static_cast<float>(sum / a[i][i]);
        }
    }
    return true;
}

// Inverts matrices of one size, one after the other. The side is rounded up to whole panels, with ones on the diagonal:
// all products then have the shapes that are fast.
class Inverse {
  public:
    Inverse(int64_t size, const ProductLoops& loops)
        : size_(size),
          n_(ceil_div(size, kPanel) * kPanel),
          ld_(apart(n_)),
          loops_(loops),
          u_(n_ * ld_),
          v_(n_ * ld_),
          vt_(n_ * ld_),
          strip_(n_ * kPanel),
          panel_(n_ * kPanel) {}

    bool run(const float* a, float* inverse) const {
        std::fill_n(u_.get(), n_ * ld_, 0.0f);
        for (int64_t row = 0; row < size_; ++row) std::copy_n(a + row * size_, size_, u_.get() + row * ld_);
        for (int64_t row = size_; row < n_; ++row) u_.get()[row * ld_ + row] = 1;
        std::fill_n(v_.get(), n_ * ld_, 0.0f);
        if (!factor()) return false;
        invert_factor();
        multiply_out();
        for (int64_t row = 0; row < size_; ++row) {
            for (int64_t column = 0; column < size_; ++column) {
                const auto [i, j] = std::minmax(row, column);
                inverse[row * size_ + column] = u_.get()[i * ld_ + j];
            }
        }
        return true;
    }

  private:
    // U above the diagonal blocks of u_, and the inverses of these blocks in v_.
    bool factor() const {
        for (int64_t top = 0; top < n_; top += kPanel) {
            const int64_t next = top + kPanel, rest = n_ - next;
            float* const row = u_.get() + top * ld_;
            Block block, inverse;
            for (int64_t i = 0; i < kPanel; ++i) std::copy_n(row + i * ld_ + top, kPanel, block[i]);
            if (!factor_block(block, inverse)) return false;
            for (int64_t i = 0; i < kPanel; ++i) std::copy_n(inverse[i], kPanel, v_.get() + (top + i) * ld_ + top);
            if (rest == 0) break;
            // The rest of these rows of U, and what they take from the rows below.
            Block transposed;
            transpose(kPanel, kPanel, inverse[0], kPanel, transposed[0], kPanel);
            loops_.multiply(kPanel, rest, kPanel, transposed[0], kPanel, row + next, ld_, panel_.get(), rest);
            for (int64_t i = 0; i < kPanel; ++i) std::copy_n(panel_.get() + i * rest, rest, row + i * ld_ + next);
            transpose(kPanel, rest, panel_.get(), rest, strip_.get(), kPanel);
            for (int64_t below = next; below < n_; below += kPanel) {  // of the upper triangle only
                loops_.subtract(kPanel, n_ - below, kPanel, strip_.get() + (below - next) * kPanel, kPanel,
                                panel_.get() + below - next, rest, u_.get() + below * ld_ + below, ld_);
            }
        }
        return true;
    }

    // v_ = U^-1: above its diagonal block, a column of blocks is -V U V_jj.
    void invert_factor() const {
        for (int64_t left = kPanel; left < n_; left += kPanel) {
            for (int64_t top = 0; top < left; top += kPanel) {  // V is zero left of its diagonal
                multiply(kPanel, left - top, v_.get() + top * ld_ + top, u_.get() + top * ld_ + left,
                         strip_.get() + top * kPanel, kPanel);
            }
            loops_.subtract(left, kPanel, kPanel, strip_.get(), kPanel, v_.get() + left * ld_ + left, ld_,
                            v_.get() + left, ld_);
        }
    }

    // V V', its upper triangle, into u_.
    void multiply_out() const {
        transpose(n_, n_, v_.get(), ld_, vt_.get(), ld_);
        for (int64_t top = 0; top < n_; top += kPanel) {
            // Row `top` of V starts at column `top`; so does what it meets in V'.
            const int64_t at = top * ld_ + top;
            multiply(n_ - top, n_ - top, v_.get() + at, vt_.get() + at, u_.get() + at, ld_);
        }
    }

    // c = a b for a and b of rows ld_ apart, in sums of kSum terms, which loses fewer digits than one sum of all.
    // c has kPanel rows.
    void multiply(int64_t n, int64_t k, const float* a, const float* b, float* c, int64_t ldc) const {
        for (int64_t done = 0; done < k; done += kSum) {
            const auto product = done == 0 ? loops_.multiply : loops_.add;
            product(kPanel, n, std::min(kSum, k - done), a + done, ld_, b + done * ld_, ld_, c, ldc);
        }
    }

    const int64_t size_, n_, ld_;
    const ProductLoops& loops_;
    const Workspace<float> u_, v_, vt_, strip_, panel_;
};

}  // namespace

bool spd_inverse(const float* matrix, float* inverse, int64_t n) {
    return Inverse(n, *isa().product_loops).run(matrix, inverse);
}

void spd_inverses(const float* matrices, float* inverses, uint8_t* failed, int64_t count, int64_t n, int threads) {
    parallel_for(count, threads,
                 [=](int64_t i) { failed[i] = !spd_inverse(matrices + i * n * n, inverses + i * n * n, n); });
}

}  // namespace lnb
