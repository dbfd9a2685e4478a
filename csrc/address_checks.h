// What both native modules check of the addresses that Python hands them: what would crash, or give results that depend
// on timing.
#pragma once

#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "types.h"

namespace lnb {

using Addresses = std::vector<uintptr_t>;
using Sizes = std::vector<int64_t>;

inline std::string label(const std::string& list, size_t i) {
    return list + "[" + std::to_string(i) + "]";
}

inline void check_addresses(const char* list, const Addresses& addresses, const Sizes& sizes, Type type) {
    if (addresses.size() != sizes.size()) throw std::invalid_argument(std::string(list) + ": one size per address");
    for (size_t i = 0; i < sizes.size(); ++i) {
        if (sizes[i] < 0) throw std::invalid_argument(label(list, i) + " has a negative size");
        if (sizes[i] == 0) continue;
        if (addresses[i] == 0) throw std::invalid_argument(label(list, i) + " has entries but a null pointer");
        if (addresses[i] % width(type) != 0) {
            throw std::invalid_argument(label(list, i) + " is not aligned to its dtype");
        }
    }
}

// A list of a call: its name, and where its tensors lie.
struct Memory {
    std::string list;
    Addresses addresses;
    Sizes bytes;
    bool written;
};

// Writing to memory that is also read or written through another tensor gives results that depend on timing.
inline void require_disjoint_writes(const std::vector<Memory>& lists) {
    struct Extent {
        uintptr_t begin, end;
        const Memory* list;
        size_t index;
    };
    std::vector<Extent> extents;
    for (const Memory& list : lists) {
        if (list.addresses.size() != list.bytes.size())
            throw std::invalid_argument(list.list + ": one size per address");
        for (size_t i = 0; i < list.bytes.size(); ++i) {
            if (list.bytes[i] <= 0) continue;
            extents.push_back({list.addresses[i], list.addresses[i] + static_cast<uintptr_t>(list.bytes[i]), &list, i});
        }
    }
    std::sort(extents.begin(), extents.end(), [](const Extent& a, const Extent& b) { return a.begin < b.begin; });
    const Extent* reach = nullptr;          // of all so far, the one that ends last
    const Extent* written_reach = nullptr;  // the same among those written
    for (const Extent& extent : extents) {
        const Extent* other = extent.list->written ? reach : written_reach;
        if (other != nullptr && other->end > extent.begin) {
            throw std::invalid_argument(label(extent.list->list, extent.index) + " and " +
                                        label(other->list->list, other->index) +
                                        " overlap in memory, and one of them is written; give each its own memory");
        }
        if (reach == nullptr || extent.end > reach->end) reach = &extent;
        if (extent.list->written && (written_reach == nullptr || extent.end > written_reach->end)) {
            written_reach = &extent;
        }
    }
}

}  // namespace lnb
