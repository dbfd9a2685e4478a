// The CPU kernels' portable loops against plain sums in double: a program for processors that the tests do not run on.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <vector>

#include "cpu/conv_moment.h"
#include "cpu/isa.h"
#include "cpu/multi_tensor.h"
#include "cpu/second_moment.h"

namespace {

using lnb::Type;
constexpr int kThreads = 2;
int failures = 0;

void expect(const char* what, double error, double limit) {
    std::printf("%s: error %.2e\n", what, error);
    if (!(error <= limit)) ++failures;
}

std::vector<float> numbers(int64_t size, double step) {
    std::vector<float> values(size);
    for (int64_t i = 0; i < size; ++i) values[i] = static_cast<float>(std::sin(step * static_cast<double>(i)));
    return values;
}

void check_multi_tensor() {
    const int64_t size = 40'001;
    const auto before = numbers(size, 1.0);
    auto x = before;
    const auto y = numbers(size, 0.7);
    std::vector<float> combined(size);
    const lnb::Pair pair{x.data(), y.data(), size};
    void* const output = combined.data();
    const double share = 0.5;
    lnb::ema_combined(&pair, &output, 1, Type::kFloat32, Type::kFloat32, 0.9, &share, 0.25, kThreads);
    double of_average = 0, of_combined = 0, product = 0, sum = 0;
    for (int64_t i = 0; i < size; ++i) {
        const double average = 0.9 * before[i] + 0.1 * y[i];
        of_average = std::fmax(of_average, std::fabs(average - x[i]));
        of_combined = std::fmax(of_combined, std::fabs(0.5 * average + 0.25 * y[i] - combined[i]));
        sum += static_cast<double>(x[i]) * y[i];
    }
    expect("average", of_average, 2e-7);
    expect("combined", of_combined, 2e-7);
    lnb::dot(&pair, 1, Type::kFloat32, Type::kFloat32, &product, kThreads);
    expect("dot", std::fabs(product - sum), 1e-9 * size);
    if (!lnb::all_finite(&pair, 1, Type::kFloat32, kThreads)) ++failures;
    x[size - 1] = INFINITY;
    if (lnb::all_finite(&pair, 1, Type::kFloat32, kThreads)) ++failures;
}

// S of rows [count, d] with the ones column, by definition.
double moment_error(const std::vector<std::vector<double>>& rows, const float* s) {
    const size_t d = rows[0].size();
    double error = 0;
    for (size_t i = 0; i <= d; ++i) {
        for (size_t j = 0; j <= d; ++j) {
            double sum = 0;
            for (const auto& row : rows) sum += (i < d ? row[i] : 1.0) * (j < d ? row[j] : 1.0);
            error = std::fmax(error, std::fabs(sum - s[i * (d + 1) + j]));
        }
    }
    return error;
}

void check_second_moment() {
    const int64_t count = 300, d = 37;
    const auto x = numbers(count * d, 0.1);
    std::vector<float> s((d + 1) * (d + 1));
    lnb::second_moment({x.data(), Type::kFloat32, count, d, d * 4}, false, s.data(), kThreads);
    std::vector<std::vector<double>> rows;
    for (int64_t i = 0; i < count; ++i) rows.emplace_back(x.begin() + i * d, x.begin() + (i + 1) * d);
    expect("second moment", moment_error(rows, s.data()), 1e-4);
}

void check_conv_moment() {
    const int64_t batch = 2, channels = 3, height = 6, width = 5, d = channels * 9;
    const auto x = numbers(batch * channels * height * width, 0.3);
    std::vector<float> s((d + 1) * (d + 1));
    const lnb::Images images{
        x.data(),           Type::kFloat32, batch, channels, height, width, channels * height * width * 4,
        height * width * 4, width * 4,      4};
    lnb::conv_moment(images, {3, 1, 1, height}, {3, 1, 1, width}, 1, false, s.data(), kThreads);
    std::vector<std::vector<double>> rows;
    for (int64_t b = 0; b < batch; ++b) {
        for (int64_t position = 0; position < height * width; ++position) {
            std::vector<double> row;
            for (int64_t k = 0; k < d; ++k) {
                const int64_t c = k / 9, i = position / width + k % 9 / 3 - 1, j = position % width + k % 3 - 1;
                const bool inside = i >= 0 && i < height && j >= 0 && j < width;
                row.push_back(inside ? x[((b * channels + c) * height + i) * width + j] : 0.0);
            }
            rows.push_back(row);
        }
    }
    expect("conv moment", moment_error(rows, s.data()), 1e-4);
}

}  // namespace

int main() {
    const char* names[lnb::kMaxIsas];
    std::printf("%d instruction sets, best %s\n", lnb::available_isas(names), names[0]);
    check_multi_tensor();
    check_second_moment();
    check_conv_moment();
    return failures;
}
