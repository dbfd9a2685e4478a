#include "conv_bindings.h"

#include <pybind11/stl.h>

#include <array>
#include <stdexcept>
#include <string>
#include <utility>

#include "../address_checks.h"
#include "conv_moments.h"
#include "queue.h"

namespace lnb::cuda {
namespace {

constexpr int64_t kMostPixelStride = 64;

// In the order of the struct's members.
using ShapeFields = std::array<int64_t, 17>;

void check_range(const char* name, int64_t value, int64_t least, int64_t most) {
    if (value < least || value > most) {
        throw std::invalid_argument(std::string(name) + " is " + std::to_string(value) + "; allowed are " +
                                    std::to_string(least) + " to " + std::to_string(most));
    }
}

ConvShape conv_shape(const ShapeFields& fields) {
    const auto& [image_stride, channel_stride, row_stride, pixel_stride, batch, groups, channels, height, width,
                 out_height, out_width, kernel_height, kernel_width, step_y, step_x, pad_top, pad_left] = fields;
    const std::array<std::pair<const char*, int64_t>, 11> sizes{{{"batch", batch},
                                                                 {"groups", groups},
                                                                 {"channels", channels},
                                                                 {"height", height},
                                                                 {"width", width},
                                                                 {"out_height", out_height},
                                                                 {"out_width", out_width},
                                                                 {"kernel_height", kernel_height},
                                                                 {"kernel_width", kernel_width},
                                                                 {"step_y", step_y},
                                                                 {"step_x", step_x}}};
    for (const auto& [name, size] : sizes) check_range(name, size, 1, INT32_MAX);
    check_range("image_stride", image_stride, 0, kMostEntries);
    check_range("channel_stride", channel_stride, 0, kMostEntries);
    check_range("row_stride", row_stride, 0, kMostEntries);
    check_range("pixel_stride", pixel_stride, 1, kMostPixelStride);
    check_range("pad_top", pad_top, 0, INT32_MAX);
    check_range("pad_left", pad_left, 0, INT32_MAX);
    // Places in the padded image, and positions of patches in it.
    check_range("rows that the outputs reach", out_height * step_y + kernel_height + pad_top, 1, INT32_MAX);
    check_range("columns that the outputs reach", out_width * step_x + kernel_width + pad_left, 1, INT32_MAX);
    check_range("rows of the padded image", height + pad_top, 1, INT32_MAX);
    check_range("columns of the padded image", (width + pad_left) * pixel_stride, 1, INT32_MAX);
    check_range("batch * out_width", batch * out_width, 1, INT32_MAX);
    entries("x", {batch, out_height, out_width});
    const auto small = [](int64_t value) { return static_cast<int32_t>(value); };
    return {image_stride,     channel_stride,       row_stride,          small(pixel_stride), small(batch),
            small(groups),    small(channels),      small(height),       small(width),        small(out_height),
            small(out_width), small(kernel_height), small(kernel_width), small(step_y),       small(step_x),
            small(pad_top),   small(pad_left)};
}

// Floats and counters that the kernel needs beside; 0 of both for a shape that it does not take.
std::pair<int64_t, int64_t> conv_sizes(const ShapeFields& fields, int64_t blocks) {
    const ConvShape shape = conv_shape(fields);
    const ConvPlan plan = conv_plan(shape, blocks);
    if (plan.splits == 0) return {0, 0};
    return {conv_partial_floats(shape, plan), conv_counters(shape, plan)};
}

void conv_moments_at(uintptr_t x, Type type, const ShapeFields& fields, int64_t blocks, uintptr_t partials,
                     uintptr_t counters, uintptr_t s, const Where& where) {
    const ConvShape shape = conv_shape(fields);
    const ConvPlan plan = conv_plan(shape, blocks);
    if (plan.splits == 0) throw std::invalid_argument("no kernel for a convolution of this shape");
    if (type != Type::kBFloat16 && type != Type::kFloat16) throw std::invalid_argument("no kernel for this dtype of x");
    check_memory("x", x, 1, type);
    if (x % 16 != 0) throw std::invalid_argument("x is not aligned to 16 bytes; use .clone() to get one that is");
    check_memory("partials", partials, conv_partial_floats(shape, plan), Type::kFloat32);
    if (partials % 16 != 0) throw std::invalid_argument("partials is not aligned to 16 bytes");
    check_memory("counters", counters, conv_counters(shape, plan), Type::kFloat32);
    check_memory("s", s, entries("s", {shape.groups, plan.entries + 1, plan.entries + 1}), Type::kFloat32);
    on(where, [&](void* stream) {
        conv_moments(pointer<const void>(x), type, shape, plan, pointer<float>(partials), pointer<int>(counters),
                     pointer<float>(s), stream);
    });
}

}  // namespace

void define_conv(pybind11::module_& m) {
    m.def("conv_sizes", &conv_sizes);
    m.def("conv_moments", &conv_moments_at);
}

}  // namespace lnb::cuda
