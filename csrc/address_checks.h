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

// What is wrong with so many elements at an address; null for nothing.
inline const char* fault(uintptr_t address, int64_t size, Type type) {
    if (size < 0) return " has a negative size";
    if (size > 0 && address == 0) return " has entries but a null pointer";
    if (size > 0 && address % width(type) != 0) return " is not aligned to its dtype";
    return nullptr;
}

inline void check_memory(const char* name, uintptr_t address, int64_t size, Type type) {
    if (const char* found = fault(address, size, type)) throw std::invalid_argument(std::string(name) + found);
}

inline void check_addresses(const char* list, const Addresses& addresses, const Sizes& sizes, Type type) {
    if (addresses.size() != sizes.size()) throw std::invalid_argument(std::string(list) + ": one size per address");
    for (size_t i = 0; i < sizes.size(); ++i) {
        if (const char* found = fault(addresses[i], sizes[i], type)) {
            throw std::invalid_argument(label(list, i) + found);
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
