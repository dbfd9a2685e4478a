#include "newton_schulz.h"

#include <algorithm>
#include <utility>

#include "isa.h"
#include "parallel.h"
#include "products_isa.h"
#include "ranges.h"
#include "workspace.h"

namespace lnb {
namespace {

constexpr int64_t kPanel = 16;  // rows whose products are formed together; the side is rounded up to whole ones

// Takes matrices of one size, one after the other.
class Root {
  public:
    Root(int64_t size, const Quintic& quintic, const ProductLoops& loops)
        : size_(size),
          n_(ceil_div(size, kPanel) * kPanel),
          ld_(apart(n_)),
          quintic_(quintic),
          loops_(loops),
          memory_(5 * n_ * ld_) {}

    void run(const float* matrix, float* result, int64_t steps) const {
        const int64_t area = n_ * ld_;
        float* power = memory_.get();
        float* factor = power + area;
        float* root = factor + area;
        float* mixed = root + area;
        float* next = mixed + area;
        std::fill_n(power, area, 0.0f);
        for (int64_t row = 0; row < size_; ++row) std::copy_n(matrix + row * size_, size_, power + row * ld_);
        for (int64_t step = 0; step < steps; ++step) {
            multiply(power, power, factor);
            for (int64_t row = 0; row < n_; ++row) {
                float* const t = factor + row * ld_;
                const float* const a = power + row * ld_;
                for (int64_t i = 0; i < n_; ++i) t[i] = quintic_.c * t[i] + quintic_.b * a[i];
                t[row] += quintic_.a;
            }
            if (step == 0) {
                std::copy_n(factor, area, root);
            } else {
                multiply(factor, root, next);
                std::swap(root, next);
            }
            if (step + 1 < steps) {
                multiply(factor, power, mixed);
                multiply(mixed, factor, power);
            }
        }
        for (int64_t row = 0; row < size_; ++row) std::copy_n(root + row * ld_, size_, result + row * size_);
    }

  private:
    // c = a b, which is symmetric.
    void multiply(const float* a, const float* b, float* c) const {
        for (int64_t row = 0; row < n_; row += kPanel) {
            loops_.multiply(kPanel, row + kPanel, n_, a + row * ld_, ld_, b, ld_, c + row * ld_, ld_);
        }
        for (int64_t row = 0; row < n_; ++row) {
            for (int64_t column = 0; column < row; ++column) c[column * ld_ + row] = c[row * ld_ + column];
        }
    }

    int64_t size_, n_, ld_;
    Quintic quintic_;
    const ProductLoops& loops_;
    Workspace<float> memory_;
};

}  // namespace

void newton_schulz_root(const float* matrix, float* root, int64_t n, const Quintic& quintic, int64_t steps) {
    Root(n, quintic, *isa().product_loops).run(matrix, root, steps);
}

void newton_schulz_roots(const float* matrices, float* roots, int64_t count, int64_t n, const Quintic& quintic,
                         int64_t steps, int threads) {
    const ProductLoops& loops = *isa().product_loops;
    const int64_t parts = std::min<int64_t>(count, std::max(1, threads));
    parallel_for(parts, threads, [&](int64_t i) {
        const Root root(n, quintic, loops);
        const Range mine = piece(count, parts, i);
        for (int64_t matrix = mine.begin; matrix < mine.end; ++matrix) {
            root.run(matrices + matrix * n * n, roots + matrix * n * n, steps);
        }
    });
}

}  // namespace lnb
