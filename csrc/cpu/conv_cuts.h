// Where the pixels of an image's axis begin and end to be visited by the taps of a convolution.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "conv_moment.h"
#include "ranges.h"

namespace lnb {

// One axis, cut into the intervals that taps either visit whole or not at all.
struct Cuts {
    std::vector<Range> intervals;
    std::vector<char> visited;  // [taps, intervals]

    Cuts(const ConvAxis& axis, int64_t size) {
        std::vector<Range> ranges;
        std::vector<int64_t> ends;
        for (int64_t tap = 0; tap < axis.taps; ++tap) {
            const int64_t first = tap * axis.dilation - axis.before;
            const Range range{std::max<int64_t>(0, first), std::min(size, first + axis.outputs)};
            ranges.push_back(range);
            if (range.size() > 0) ends.insert(ends.end(), {range.begin, range.end});
        }
        std::sort(ends.begin(), ends.end());
        ends.erase(std::unique(ends.begin(), ends.end()), ends.end());
        for (size_t i = 0; i + 1 < ends.size(); ++i) intervals.push_back({ends[i], ends[i + 1]});
        for (const Range& range : ranges) {
            for (const Range& part : intervals) visited.push_back(range.begin <= part.begin && part.end <= range.end);
        }
    }

    int64_t size() const { return static_cast<int64_t>(intervals.size()); }
    Range at(int64_t i) const { return intervals[static_cast<size_t>(i)]; }
    bool visits(int64_t tap, int64_t interval) const {
        return visited[static_cast<size_t>(tap * size() + interval)] != 0;
    }
};

}  // namespace lnb
